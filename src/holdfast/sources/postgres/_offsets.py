"""Where in a dump the data of each table begins, written into it.

pg_dump cannot say so in a dump that it streams, for its table of contents comes first. Then every worker of a
parallel pg_restore looks for its tables itself, row by row from the beginning, and none knows which are the large
ones. So it is found out once, when the dump is a file. The layout of a dump is not documented; it is that of
PostgreSQL's ``src/bin/pg_dump``: ``pg_backup_archiver.c`` (ReadHead, ReadToc) and ``pg_backup_custom.c``
(https://git.postgresql.org/gitweb/?p=postgresql.git;a=tree;f=src/bin/pg_dump).

Nothing depends on it: what is not as it is known to be stays as it was, and pg_restore looks by itself. At each place
it checks that the data it wants begins there.
"""

from __future__ import annotations

import os
from pathlib import Path

_OLDEST, _NEWEST = (1, 13), (1, 16)
"""Formats that are known: from PostgreSQL 10 to 18."""
_INTEGER, _OFFSET = 4, 8
"""Bytes of each, as every pg_dump of today writes them."""
_CUSTOM = 1
_UNKNOWN, _KNOWN, _NONE = 1, 2, 3
"""What a dump says of the place of an entry's data. Its number follows."""
_DATA, _LARGE_OBJECTS = 1, 3
_END_OF_ROWS = b"\n" + bytes(1 + _INTEGER)
"""The end of a last row, and a length of zero. Rows of COPY hold no zero byte, and a newline only at their ends."""
_MOST_ENTRIES = 1_000_000
_MOST_TEXT = 1 << 26
_WINDOW = 4 << 20


class _Unfamiliar(Exception):
    """A dump that is not as it is known to be."""


def note_offsets(path: Path) -> int:
    """Writes into an uncompressed dump where its data lies, as far as that is found. Returns how many entries were
    told. Raises OSError."""
    with path.open("r+b", buffering=1 << 16) as file:
        reader = _Reader(file.fileno())
        places: dict[int, int] = {}
        try:
            found = _contents(reader)
            while (entry := _block(reader)) is not None:
                number, start = entry
                # One that is not asked for, or comes twice, is nothing that pg_dump makes.
                if number not in found or number in places:
                    raise _Unfamiliar
                places[number] = start
        except _Unfamiliar:
            return 0
        for number, start in places.items():
            file.seek(found[number])
            file.write(bytes([_KNOWN]) + start.to_bytes(_OFFSET, "little"))
    return len(places)


class _Reader:
    """A file, read from its beginning in a few large pieces."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._window = b""
        self._start = 0
        self.position = 0

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        begin = self.position - self._start
        data = self._window[begin : begin + count] if begin >= 0 else b""
        if len(data) < count:
            self._window = os.pread(self._descriptor, max(count, _WINDOW), self.position)
            self._start = self.position
            data = self._window[:count]
            if len(data) < count:
                raise _Unfamiliar
        self.position += count
        return data

    def skip(self, count: int) -> None:
        self.position += count

    def find(self, pattern: bytes) -> None:
        """Goes behind the next occurrence."""
        while True:
            begin = self.position - self._start
            at = self._window.find(pattern, begin) if 0 <= begin <= len(self._window) else -1
            if at >= 0:
                self.position = self._start + at + len(pattern)
                return
            if 0 <= begin < len(self._window) - len(pattern):
                self.position = self._start + len(self._window) - len(pattern) + 1
            self._window = os.pread(self._descriptor, _WINDOW, self.position)
            self._start = self.position
            if len(self._window) < len(pattern):
                raise _Unfamiliar

    def integer(self) -> int:
        data = self.take(1 + _INTEGER)
        number = int.from_bytes(data[1:], "little")
        return -number if data[0] else number

    def text(self) -> bytes | None:
        size = self.integer()
        if size < 0:
            return None
        if size > _MOST_TEXT:
            raise _Unfamiliar
        return self.take(size)

    @property
    def at_end(self) -> bool:
        return not os.pread(self._descriptor, 1, self.position)


def _contents(reader: _Reader) -> dict[int, int]:
    """Reads the head. Returns where each entry says of its data that its place is unknown."""
    if reader.take(5) != b"PGDMP":
        raise _Unfamiliar
    major, minor, _, integer, offset, kind = reader.take(6)
    version = (major, minor)
    if not _OLDEST <= version <= _NEWEST or (integer, offset, kind) != (_INTEGER, _OFFSET, _CUSTOM):
        raise _Unfamiliar
    compression = reader.take(1)[0] if version >= (1, 15) else reader.integer()
    if compression != 0:
        raise _Unfamiliar
    for _ in range(7):  # when it was made
        reader.integer()
    for _ in range(3):  # the database and two versions
        reader.text()
    count = reader.integer()
    if not 0 <= count <= _MOST_ENTRIES:
        raise _Unfamiliar
    texts_after_section = 5 + (version >= (1, 14))  # up to the tablespace, and the access method
    found: dict[int, int] = {}
    for _ in range(count):
        number = reader.integer()
        has_data = reader.integer()
        for _ in range(4):  # two OIDs, tag, description
            reader.text()
        reader.integer()
        for _ in range(texts_after_section):
            reader.text()
        if version >= (1, 16):
            reader.integer()  # the kind of relation
        for _ in range(2):  # owner, whether there are OIDs
            reader.text()
        while reader.text() is not None:  # what it depends on
            pass
        place = reader.position
        state, _ = reader.take(1)[0], reader.take(_OFFSET)
        if has_data not in (0, 1) or state not in (_UNKNOWN, _KNOWN, _NONE):
            raise _Unfamiliar
        if state == _UNKNOWN:
            found[number] = place
    return found


def _block(reader: _Reader) -> tuple[int, int] | None:
    """Goes behind the next entry's data. Returns whose it is and where it begins, None at the end of the dump."""
    if reader.at_end:
        return None
    start = reader.position
    kind = reader.take(1)[0]
    number = reader.integer()
    if kind == _DATA:
        if reader.integer() != 0:
            reader.find(_END_OF_ROWS)
    elif kind == _LARGE_OBJECTS:
        while reader.integer() != 0:  # its OID
            while (size := reader.integer()) != 0:
                if size < 0:
                    raise _Unfamiliar
                reader.skip(size)
    else:
        raise _Unfamiliar
    return number, start
