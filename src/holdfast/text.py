"""Text that comes from elsewhere: names of files and hosts, messages of other programs."""

from __future__ import annotations


def harmless(text: str) -> str:
    """`text` without what would speak to a terminal or forge a line of a log, or cannot be encoded."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shown(path: str) -> str:
    """A path for a message: as it is, or quoted and escaped when it holds what a terminal should not be sent."""
    return path if path.isprintable() else ascii(path)
