"""How values are written on pages: one function each for number, duration, age, bytes, state. All return safe HTML or plain text."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timezone

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
DASH = mark_safe('<span class="none" title="no value">\N{EN DASH}</span>')


def short_number(value: float | int) -> str:
    """Four significant digits, at most nine characters; NaN and Inf by name."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Inf" if value > 0 else "-Inf"
        if value.is_integer() and abs(value) < 1e6:
            return "-0" if value == 0 and math.copysign(1, value) < 0 else f"{int(value):,}"
    elif abs(value) < 10**9:
        return f"{value:,}"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        digits, _, exponent = f"{value:.3e}".partition("e")
        digits = digits.rstrip("0").rstrip(".")
        return f"{digits}e{int(exponent)}"
    text = f"{value:.4g}"
    return f"{float(text):,.0f}" if "e" in text else text


def exact(value) -> str:
    """What is copied and shown on hover: every bit of it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return repr(value)
    return str(value)


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(value) -> SafeString:
    if value is None or value == "":
        return DASH
    if not is_number(value):
        return format_html("{}", value)
    text = short_number(value)
    whole, dot, fraction = text.partition(".")
    bad = isinstance(value, float) and not math.isfinite(value)
    return format_html(
        '<data class="num{}" value="{}" title="{}">{}{}</data>',
        " bad" if bad else "", exact(value), exact(value), whole, format_html('<span class="f">{}{}</span>', dot, fraction),
    )  # fmt: skip


def value(thing) -> SafeString:
    """Any leaf of a config or summary, typed by class so that 1, "1" and true do not look alike."""
    if thing is None:
        return mark_safe('<span class="v-null">null</span>')
    if isinstance(thing, bool):
        return format_html('<span class="v-bool">{}</span>', exact(thing))
    if isinstance(thing, int):  # a seed or an id cut to four digits would be another one
        return format_html('<data class="num" value="{}">{}</data>', thing, f"{thing:,}" if abs(thing) < 10**6 else thing)
    if is_number(thing):
        return number(thing)
    if isinstance(thing, str):
        if thing in ("NaN", "Infinity", "-Infinity"):
            return format_html('<data class="num bad" value="{}">{}</data>', thing, thing.replace("Infinity", "Inf"))
        return format_html('<span class="v-text" title="{}">{}</span>', thing[:2000], thing if len(thing) <= 200 else thing[:199] + "…")
    text = json.dumps(thing, ensure_ascii=False)
    return format_html('<span class="v-json" title="{}">{}</span>', text[:2000], text if len(text) <= 120 else text[:119] + "…")


def short_duration(seconds: float | None) -> str:
    """``2h 14m``, ``3m 05s``, ``12.4s``, ``180ms``: two units at most."""
    if seconds is None:
        return "\N{EN DASH}"
    seconds = max(0.0, float(seconds))
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def duration(seconds: float | None) -> SafeString:
    if seconds is None:
        return DASH
    return format_html('<span class="dur" title="{} s">{}</span>', f"{float(seconds):,.3f}", short_duration(seconds))


def span_seconds(seconds: float | None) -> SafeString:
    """A measured time, to three digits: what ranks differ by is often less than a tenth of it."""
    if seconds is None:
        return DASH
    text = f"{seconds * 1000:.3g}ms" if seconds < 0.9995 else f"{seconds:.2f}s" if seconds < 60 else short_duration(seconds)
    return format_html('<span class="dur" title="{} s">{}</span>', f"{float(seconds):,.6f}", text)


def signed_seconds(seconds: float | None) -> SafeString:
    if seconds is None:
        return DASH
    sign = "\N{MINUS SIGN}" if seconds < 0 else "+"
    return format_html('<span class="dur" title="{} s">{}{}</span>', f"{seconds:+,.3f}", sign, short_duration(abs(seconds)))


def short_age(then: datetime, now: datetime | None = None) -> str:
    seconds = ((now or datetime.now(timezone.utc)) - then).total_seconds()
    if seconds < -60:
        return "in " + short_duration(-seconds).split(" ")[0]
    if seconds < 10:
        return "now"
    if seconds < 60:
        return f"{int(seconds)}s ago"
    if seconds < 3600:
        return f"{int(seconds // 60)}m ago"
    if seconds < 86400:
        return f"{int(seconds // 3600)}h ago"
    if seconds < 30 * 86400:
        return f"{int(seconds // 86400)}d ago"
    if seconds < 365 * 86400:
        return f"{int(seconds // (30 * 86400))}mo ago"
    return f"{int(seconds // (365 * 86400))}y ago"


def age(then: datetime | None) -> SafeString:
    if then is None:
        return DASH
    iso = then.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    title = iso.replace("T", " ").replace("Z", " UTC")
    return format_html('<time datetime="{}" title="{}" data-age>{}</time>', iso, title, short_age(then))


def short_bytes(count: int | float | None) -> str:
    if count is None:
        return "\N{EN DASH}"
    size = float(count)
    for unit in UNITS:
        if abs(size) < 1024 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    return ""


def size(count) -> SafeString:
    if count is None or not is_number(count):
        return DASH
    return format_html('<span class="num" title="{} bytes">{}</span>', f"{int(count):,}", short_bytes(count))


_BYTES = re.compile(r"(?:^|[/_.])bytes(_per_second|_per_s|/s)?$", re.IGNORECASE)


def unit(key: str) -> str:
    """``bytes``, ``bytes/s`` or nothing: what a metric's name says it counts."""
    found = _BYTES.search(key)
    return "" if found is None else "bytes/s" if found.group(1) else "bytes"


