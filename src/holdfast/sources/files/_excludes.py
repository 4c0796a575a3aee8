"""Patterns for what a backup leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from holdfast.errors import ConfigError

Match = re.Pattern[str]


class Excludes:
    """Patterns in the manner of gitignore, compiled once.

    - A pattern without a slash matches a name, at any depth: ``*.tmp``, ``__pycache__``.
    - A pattern with a slash matches a whole path: ``models/cache/*.bin``. The path is taken relative to the
      service root (for what lies outside it, to ``/``), and also relative to the configured path that it was
      found beneath; either will do. So ``/cache`` is the ``cache`` in the service root and the ``cache``
      directly in ``models/``, and no other.
    - A slash at the end, which does not count as one above, restricts a pattern to directories: ``tmp/``. A link
      is no directory.
    - ``*`` stands for any characters but a slash, ``?`` for one; both also for a leading dot. ``[abc]``,
      ``[a-z]`` stand for one of these characters, ``[!abc]`` for one that is none of them. A backslash takes
      away the next character's meaning, but not between brackets.
    - ``**`` between slashes stands for any number of directories, none included: ``**/x``, ``a/**/b``;
      ``a/**`` is everything inside ``a``.
    - Upper and lower case differ.

    What is inside an excluded directory is not even looked at, so nothing in it can be taken back in: ``!``
    at the start is refused. Raises ConfigError for that, and for a pattern that is empty or holds ``..``.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        names: dict[bool, list[str]] = {False: [], True: []}
        paths: dict[bool, list[str]] = {False: [], True: []}
        for pattern in patterns:
            parts = _parts(pattern)
            anchored = "/" in pattern.rstrip("/")
            (paths if anchored else names)[pattern.endswith("/")].append(_path(parts))
        self._names = _union(names[False])
        self._paths = _union(paths[False])
        self._directory_names = _union(names[True])
        self._directory_paths = _union(paths[True])

    def matches(self, name: str, path: str, starts: Sequence[int]) -> bool:
        """Whether a thing of any kind is excluded by what holds for all kinds.

        `starts` are the offsets in `path` at which a path to be matched begins.
        """
        return _matches(self._names, self._paths, name, path, starts)

    def matches_directory(self, name: str, path: str, starts: Sequence[int]) -> bool:
        """Whether a directory is excluded by what holds for directories only."""
        return _matches(self._directory_names, self._directory_paths, name, path, starts)


def compile_name(pattern: str) -> Match:
    """A pattern for one name, to be used with ``fullmatch``."""
    return re.compile(_segment(pattern), re.DOTALL)


def _matches(names: Match | None, paths: Match | None, name: str, path: str, starts: Sequence[int]) -> bool:
    if names is not None and names.fullmatch(name):
        return True
    return paths is not None and any(paths.fullmatch(path, start) for start in starts)


def _union(expressions: list[str]) -> Match | None:
    return re.compile("|".join(f"(?:{one})" for one in expressions), re.DOTALL) if expressions else None


def _parts(pattern: str) -> list[str]:
    if pattern.startswith("!"):
        raise ConfigError(
            f"exclude pattern {pattern!r}: nothing can be taken back in",
            hint=r"Write patterns that match less. A name that begins with ! is written \!.",
        )
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise ConfigError(
            f"exclude pattern {pattern!r} matches nothing",
            hint="Write a name or a path relative to the service root, without `..`.",
        )
    return parts


def _path(parts: list[str]) -> str:
    if len(parts) == 1:
        return _segment(parts[0])
    expression = ""
    for part in parts[:-1]:
        expression += "(?:[^/]+/)*" if part == "**" else _segment(part) + "/"
    return expression + (".+" if parts[-1] == "**" else _segment(parts[-1]))


def _segment(pattern: str) -> str:
    """A pattern without slashes as a regular expression.

    What stands between two stars is taken where it first fits, for good: a later place could not do better,
    and trying them all takes exponential time.
    """
    pieces = [""]
    at = 0
    while at < len(pattern):
        character = pattern[at]
        end = pattern.find("]", at + 2 + (pattern[at + 1 : at + 2] in ("!", "^"))) if character == "[" else -1
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "[^/]"
        elif end > 0:
            pieces[-1] += _one_of(pattern[at + 1 : end])
            at = end
        else:
            if character == "\\" and at + 1 < len(pattern):
                at += 1
            pieces[-1] += re.escape(pattern[at])
        at += 1
    if len(pieces) == 1:
        return pieces[0]
    first, *middle, last = pieces
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle if piece) + "[^/]*" + last


def _one_of(text: str) -> str:
    negated = text[0] in "!^"
    members = "".join(_members(text[negated:]))
    if negated:
        return f"[^/{members}]"
    return f"(?!/)[{members}]" if members else "(?!)"


def _members(text: str) -> Iterable[str]:
    at = 0
    while at < len(text):
        first, last = text[at], text[at]
        if text[at + 1 : at + 2] == "-" and at + 2 < len(text):
            last = text[at + 2]
            at += 2
        if first <= last:
            yield f"{re.escape(first)}-{re.escape(last)}"
        at += 1
