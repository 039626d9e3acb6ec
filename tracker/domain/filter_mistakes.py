"""Mistakes of a filter's grammar, told so that one sees what would be right."""

from __future__ import annotations

from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from tracker.domain.errors import FilterMistake

_WORDS = {
    "NAME": "a name such as config.lr, val/loss or state",
    "VALUE": "a value",
    "OP": "a comparison (= != < <= > >= ~ =~ LIKE IN)",
    "_AND": "AND",
    "_OR": "OR",
    "RPAR": ")",
    "LPAR": "(",
    "COMMA": "a comma",
    "RSQB": "]",
    "_NULL": "NULL",
}
_ORDER = list(_WORDS)
_VALUES = ("NUMBER", "SPECIAL", "AGO", "DURATION", "MOMENT")


def explained(text: str, error: UnexpectedInput) -> FilterMistake:
    if isinstance(error, UnexpectedEOF) or (isinstance(error, UnexpectedToken) and error.token.type == "$END"):
        expected = _told(getattr(error, "expected", ()) or (), text)
        tail = f": here would stand {expected}." if expected else "."
        return FilterMistake(f"The filter ends too early, after column {len(text)}{tail}", filter=text, column=len(text) + 1)
    at = getattr(error, "pos_in_stream", None)
    column = (at if isinstance(at, int) else 0) + 1
    if isinstance(error, UnexpectedCharacters):
        return FilterMistake(f"Column {column}: {_of_character(text, column, error)}", filter=text, column=column)
    assert isinstance(error, UnexpectedToken)
    expected = _told(error.expected, text[: column - 1])
    hint = f" Here would stand {expected}." if expected else ""
    if "NAME" in error.expected and "OP" not in error.expected and error.token.type in _VALUES:
        hint = " The name comes first, as in config.lr > 0.1; a name that looks like a number stands in double quotes."
    if str(error.token) in ("IN", "in") and "NAME" in error.expected:
        hint = " A name that is a word of the language stands in double quotes."
    return FilterMistake(f"Column {column}: {str(error.token)!r} is not expected here.{hint}", filter=text, column=column)


def _of_character(text: str, column: int, error: UnexpectedCharacters) -> str:
    found = text[column - 1 : column]
    if found in ("'", '"'):
        return "The quote is never closed." if text.count(found, column - 1) == 1 else f"{found!r} cannot stand here."
    if found in "&|":
        return f"{found!r} cannot stand here: write AND or OR."
    if found == "!":
        return "'!' cannot stand here: write NOT, or != or !~."
    return f"{found!r} cannot stand here. Names and values with odd characters stand in double quotes."


def _told(expected, before: str) -> str:
    """``before``: what stands before the place. The grammar's tables do not know which bracket is open there."""
    closed = {"RPAR", "COMMA"} if before.count("(") <= before.count(")") else set()
    closed |= {"RSQB"} if before.count("[") <= before.count("]") else {"RPAR"}
    names = set()
    for name in set(expected) - closed:
        if name in _VALUES:
            names.add("VALUE")
        elif name in _WORDS:
            names.add(name)
        elif name in ("PATH", "HAS"):
            names.add("NAME")
    if "VALUE" in names:
        names.discard("NAME")
    words = [_WORDS[name] for name in _ORDER if name in names]
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else "".join(words)