def metric(thing, key: str) -> SafeString:
    """A metric's value in the unit that its key names; all else as it is."""
    counted = unit(key) if is_number(thing) and math.isfinite(thing) else ""
    if not counted:
        return number(thing)
    text = short_bytes(thing) + ("/s" if counted == "bytes/s" else "")
    return format_html('<data class="num" value="{}" title="{} {}">{}</data>', exact(thing), exact(thing), counted, text)


WORDS = {"cancelled": "cancelled", "lost": "lost", "done": "done", "skipped": "skipped", "waiting": "waiting"}


def icon(name: str) -> SafeString:
    return format_html('<svg class="i" aria-hidden="true"><use href="#i-{}"/></svg>', name)


def state(name) -> SafeString:
    """Icon and word: colour is never alone."""
    name = str(getattr(name, "value", name) or "")
    known = name if name.isalpha() else "unknown"
    return format_html('<span class="state s-{}">{}<span>{}</span></span>', known, icon(f"s-{known}"), WORDS.get(name, name))


SEALS = {
    "bit_exact": ("exact", "Bit-exact"),
    "within_tolerance": ("near", "Within tolerance"),
    "same_outcome": ("near", "Same outcome"),
    "diverged": ("diverged", "Diverged"),
    "not_comparable": ("grey", "Not comparable"),
    "not_runnable": ("blocked", "Not runnable"),
    "rerun_failed": ("blocked", "Rerun failed"),
    "stopped_early": ("grey", "Stopped early"),
    "inconclusive": ("grey", "Inconclusive"),
}


def seal_kind(verdict: dict | None) -> tuple[str, str]:
    """(class, words) of a verdict; a run that did not complete is never sealed as equal."""
    if not verdict:
        return "none", "No verdict yet"
    execution, agreement = verdict.get("execution"), verdict.get("agreement")
    if execution in ("not_runnable", "rerun_failed", "inconclusive"):
        return SEALS[execution]
    if agreement == "diverged" and verdict.get("step") is not None:
        return "diverged", f"Diverged at step {short_number(verdict['step'])}"
    if execution == "stopped_early":
        return SEALS["stopped_early"]
    return SEALS.get(agreement or "", ("grey", "Inconclusive"))


def seal(verdict: dict | None) -> SafeString:
    kind, words = seal_kind(verdict)
    return format_html('<span class="seal seal-{}">{}<span>{}</span></span>', kind, icon(f"seal-{kind}"), words)
