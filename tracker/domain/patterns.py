"""Regular expressions of filters: one small language that RE2 and PostgreSQL read alike, so that both databases give the same answer.

Offered: literals, ``.`` (no line break), ``[a-z]`` ``[^…]`` with ``\\d \\w \\s``, ``\\d \\w \\s`` and their capitals (ASCII), ``^ $ \\b``,
groups, ``|``, ``* + ? {m,n}`` (also lazy, which finds the same), ``(?i)`` in front. Not offered: back references, look-around, named
groups, classes such as ``\\p{L}``; so no expression takes more than linear time. Source: the syntax page of RE2, and "POSIX Regular
Expressions" in PostgreSQL's manual.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST = 300
MOST_REPEATS = 100
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": "\\t\\n\\f\\r "}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_SPECIAL = set("\\.+*?()|[]{}^$")


class PatternMistake(ValueError):
    """``at``: the character (from 0) of the pattern."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True)
class Pattern:
    """The same expression for RE2 (and Python's ``re``) and for PostgreSQL."""

    re2: str
    postgres: str


def regex(text: str) -> Pattern:
    """Raises PatternMistake for what is not offered or not closed."""
    if len(text) > LONGEST:
        raise PatternMistake(LONGEST, f"a regular expression has at most {LONGEST} characters")
    return _Reader(text).read()


def like(text: str, *, any_case: bool) -> Pattern:
    """SQL's LIKE: ``%`` any characters, ``_`` one, ``\\`` takes the meaning from the next. For PostgreSQL the LIKE pattern itself."""
    if len(text) > LONGEST:
        raise PatternMistake(LONGEST, f"a LIKE pattern has at most {LONGEST} characters")
    out, at = [], 0
    while at < len(text):
        found = text[at]
        if found == "\\":
            at += 1
            if at == len(text):
                raise PatternMistake(at - 1, r"the pattern ends with a single \; a backslash itself is \\")
            out.append(_quoted(text[at]))
        else:
            out.append({"%": ".*", "_": "."}.get(found) or _quoted(found))
        at += 1
    return Pattern(f"(?{'i' if any_case else ''}s)\\A{''.join(out)}\\z", text)


