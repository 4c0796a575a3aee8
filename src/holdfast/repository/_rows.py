"""The lines of a manifest, or of a list, as cursors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from holdfast.errors import CorruptBackup, HostileBackup
from holdfast.model import order_key
from holdfast.repository._manifest import (
    LINE_LIMIT,
    ChunkRef,
    Row,
    chunks_line,
    is_entry,
    is_part,
    parse_entry,
)


class Lines:
    """The lines of a file from where it stands, as a cursor: `line` is the one it stands on, empty at the end.

    Raises CorruptBackup for an absurdly long one.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.line = b""
        self.advance()

    def advance(self) -> None:
        self.line = self._file.readline(LINE_LIMIT + 1)
        if len(self.line) > LINE_LIMIT:
            raise CorruptBackup("the manifest has an absurdly long line")


class Rows:
    """The entries of one source, in order, as a cursor: `row` is the one it stands on, None at the end.

    `parts` gives the lines of the row's parts; whoever does not ask for them passes over them. The one chunk that a
    row names itself (`Row.pack`) comes as if it had a line. An entry out of order, repeated, or beneath something
    that is not a directory is refused.
    """

    def __init__(self, lines: Lines) -> None:
        """`lines` stands on the first line after the one that begins the source."""
        self.row: Row | None = None
        self._lines = lines
        self._unread = 0
        self._is_told = False
        self.key = ""
        """The `order_key` of the row."""
        self._leaf = "\0"
        self.advance()

    def advance(self) -> None:
        if self._unread:
            for _ in self.parts():
                pass
        line = self._lines.line
        if not is_entry(line):
            self.row = None
            return
        row = parse_entry(line)
        kind = row.entry.kind
        key = order_key(row.entry.path)
        if key <= self.key:
            raise HostileBackup(f"{row.entry.path!r} is repeated, or out of order, in the manifest")
        if key.startswith(self._leaf) and kind != "deleted":
            raise HostileBackup(f"{row.entry.path!r} lies beneath something that is not a directory")
        if kind != "directory" and kind != "deleted":
            self._leaf = key + "\0"
        self.key = key
        self._unread = row.parts
        self._is_told = False
        self.row = row
        self._lines.advance()

    def parts(self) -> Iterator[bytes]:
        if self.row is not None and self.row.pack is not None and not self._is_told:
            self._is_told = True
            yield chunks_line([ChunkRef(self.row.entry.size, self.row.entry.digest, self.row.pack)])
        while self._unread:
            self._unread -= 1
            line = self._lines.line
            if not is_part(line):
                raise CorruptBackup("the manifest ends in the middle of a file's parts")
            # Before it is given out: who has seen enough need not ask for the rest.
            self._lines.advance()
            yield line
