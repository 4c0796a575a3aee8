"""Where in a file its parent's version has each chunk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from holdfast.repository._manifest import parse_part


class ChunkTable:
    """Where in a file its parent's version has each chunk.

    A private database that spills to disk, so that memory does not grow with the file.
    """

    def __init__(self, part_lines: Iterator[bytes]) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("CREATE TABLE chunk (id BLOB PRIMARY KEY, offset INT) WITHOUT ROWID")
        self._database.execute("BEGIN")
        self._database.executemany("INSERT OR IGNORE INTO chunk VALUES (?, ?)", _offsets(part_lines))

    def find(self, digest: bytes) -> int | None:
        """The chunk's offset in the parent's version of the file."""
        found = self._database.execute("SELECT offset FROM chunk WHERE id = ?", (digest,)).fetchone()
        return None if found is None else int(found[0])

    def close(self) -> None:
        self._database.close()


def _offsets(part_lines: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
    offset = 0
    for line in part_lines:
        for length, digest in parse_part(line).chunks:
            yield bytes.fromhex(digest), offset
            offset += length
