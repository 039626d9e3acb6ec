"""Random filters: every comparison of the language over the names that the runs of test_search_model.py have."""

from __future__ import annotations

from random import Random

WORDS = [
    "gpt",
    "GPT-2",
    "bert",
    "a.b",
    "50%",
    "x_y",
    "tRuE",
    "true",
    "NaN",
    "it's",
    'say "hi"',
    "é",
    "",
    "0.5",
    "[1, 2]",
    "new\nline",
    "\\",
]
NAMES = [
    "config.lr",
    "config.model.kind",
    'config."a.b"',
    "config.a.b",
    "val/loss",
    "summary.x",
    '"odd name"',
    "summary.val/loss",
    "config.no",
]
STATES = ["finished", "failed", "running", "crashed"]
PATTERNS = ["^g", "[0-9]", "(?i)^gpt", "t$", "a.b", "a\\.b", "^(gpt|bert)$", "\\bhi\\b", "[^a-z]", "e{1,2}", "^$", "\\\\", "x?_"]
LIKES = ["g%", "%t", "a_b", "%", "50\\%", "%\\_%", "_", "%'%", "*", "[1%"]
NUMBERS = ["0", "1", "-3", "0.5", "12", "1e300", "+2.5", "1e-3"]
BARE = ["gpt", "true", "false", "NaN", "Infinity", "-inf", "[1, 2]", "2h", "2026-01-31"]
ORDER = ["=", "!=", "<", "<=", ">", ">=", "=="]


def quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def a_filter(random: Random, depth: int = 0) -> str:
    if depth > 2 or random.random() < 0.4:
        return random.choice([_of_value, _of_value, _of_value, _null, _matched, _among, _has, _tagged, _timed, _counted, _named])(random)
    parts = [a_filter(random, depth + 1) for _ in range(random.randint(2, 3))]
    joined = random.choice([" and ", " or ", " AND "]).join(parts)
    return f"not ({joined})" if random.random() < 0.3 else f"({joined})"


def _value(random: Random) -> str:
    return random.choice([random.choice(NUMBERS), random.choice(NUMBERS), quoted(random.choice(WORDS)), random.choice(BARE)])


def _of_value(random: Random) -> str:
    value = _value(random)
    return f"{random.choice(NAMES)} {random.choice(['=', '!='] if value == 'NaN' else ORDER)} {value}"


def _null(random: Random) -> str:
    return f"{random.choice(NAMES)} {random.choice(['= null', '!= null', 'is null', 'IS NOT NULL'])}"


def _matching(random: Random) -> str:
    op = random.choice(["~", "!~", "=~", "!=~", "like", "NOT LIKE", "ilike"])
    word = random.choice(PATTERNS if op.endswith("=~") else WORDS if "~" in op else LIKES)
    return f"{op} {quoted(word.upper() if op == 'ilike' else word)}"


def _matched(random: Random) -> str:
    return f"{random.choice(NAMES)} {_matching(random)}"


def _among(random: Random) -> str:
    return f"{random.choice(NAMES)} {random.choice(['IN', 'not in'])} ({_value(random)}, {_value(random)}, null)"


def _has(random: Random) -> str:
    return random.choice([f"has {random.choice(NAMES)}", 'has metric "odd name"', "has metric val/loss", "has metric x"])


def _tagged(random: Random) -> str:
    ways = ["= base", "!= Best", 'IN (base, "50%")', "~ b", 'like "%e%"', '=~ "^b"', "= null", "!= null"]
    return f"tags {random.choice(ways)}"


def _timed(random: Random) -> str:
    value = random.choice(["-1d", "-1d12h", "today", "yesterday", "2026-01-31", "2026-01-31T12:00:00Z"])
    return random.choice(
        [f"{random.choice(['created', 'finished'])} {random.choice(ORDER)} {value}", "finished = null", "finished != null"]
    )


def _counted(random: Random) -> str:
    duration = f"duration {random.choice(['<', '>='])} {random.choice(['30m', '1h30m', '3600', '1.5d'])}"
    code = f"exit_code {random.choice(ORDER)} {random.choice(['0', '1', '137', '0.5'])}"
    state = f"state {random.choice(['=', '!='])} {random.choice(STATES)}"
    return random.choice([duration, code, state, "archived = true", "archived != true", "exit_code = null", "state in (failed, running)"])


def _named(random: Random) -> str:
    how = _matching(random) if random.random() < 0.5 else f"{random.choice(ORDER)} {quoted(random.choice([*WORDS, 'alice']))}"
    return f"{random.choice(['name', 'group', 'host', 'user'])} {how}"