def _quoted(character: str) -> str:
    return "\\" + character if character in _SPECIAL else character


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.re2: list[str] = []
        self.postgres: list[str] = []
        self.weights = [[0, 0]]
        """Of each open group: what is in it, and what its last atom weighs. RE2 writes repeats out."""

    def read(self) -> Pattern:
        any_case = self.text.startswith("(?i)")
        self.at = 4 if any_case else 0
        opened: list[int] = []
        repeatable = False
        while self.at < len(self.text):
            start, found = self.at, self.text[self.at]
            self.at += 1
            if found in "*+?{":
                if not repeatable:
                    raise PatternMistake(start, f"there is nothing before {found} that could repeat; the character itself is \\{found}")
                self._repeat(found, start)
                repeatable = False
                continue
            repeatable = found not in "^$|("
            if found == "(":
                if self.text.startswith("?:", self.at):
                    self.at += 2
                elif self.text.startswith("?", self.at):
                    raise PatternMistake(start, "of groups with (? there are (?:…), and (?i) in front of all")
                self._put("(?:")
                opened.append(start)
                self.weights.append([0, 0])
            elif found == ")":
                if not opened:
                    raise PatternMistake(start, "this ) closes nothing; the character itself is \\)")
                opened.pop()
                inner = self.weights.pop()[0]
                self._put(")")
                self._weigh(inner + 1, start)
            elif found == "[":
                self._bracket(start)
                self._weigh(1, start)
            elif found == "\\":
                repeatable = self._escape(start)
                self._weigh(1, start)
            else:
                self._put({"]": "\\]", "}": "\\}"}.get(found, found))
                self._weigh(1, start)
        if opened:
            raise PatternMistake(opened[-1], "this ( is never closed; the character itself is \\(")
        # (?p): . and […] know no line break there either, and ^ and $ are the ends of the text.
        return Pattern(("(?i)" if any_case else "") + "".join(self.re2), ("(?ip)" if any_case else "(?p)") + "".join(self.postgres))

    def _put(self, re2: str, postgres: str | None = None) -> None:
        self.re2.append(re2)
        self.postgres.append(re2 if postgres is None else postgres)

    def _weigh(self, weight: int, at: int) -> None:
        self.weights[-1][0] += weight
        self.weights[-1][1] = weight
        if self.weights[-1][0] > 20_000:
            raise PatternMistake(at, "its repeats multiply to too much")

    def _escape(self, start: int) -> bool:
        if self.at == len(self.text):
            raise PatternMistake(start, r"it ends with a single \; a backslash itself is \\")
        found = self.text[self.at]
        self.at += 1
        if found.lower() in _CLASSES:
            inside = _CLASSES[found.lower()]
            self._put(f"[{'^' if found.isupper() else ''}{inside}]")
            return True
        if found in "bB":
            self._put(f"\\{found}", "\\y" if found == "b" else "\\Y")
            return False
        if found in _CONTROLS:
            self._put(f"\\{found}")
            return True
        if found.isalnum():
            raise PatternMistake(start, rf"there is no \{found}; of letters there are \d \w \s \b \t \n and their capitals")
        self._put(_quoted(found))
        return True

    def _bracket(self, start: int) -> None:
        out = ["["]
        if self.text.startswith("^", self.at):
            out.append("^\n")  # as "." in PostgreSQL's (?p); RE2 would let a line break in
            self.at += 1
        first = True
        while True:
            if self.at >= len(self.text):
                raise PatternMistake(start, "this [ is never closed; the character itself is \\[")
            at, found = self.at, self.text[self.at]
            self.at += 1
            if found == "]" and not first:
                break
            first = False
            if found == "\\" and self.text[self.at : self.at + 1] in _CLASSES:
                out.append(_CLASSES[self.text[self.at]])
                self.at += 1
                continue
            low = self._member(found, at)
            if self.text.startswith("-", self.at) and self.text[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 2
                high = self._member(self.text[self.at - 1], self.at - 1)
                if high < low:
                    raise PatternMistake(at, f"the range {low}-{high} runs backwards")
                out.append(f"{self._inside(low)}-{self._inside(high)}")
            else:
                out.append(self._inside(low))
        self._put("".join(out) + "]")

    def _member(self, found: str, at: int) -> str:
        """One character of a class, its escape taken away."""
        if found != "\\":
            return found
        escaped = self.text[self.at : self.at + 1]
        self.at += 1
        if not escaped or (escaped.isalnum() and escaped not in _CONTROLS):
            raise PatternMistake(at, rf"there is no \{escaped} within [ ]; there are \d \w \s \t \n")
        return _CONTROLS.get(escaped, escaped)

    @staticmethod
    def _inside(character: str) -> str:
        return "\\" + character if character in "\\]^-[" else character

    def _repeat(self, found: str, start: int) -> None:
        times = 1
        if found == "{":
            end = self.text.find("}", self.at)
            low, comma, high = self.text[self.at : end].partition(",") if end > 0 else ("", "", "")
            if not low.isascii() or not low.isdigit() or not (high == "" or (high.isascii() and high.isdigit())):
                raise PatternMistake(start, "a repeat reads {3}, {2,} or {2,5}; the character itself is \\{")
            times = int(high or low) if len(low) < 4 and len(high) < 4 else MOST_REPEATS + 1
            if times > MOST_REPEATS or (high and int(high) < int(low)):
                raise PatternMistake(start, f"a repeat counts from low to high, to {MOST_REPEATS} at most")
            self.at = end + 1
            found = "{" + str(int(low)) + comma + (str(int(high)) if high else "") + "}"
            times = max(times, 1) + (comma != "" and not high)
        self._put(found)
        last = self.weights[-1][1]
        self.weights[-1][0] += last * (times - 1)
        self._weigh(0, start)
        self.weights[-1][1] = last * times
        if self.text.startswith("?", self.at):
            self.at += 1  # lazy: finds where it finds at all
