"""Template filters: the names under which pages use ``tracker/web/format.py``."""

from django import template

from tracker.web import format

register = template.Library()

register.filter("number", format.number)
register.filter("metric", format.metric)
register.filter("value", format.value)
register.filter("duration", format.duration)
register.filter("age", format.age)
register.filter("span_seconds", format.span_seconds)
register.filter("signed_seconds", format.signed_seconds)
register.filter("size", format.size)
register.filter("state", format.state)
register.filter("seal", format.seal)
register.filter("exact", format.exact)
register.simple_tag(format.icon, name="icon")


@register.filter
def get(mapping, key):
    """``mapping[key]``, which templates cannot say when the key has a slash or is a variable."""
    return mapping.get(key) if hasattr(mapping, "get") else None


@register.filter
def utc(moment):
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment else "\N{EN DASH}"


@register.filter
def percent(part, whole):
    return round(100 * part / whole) if whole else 0
