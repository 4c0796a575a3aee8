"""Writes the live chunks of packs anew, so that the packs can go: a run of `gc`'s own.

Whole chunks come first and differences after them, for these name the pack that has their base: the new one, where
there is one. Each chunk is read as whoever restores it would, and compared with its id.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptBackup
from holdfast.repository._manifest import PackRef
from holdfast.repository.dedup._chunk_reader import ChunkReader
from holdfast.repository.dedup._codec import decode
from holdfast.repository.dedup._column import Column
from holdfast.repository.dedup._id_table import IdTable
from holdfast.repository.dedup._ids import ID_LENGTH, Bytes
from holdfast.repository.dedup._index_object import IndexWriter
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._live import LiveChunks
from holdfast.repository.dedup._names import pack_path, parse_object_name
from holdfast.repository.dedup._pack_reader import PackReader
from holdfast.repository.dedup._pack_writer import BlockBuilder, PackWriter
from holdfast.repository.dedup._pack_writer import Chunk as StoredChunk
from holdfast.repository.dedup._seal import BLOCK, Sealer
from holdfast.repository.dedup._survey import PackUse
from holdfast.repository.dedup._table import (
    DIFFERENCE,
    PACK_MAGIC,
    BlockRow,
    PackTable,
    base_packs,
    pack_name,
)
from holdfast.storage.base import OpenObject, Storage

BATCH: Final = 1 << 30
"""Bytes after which what is finished counts, come what may: a `gc` that is cut off loses no more of its work."""
_PLANES = 2

KeysOf = Callable[[str], RunKeys]


class _Opened(NamedTuple):
    raw: Bytes
    item_size: int


class Finished(NamedTuple):
    """What is durable, and what may go for it."""

    tables: list[PackTable]
    moved: dict[str, set[str]]
    """For each pack the packs that have its chunks now, and those with the bases of differences in these."""


class Rewriter:
    """One run. For one thread."""

    def __init__(
        self,
        storage: Storage,
        keys: RunKeys,
        index: IndexWriter,
        keys_of: KeysOf,
        live: LiveChunks,
        packs: Sequence[PackRef],
        settle: Callable[[Finished], None],
    ) -> None:
        """`packs`: all in which bases may lie. `settle` is told of each batch once it is durable."""
        self.damaged: dict[str, CorruptBackup] = {}
        """Packs that cannot be read, and stay as they are."""
        self.stored_bytes = 0
        self._storage = storage
        self._keys = keys
        self._keys_of = keys_of
        self._live = live
        self._settle = settle
        self._index = index
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rewrite")
        self._base_reader = ChunkReader(storage, keys_of, packs, name="the repository")
        self._pack: PackWriter | None = None
        self._names: list[str] = []
        self._builders: dict[int, BlockBuilder] = {}
        self._written = IdTable(ID_LENGTH)
        self._places = Column(np.uint32)  # the pack of each chunk that is written, in `_names`
        self._bases: dict[str, set[str]] = {}
        self._tables: list[PackTable] = []
        self._moved: dict[str, set[str]] = {}
        self._unsettled = 0

    def run(self, uses: Sequence[PackUse]) -> None:
        """Writes what is needed of these packs. Raises StorageError, RepositoryError."""
        moved: dict[str, set[str]] = {}
        for use in uses:
            self._step(use, False, moved)
            if not use.differences:
                self._moved[use.pack.name] = moved.pop(use.pack.name, set())
            self._finish_batch(BATCH)
        for use in uses:
            if use.differences:
                self._step(use, True, moved)
                self._moved[use.pack.name] = moved.pop(use.pack.name, set())
                self._finish_batch(BATCH)
        self._finish_batch(0)

    def close(self) -> None:
        """Gives up the pack that is not finished, and ends all threads."""
        if self._pack is not None:
            self._pack.abort()
        self._base_reader.close()
        self._pool.shutdown(cancel_futures=True)

    def _step(self, use: PackUse, differences: bool, moved: dict[str, set[str]]) -> None:
        name = use.pack.name
        if name in self.damaged:
            return
        try:
            with self._storage.open(pack_path(name)) as source:
                moved.setdefault(name, set()).update(self._copy(source, name, differences))
        except FileNotFoundError:
            self.damaged[name] = CorruptBackup(f"pack {name} is missing")
        except CorruptBackup as error:
            self.damaged[name] = error

    def _copy(self, source: OpenObject, name: str, differences: bool) -> set[str]:
        """Writes a pack's whole chunks, or its differences, that are needed and not written yet. Returns in which
        packs they are."""
        run, number = parse_object_name(name)
        keys = self._keys_of(run)
        reader = PackReader(source, name, keys)
        table = reader.table
        of_kind = (table.block_codecs[table.chunk_blocks] == DIFFERENCE) == differences
        rows = np.flatnonzero(self._live.needed(name, table.ids) & of_kind)
        had = self._written.rows(table.ids[rows])
        places = set(self._places.rows[had[had >= 0]].tolist())
        rows = rows[had < 0]
        placed = np.empty(len(rows), np.uint32)
        done = 0
        for block, opened in self._opened(source, reader, Sealer(keys, PACK_MAGIC, number), rows):
            view = memoryview(opened.raw)
            end = int(np.searchsorted(table.chunk_blocks[rows], block.position, "right"))
            for at in range(done, end):
                row = int(rows[at])
                offset, length = int(table.chunk_offsets[row]), int(table.chunk_lengths[row])
                chunk = table.ids[row].tobytes(), view[offset : offset + length]
                placed[at] = self._put(chunk, opened.item_size, block)
            done = end
        known = self._written.add(table.ids[rows])
        self._places.extend(len(self._written))
        self._places.rows[known] = placed
        return {self._names[place] for place in places | set(placed.tolist())}

    def _opened(
        self, source: OpenObject, reader: PackReader, sealer: Sealer, rows: npt.NDArray[np.int64]
    ) -> Iterator[tuple[BlockRow, _Opened]]:
        """The blocks of these chunks, each chunk compared with its id: read and opened ahead by the pool."""
        blocks = reader.table.blocks()
        window: deque[tuple[BlockRow, Future[_Opened]]] = deque()
        limit = 2 * (os.cpu_count() or 1)
        try:
            for position in np.unique(reader.table.chunk_blocks[rows]).tolist():
                block = blocks[position]
                base = None if block.base is None else self._base_reader.chunk(block.base)
                window.append((block, self._pool.submit(_open, source, reader, sealer, block, base)))
                if len(window) > limit:
                    first, opened = window.popleft()
                    yield first, opened.result()
            while window:
                first, opened = window.popleft()
                yield first, opened.result()
        finally:
            for _, opened in window:  # They read from what is closed after this.
                if not opened.cancel():
                    opened.exception()

    def _put(self, chunk: StoredChunk, item_size: int, block: BlockRow) -> int:
        """Stores a chunk. Returns the place of its pack in `_names`."""
        if block.base is not None:
            base = block.base, self._base_reader.chunk(block.base)
            where = self._where(block.base, block.base_pack)
            self._current().add_block([chunk], item_size, base, base_pack=where)
        else:
            pack = self._current()
            # What was compressed alike goes together: text with text.
            kind = item_size if block.codec == _PLANES else -block.codec
            builder = self._builders.setdefault(kind, BlockBuilder(item_size))
            if full := builder.add(*chunk):
                pack.add_block(full, builder.item_size)
        return len(self._names) - 1

    def _where(self, base: bytes, pack: str) -> str:
        """The pack that will have a base when all is done."""
        row = self._written.row(base)
        return self._names[self._places.rows[row]] if row >= 0 else self._base_reader.where(base, pack)

    def _current(self) -> PackWriter:
        if self._pack is not None and self._pack.is_full:
            self._flush()
        if self._pack is None:
            self._pack = PackWriter(self._storage, self._keys, len(self._names), self._pool)
            self._names.append(self._pack.name)
        return self._pack

    def _flush(self) -> None:
        """Ends the pack, with all that has been gathered for it."""
        if self._pack is None:
            return
        for builder in self._builders.values():
            if chunks := builder.take():
                self._pack.add_block(chunks, builder.item_size)
        table = self._pack.finish()
        self._pack = None
        self._index.add(table)
        self._tables.append(table)
        self._bases[table.name] = {pack_name(base) for base in base_packs(table)} - {""}
        self._unsettled += table.size
        self.stored_bytes += table.size

    def _finish_batch(self, least: int) -> None:
        written = self._pack.size if self._pack is not None else 0
        if self._unsettled + written < least:
            return
        self._flush()
        self._index.flush()
        moved = {
            pack: places.union(*(self._bases[place] for place in places))
            for pack, places in self._moved.items()
            if pack not in self.damaged
        }
        self._settle(Finished(self._tables, moved))
        self._tables, self._moved, self._unsettled = [], {}, 0


def _open(
    source: OpenObject, reader: PackReader, sealer: Sealer, block: BlockRow, base: bytes | None
) -> _Opened:
    """In a thread: what a block holds, and the item size that it was compressed for."""
    sealed = source.read_at(block.offset, block.length)
    encoded = sealer.open(BLOCK, block.position, sealed)
    if encoded is None:
        raise CorruptBackup(f"block {block.position} of pack {reader.name} is damaged, or of another run")
    raw = decode(block.codec, encoded, block.raw, base)
    reader.compare(block.position, raw)
    # Planes begin with their item size: see `_codec`. `decode` has refused all but 1, 2, 4 and 8.
    return _Opened(raw, encoded[0] if block.codec in (_PLANES, DIFFERENCE) else 1)
