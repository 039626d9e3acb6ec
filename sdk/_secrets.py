"""Secrets become ``${secret:NAME}`` before anything leaves the process.

Three rules, in falling order of certainty:

* by **name**: the value under a name like ``HF_TOKEN`` or ``db_password`` (`mask_mapping`, ``--token=…``, ``password=…`` in text);
* by **shape**: tokens whose issuer gave them a recognisable form (GitHub, AWS, …), private keys, passwords in URLs;
* by **entropy**, and only under a secret-like name: digests and ids are as random as tokens, and must stay readable.

Values found by name are remembered, so that a program that prints its own token prints ``${secret:HF_TOKEN}`` into our log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# Words that make a name secret, as whole parts of it: `API_KEY` and `apiKey` are, `monkey`, `tokens_per_second` and `key_dim` are not.
_SECRET_PARTS = frozenset(
    """
    password passwd passphrase pwd secret secrets credential credentials apikey authtoken accesskey privatekey bearer webhook
    dsn
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_SECRET_ENDINGS = (
    ("token",),
    ("auth",),
    ("api", "key"),
    ("access", "key"),
    ("secret", "key"),
    ("private", "key"),
    ("account", "key"),
    ("signing", "key"),
    ("encryption", "key"),
    ("license", "key"),
    ("access", "key", "id"),
    ("session", "token"),
    ("connection", "string"),
)
_KEY_OWNERS = frozenset(
    """
    aws azure gcp google openai anthropic wandb neptune comet hf huggingface github gitlab slack kaggle stripe deepl cohere
    mistral groq replicate langchain langsmith pinecone weaviate sentry datadog newrelic mlflow clearml aim ssh gpg pgp
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
# Names that end like a secret and are ordinary words of this field.
_HARMLESS = frozenset(
    """
    pad_token eos_token bos_token unk_token sep_token cls_token mask_token stop_token start_token image_token special_token
    next_token max_token min_token num_token n_token per_token prompt_token begin_token end_token audio_token video_token
    add_token cls_token dist_token add_bos_token add_eos_token class_token reg_token pool_token query_token use_auth no_auth
    image_key data_key sort_key primary_key foreign_key
    """.split()  # noqa: SIM905 - a list of words reads best as words
)

_SPLIT = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def is_secret_name(name: str) -> bool:
    """Whether what stands under `name` is to be kept: `WANDB_API_KEY` is, `pad_token` and `PYTHONHASHSEED` are not."""
    parts = [part.lower() for part in _SPLIT.split(name) if part]
    if not parts:
        return False
    if "_".join(parts[-2:]) in _HARMLESS or "_".join(parts) in _HARMLESS:
        return False
    if any(part in _SECRET_PARTS for part in parts):
        return not (parts[-1] in ("file", "path", "dir", "name", "length", "len", "count", "id", "env", "var") and len(parts) > 1)
    if any(tuple(parts[-len(ending) :]) == ending for ending in _SECRET_ENDINGS):
        return True
    return parts[-1] == "key" and any(part in _KEY_OWNERS for part in parts[:-1])


# (kind, pattern). Each pattern carries a prefix or a frame that its issuer chose, so that ordinary text does not match.
_SHAPES: tuple[tuple[str, str], ...] = (
    (
        "PRIVATE_KEY",
        (
            r"-----BEGIN [A-Z0-9 ]{0,24}PRIVATE KEY(?: BLOCK)?-----\s+[A-Za-z0-9+/=:,.\-\s]{40,}?"
            r"(?:-----END [A-Z0-9 ]{0,24}PRIVATE KEY(?: BLOCK)?-----|\Z)"
        ),
    ),
    ("AWS_ACCESS_KEY", r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
    ("GITHUB_TOKEN", r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})(?![A-Za-z0-9])"),
    ("GITLAB_TOKEN", r"(?<![A-Za-z0-9])gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-[A-Za-z0-9_-]{20,64}"),
    ("HF_TOKEN", r"(?<![A-Za-z0-9_])(?:hf|api_org)_[A-Za-z]{34}(?![A-Za-z0-9_])"),
    ("ANTHROPIC_API_KEY", r"(?<![A-Za-z0-9])sk-ant-[A-Za-z0-9]{2,8}-[A-Za-z0-9_-]{32,}"),
    (
        "OPENAI_API_KEY",
        r"(?<![A-Za-z0-9])sk-(?:proj-|svcacct-|admin-|None-)?(?=[A-Za-z0-9_-]*[0-9])(?=[A-Za-z0-9_-]*[A-Z])[A-Za-z0-9_-]{40,}",
    ),
    ("SLACK_TOKEN", r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{20,}"),
    ("SLACK_WEBHOOK", r"https://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9+/]{30,}"),
    ("GOOGLE_API_KEY", r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("GOOGLE_OAUTH_TOKEN", r"(?<![A-Za-z0-9])(?:ya29\.[A-Za-z0-9_-]{30,}|GOCSPX-[A-Za-z0-9_-]{28})"),
    ("STRIPE_KEY", r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_[A-Za-z0-9]{24,}"),
    ("NPM_TOKEN", r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    ("PYPI_TOKEN", r"(?<![A-Za-z0-9])pypi-AgE[A-Za-z0-9_-]{50,}"),
    ("WANDB_API_KEY", r"(?<![A-Za-z0-9_])wandb_v1_[A-Za-z0-9_-]{40,}"),
    ("SENDGRID_KEY", r"(?<![A-Za-z0-9])SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
    ("JWT", r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{14,}\.eyJ[A-Za-z0-9_-]{14,}\.[A-Za-z0-9_-]{20,}"),
)
_SHAPE = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _SHAPES))
# What any shape must contain; one cheap scan that spares nearly all text the expensive one.
_HINT = re.compile(
    r"PRIVATE KEY|AKIA|ASIA|ABIA|ACCA|gh[pousr]_|github_pat_|gl[a-z]{2,5}-|hf_|api_org_|sk-|xox"
    r"|hooks\.slack|AIza|ya29|GOCSPX|k_live_|k_test_|npm_|pypi-|wandb_v1|SG\.|eyJ"
)

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{1,20}://)(?P<user>[^\s/:@'\"<>{}$]{0,128}):(?P<password>[^\s/@'\"<>{}$]{1,256})@")
_URL_TOKEN = re.compile(r"(?P<scheme>https?://)(?P<token>[A-Za-z0-9_-]{20,256})@")
_AUTHORIZATION = re.compile(
    r"(?i)(?P<head>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token)\s+)(?P<value>[A-Za-z0-9._~+/=-]{8,})"
)
# name=value, name: value, --name value. The name decides (is_secret_name), so the pattern may be wide.
_ASSIGNMENT = re.compile(
    r"(?P<name>--?[A-Za-z][A-Za-z0-9_-]{2,60}|[A-Za-z_][A-Za-z0-9_.-]{2,60})(?P<middle>['\"]?\s{0,4}(?:=|:)\s{0,4}|\s)(?P<quote>['\"]?)(?P<value>[^\s'\"<>,;(){}\[\]]{6,512})(?P=quote)"
)
_SECRET_WORD = re.compile(
    r"(?i)token|passw|passphrase|pwd|secret|credential|api[_-]?key|access[_-]?key|private[_-]?key|apikey|auth|dsn|_key|-key|webhook|bearer"
)

_remembered: dict[str, str] = {}
_remembered_pattern: re.Pattern[str] | None = None
_MAX_REMEMBERED = 256


def remember(name: str, value: str) -> None:
    """Mask `value` wherever it turns up in text from now on. Short and common values are not remembered: they would mask ordinary words."""
    global _remembered_pattern
    if len(value) < 8 or value.isalpha() or value in _remembered or len(_remembered) >= _MAX_REMEMBERED or value.startswith(("/", "${")):
        return
    _remembered[value] = name
    alternatives = sorted(_remembered, key=len, reverse=True)
    _remembered_pattern = re.compile("|".join(re.escape(each) for each in alternatives))


def placeholder(name: str) -> str:
    return "${secret:" + (re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "SECRET") + "}"


def mask_text(text: str) -> str:
    """`text` with every secret that is found in it replaced by ``${secret:NAME}``. Never raises."""
    if not text:
        return text
    try:
        return _mask_text(text)
    except Exception:  # a masking fault must not stop training, and must not let the text pass either
        return "[text withheld: masking failed]"


def _mask_text(text: str) -> str:
    if _remembered_pattern is not None:
        text = _remembered_pattern.sub(lambda m: placeholder(_remembered.get(m.group(0), "SECRET")), text)
    if _HINT.search(text):
        text = _SHAPE.sub(lambda m: placeholder(m.lastgroup or "SECRET"), text)
    if "@" in text and "://" in text:
        text = _URL.sub(lambda m: f"{m['scheme']}{m['user']}:{placeholder('URL_PASSWORD')}@", text)
        text = _URL_TOKEN.sub(lambda m: f"{m['scheme']}{placeholder('URL_TOKEN')}@", text)
    if _SECRET_WORD.search(text):
        text = _AUTHORIZATION.sub(lambda m: m["head"] + placeholder("AUTHORIZATION"), text)
        text = _ASSIGNMENT.sub(_mask_assignment, text)
    return text


def _mask_assignment(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    if value.startswith("${") or not is_secret_name(name.lstrip("-").rsplit(".", 1)[-1]):
        return match[0]
    flag = name.startswith("--")
    if match["middle"].isspace() and not flag:
        return match[0]  # "token abcdef" in prose is a sentence, "--token abcdef" is a flag
    if not flag and not _is_random(value):
        return match[0]  # `token = tokenizer.decode(x)` is code, not a secret
    return f"{name}{match['middle']}{match['quote']}{placeholder(name.lstrip('-'))}{match['quote']}"


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    counts: dict[str, int] = {}
    for character in text:
        counts[character] = counts.get(character, 0) + 1
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values()) if text else 0.0


def _is_random(value: str) -> bool:
    """Whether a value under a secret-like name looks like a secret and not like an identifier, a path or a number."""
    if len(value) < 8 or re.fullmatch(
        r"[+-]?[\d.eE_+-]+|[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)+|(?:\.{0,2}/|~).*|(?i:none|null|true|false)", value
    ):
        return False
    classes = sum(bool(re.search(pattern, value)) for pattern in (r"[a-z]", r"[A-Z]", r"[0-9]", r"[^A-Za-z0-9_]"))
    if re.fullmatch(r"[A-Za-z_]+", value):
        return len(value) >= 24 and entropy(value) > 4.0 and "_" not in value
    return (classes >= 3 and entropy(value) >= 2.75) or (classes >= 2 and len(value) >= 16 and entropy(value) >= 3.0)


def mask_value(name: str, value: Any) -> Any:
    """A value (any JSON shape) with what is secret in it masked; `name` is the name it stands under."""
    if isinstance(value, str):
        if value and is_secret_name(name) and not value.startswith("${secret:"):
            remember(name, value)
            return placeholder(name)
        return mask_text(value)
    if isinstance(value, Mapping):
        return {key: mask_value(str(key), each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask_value(name, each) for each in value]
    if isinstance(value, bytes) and is_secret_name(name):
        return placeholder(name)
    return value


def mask_mapping(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`values` with secrets masked at any depth, and the (top-level) names whose value changed, sorted."""
    masked = {str(name): mask_value(str(name), value) for name, value in values.items()}
    changed = sorted(name for name, value in values.items() if _differs(value, masked[str(name)]))
    return masked, changed


def _differs(before: Any, after: Any) -> bool:
    if isinstance(before, tuple):
        before = list(before)
    if isinstance(before, Mapping) and isinstance(after, dict):
        return any(_differs(value, after.get(key)) for key, value in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return any(_differs(a, b) for a, b in zip(before, after, strict=False))
    try:
        return bool(isinstance(after, (str, bytes)) and before != after)
    except Exception:
        return False


def mask_argv(argv: list[str]) -> list[str]:
    """A command line with secrets masked: by shape, ``--token=x``, ``--token x`` and ``token=x``."""
    masked: list[str] = []
    secret_next = ""
    for argument in argv:
        if secret_next and not argument.startswith("--"):
            remember(secret_next, argument)
            masked.append(placeholder(secret_next))
            secret_next = ""
            continue
        secret_next = ""
        name, equals, value = argument.partition("=")
        if equals and value and is_secret_name(name.lstrip("-+").rsplit(".", 1)[-1]):
            remember(name.lstrip("-+"), value)
            masked.append(f"{name}={placeholder(name.lstrip('-+'))}")
            continue
        if argument.startswith("--") and not equals and is_secret_name(argument[2:]):
            secret_next = argument[2:]
        masked.append(mask_text(argument))
    return masked


_SECRET_FILES = re.compile(
    r"(?i)(^|/)(\.netrc|_netrc|\.env(\.(?!example$|sample$|template$|dist$)[a-z0-9_-]+)?|\.pgpass|\.git-credentials|\.pypirc|credentials(\.json)?|id_(rsa|dsa|ecdsa|ed25519)|kaggle\.json|\.htpasswd|service[-_]account[^/]*\.json)$"
    r"|(^|/)\.(ssh|aws|gnupg|kube|docker)/|\.(pem|p12|pfx|keystore|jks|ppk|kdbx)$"
)
_FILE_ASSIGNMENT = re.compile(
    r"(?P<name>[A-Za-z_][A-Za-z0-9_-]{2,60})['\"]?\s{0,4}[=:]\s{0,4}['\"](?P<value>[A-Za-z0-9+/=_.~!@#$%^&*-]{20,256})['\"]"
)


def secret_in_file(path: str, data: bytes) -> str | None:
    """Why the file at `path` with content `data` must not be stored, or None. Binary files are looked at by name alone."""
    if _SECRET_FILES.search(path.replace("\\", "/")) and not path.endswith("/.ssh/known_hosts"):
        return "its name says that it holds secrets"
    if b"\0" in data[:8192]:
        return None
    text = data.decode("utf-8", "replace")
    if _HINT.search(text):
        for match in _SHAPE.finditer(text):
            if not _is_example(match[0]):
                return f"a secret was found in it ({match.lastgroup}, line {text.count(chr(10), 0, match.start()) + 1})"
    if _SECRET_WORD.search(text):
        for match in _FILE_ASSIGNMENT.finditer(text):
            value = match["value"]
            if (
                is_secret_name(match["name"])
                and _is_random(value)
                and entropy(value) >= 3.5
                and re.search(r"\d", value)
                and not _is_example(value)
            ):
                return f"a secret was found in it ({match['name']}, line {text.count(chr(10), 0, match.start()) + 1})"
    return None


def _is_example(value: str) -> bool:
    """Whether a token is a documented placeholder (`AKIA…EXAMPLE`, `sk-xxxx`)."""
    lowered = value.lower()
    return (
        any(word in lowered for word in ("example", "xxxx", "your", "dummy", "placeholder", "changeme", "123456789", "abcdefgh"))
        or len(set(value)) < 8
    )
