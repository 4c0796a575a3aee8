"""Entries with little content, a thousand at a time: what each costs by itself is more than their content does.

Where their chunks lie is looked up together, and the blocks of the next ones are opened while one is used.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.errors import CorruptBackup, HoldfastError
from holdfast.model import Entry
from holdfast.repository._manifest import ChunkRef, parse_chunks
from holdfast.repository._rows import Rows
from holdfast.repository.dedup._chunk_reader import ChunkReader

_ENTRIES = 1024
_SMALL = 256 << 10
"""Bytes of an entry that is read with others."""
_BYTES = 4 << 20
"""Of content, in a batch: to pass over what nobody asks for must not take long."""


class Batch:
    """The next entries of a source, up to one that is not small."""

    def __init__(self, rows: Rows, reader: ChunkReader) -> None:
        """`rows` stands behind the batch then. Raises what going on there does."""
        self.entries: list[Entry] = []
        self._unparsed: list[ChunkRef | bytes | None] = []
        """Of each entry its only chunk, or the line of its chunks."""
        self._reader = reader
        self._chunks: list[list[ChunkRef]] = []
        self._next = -1
        """The entry whose content `_pieces` gives next."""
        self._pieces: Iterator[memoryview] = iter(())
        self._rest = memoryview(b"")
        self._fails = False
        size = 0
        while (row := rows.row) is not None and row.parts <= 1 and len(self.entries) < _ENTRIES:
            size += row.entry.size
            if row.entry.size > _SMALL or size > _BYTES:
                return
            self.entries.append(row.entry)
            self._unparsed.append(
                ChunkRef(row.entry.size, row.entry.digest, row.pack)
                if row.pack is not None
                else next(rows.parts(), None)
            )
            rows.advance()

    def read(self, number: int) -> list[memoryview] | None:
        """The content of the entry of that number, as in `entries`. None when it must be read by itself: again, or
        because not all of the others can be read."""
        if self._fails or number < self._next:
            return None
        try:
            if self._next < 0:
                self._begin(number)
            for passed in self._chunks[self._next : number]:
                self._take(passed)
            self._next = number + 1
            return self._take(self._chunks[number])
        except HoldfastError:
            self._fails = True
            return None

    def _take(self, chunks: list[ChunkRef]) -> list[memoryview]:
        """The content of the next chunks. A piece of what is read may hold several, and of several entries."""
        found = []
        left = sum(chunk.length for chunk in chunks)
        while left:
            if not self._rest:
                self._rest = next(self._pieces)
            found.append(self._rest[:left])
            self._rest = self._rest[left:]
            left -= len(found[-1])
        return found

    def chunks(self, number: int) -> list[ChunkRef]:
        """What the content of an entry consists of. Raises CorruptBackup."""
        if self._next >= 0 and not self._fails:
            return self._chunks[number]
        unparsed = self._unparsed[number]
        if isinstance(unparsed, bytes):
            return parse_chunks(unparsed)
        return [] if unparsed is None else [unparsed]

    def _begin(self, first: int) -> None:
        chunks = [self.chunks(number) for number in range(len(self.entries))]
        for entry, parts in zip(self.entries, chunks, strict=True):
            if sum(chunk.length for chunk in parts) > entry.size:
                raise CorruptBackup(f"{entry.path} holds more than it declares")
        self._chunks = chunks
        self._next = first
        self._pieces = self._reader.read(chunk for parts in chunks[first:] for chunk in parts)
