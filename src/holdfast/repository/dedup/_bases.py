"""Where the base of a difference is read: from a file on this host that still holds it, else from the repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.repository._lists import ParentList
from holdfast.repository._manifest import parse_chunks

Locate = Callable[[str], "Path | None"]
"""Where the file of an entry path lies on this host; None where that cannot be told."""

_PLACES = 1 << 20
_SMALLEST = 16 << 10
"""Bytes. Below it a difference saves too little."""

Places = dict[bytes, tuple[str, int, int]]
"""Entry path, offset and length of chunks."""


class BaseFinder:
    """Finds chunks by their ids. What is found is compared with its id by who asks."""

    def __init__(
        self,
        locate: Locate,
        places: Callable[[], Places],
        stored: Callable[[bytes], bytes | None],
    ) -> None:
        """`places`: where the files of the last backup hold what may be a base; asked once, when it is needed.
        `stored` reads a chunk from the repository; None where this host cannot."""
        self._locate = locate
        self._make_places = places
        self._places: Places | None = None
        self._stored = stored

    def find(self, name: bytes) -> bytes | None:
        """The content of a chunk, or what was there at its place; None where there is no way to it."""
        if self._places is None:
            self._places = self._make_places()
        if place := self._places.get(name):
            path, offset, length = place
            file = self._locate(path)
            data = None if file is None else _read(file, offset, length)
            if data is not None:
                return data
        return self._stored(name)


def find_places(backup: ParentList) -> Places:
    """Where a backup's files hold their chunks. Of the first `_PLACES` of a size that tensors are cut into."""
    found: Places = {}
    for key, rows in backup.all_rows():
        del key
        while rows.row is not None and len(found) < _PLACES:
            path, offset = rows.row.entry.path, 0
            for line in rows.parts():
                for chunk in parse_chunks(line):
                    if chunk.length >= _SMALLEST:
                        found[bytes.fromhex(chunk.id)] = path, offset, chunk.length
                    offset += chunk.length
            rows.advance()
    return found


def _read(file: Path, offset: int, length: int) -> bytes | None:
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            data = opened.read(length)
    except OSError:
        return None
    return data if len(data) == length else None
