"""JSON whose parts know the line they stand in, so that what is wrong can be shown to the person who wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

_BLANK = re.compile(r"[ \t\n\r]*")
_DEPTH = 20


class Member(NamedTuple):
    """One member of an object, or one element of an array."""

    key: str | int
    """Its name, or its place, from 0."""
    value: Any
    line: int
    """The line that its name, or an element itself, begins in, from 1."""
    offset: int
    """Where the value begins in the text."""


class Malformed(ValueError):
    """Not JSON, or JSON that says one thing twice."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def parse(text: str) -> tuple[Any, int]:
    """A document, and where it begins. Raises Malformed."""
    if _nested(text) > _DEPTH:
        raise Malformed(f"it is nested more than {_DEPTH} deep", 1)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise Malformed(error.msg, error.lineno) from error
    except ValueError as error:  # NaN, or a number of thousands of digits
        raise Malformed(str(error)[:100], 1) from error
    return value, _skip(text, 0)


def members(text: str, offset: int) -> Iterator[Member]:
    """The members of the object, or the elements of the array, that begins at `offset` of a text that `parse` has
    accepted. Raises Malformed for a name that comes twice."""
    closing = "}" if text[offset] == "{" else "]"
    at = _skip(text, offset + 1)
    seen: set[str | int] = set()
    while text[at] != closing:
        begin = at
        key: str | int = len(seen)
        if closing == "}":
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # the colon
        value_at = at
        value, at = _DECODER.raw_decode(text, at)
        line = text.count("\n", 0, begin) + 1
        if key in seen:
            raise Malformed(f"{key!r:.80} comes twice", line)
        seen.add(key)
        yield Member(key, value, line, value_at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    assert found is not None
    return found.end()


def _nested(text: str) -> int:
    """At least how deep a document is nested: brackets in strings count as well."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[{}\]]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
