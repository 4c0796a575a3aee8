"""Which chunk lies where: in memory, some 65 bytes for each chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._column import Column
from holdfast.repository.dedup._id_table import IdTable
from holdfast.repository.dedup._ids import ID_LENGTH
from holdfast.repository.dedup._table import BASE_LENGTH, DIFFERENCE, BlockRow, PackTable, make_block_row

_BATCH = 1 << 16


class ChunkPlace(NamedTuple):
    """Where a chunk lies, and what reading it takes."""

    pack: str
    block: BlockRow
    offset: int
    """In the raw bytes of the block."""
    length: int


class ChunkIndex:
    """Chunks by id. A chunk that several packs hold is found in the first that was added, or, if it is a difference
    there, in the first where it is not: a difference must find its base whole.

    For one thread at a time.
    """

    def __init__(self) -> None:
        self._ids = IdTable(ID_LENGTH)
        self._chunk_blocks = Column(np.uint32)  # blocks are numbered through all packs
        self._chunk_offsets = Column(np.uint32)
        self._chunk_lengths = Column(np.uint32)
        self._block_offsets = Column(np.uint32)
        self._block_lengths = Column(np.uint32)
        self._block_raws = Column(np.uint32)
        self._block_codecs = Column(np.uint8)
        self._base_blocks = Column(np.uint32)  # the blocks that are differences, ascending
        self._bases = Column(np.uint8, BASE_LENGTH)
        self._packs: list[str] = []
        self._first_blocks = Column(np.int64)  # of each pack
        # Tables of some dozen chunks each are added together: each step costs as much for few rows as for many.
        self._waiting: list[PackTable] = []
        self._waiting_chunks = 0

    def __len__(self) -> int:
        """How many different chunks there are."""
        self._settle()
        return len(self._ids)

    def __contains__(self, name: bytes) -> bool:
        self._settle()
        return self._ids.row(name) >= 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory, but for the packs' names."""
        self._settle()
        return self._ids.nbytes + sum(
            column.nbytes for column in vars(self).values() if isinstance(column, Column)
        )

    def add(self, table: PackTable) -> None:
        """Adds what a pack holds."""
        self._waiting.append(table)
        self._waiting_chunks += table.chunk_count
        if self._waiting_chunks >= _BATCH or len(self._waiting) >= _BATCH:
            self._settle()

    def get(self, name: bytes) -> ChunkPlace | None:
        """Where a chunk lies; None for one that is not known. For many at once, `find_many` takes a fifth."""
        self._settle()
        row = self._ids.row(name)
        return self._places(np.array([row]))[0] if row >= 0 else None

    def base(self, name: bytes) -> ChunkPlace:
        """Where a chunk lies that a difference is taken from.

        Raises CorruptBackup when there is none, or it is a difference itself: no honest writer makes one.
        """
        place = self.get(name)
        if place is None:
            raise CorruptBackup(f"chunk {name.hex()}, which others are differences from, is missing")
        if place.block.base is not None:
            raise CorruptBackup(f"chunk {name.hex()}, which others are differences from, is one itself")
        return place

    def find_many(self, names: Sequence[bytes]) -> list[ChunkPlace | None]:
        """Where chunks lie, in the order asked for; None for each that is not known."""
        self._settle()
        rows = self._ids.rows(np.frombuffer(b"".join(names), np.uint8).reshape(-1, ID_LENGTH))
        known = np.flatnonzero(rows >= 0)
        found: list[ChunkPlace | None] = [None] * len(names)
        for position, place in zip(known.tolist(), self._places(rows[known]), strict=True):
            found[position] = place
        return found

    def _places(self, rows: npt.NDArray[np.int64]) -> list[ChunkPlace]:
        blocks = self._chunk_blocks.rows[rows].astype(np.int64)
        packs = np.searchsorted(self._first_blocks.rows, blocks, "right") - 1
        codecs = self._block_codecs.rows[blocks]
        at = np.searchsorted(self._base_blocks.rows, blocks)
        found: list[ChunkPlace] = []
        last, row = -1, None
        for block, pack, position, block_offset, block_length, raw, codec, base, offset, length in zip(
            blocks.tolist(),
            packs.tolist(),
            (blocks - self._first_blocks.rows[packs]).tolist(),
            self._block_offsets.rows[blocks].tolist(),
            self._block_lengths.rows[blocks].tolist(),
            self._block_raws.rows[blocks].tolist(),
            codecs.tolist(),
            at.tolist(),
            self._chunk_offsets.rows[rows].tolist(),
            self._chunk_lengths.rows[rows].tolist(),
            strict=True,
        ):
            if (
                row is None or block != last
            ):  # Small chunks of one file lie in one block, one after the other.
                bases = self._bases.rows[base] if codec == DIFFERENCE else None
                last, row = block, make_block_row(position, block_offset, block_length, raw, codec, bases)
            found.append(ChunkPlace(self._packs[pack], row, offset, length))
        return found

    def _settle(self) -> None:
        """Adds the tables that wait."""
        tables, self._waiting, self._waiting_chunks = self._waiting, [], 0
        if not tables:
            return
        counts = np.array([table.block_count for table in tables])
        firsts = len(self._block_codecs) + np.concatenate([[0], np.cumsum(counts)])
        if firsts[-1] >= 1 << 32:
            raise ValueError("an index has room for 2**32 blocks")
        self._packs += [table.name for table in tables]
        self._first_blocks.append(firsts[:-1])
        self._block_offsets.append(np.concatenate([table.block_offsets()[:-1] for table in tables]))
        self._block_lengths.append(np.concatenate([table.block_lengths for table in tables]))
        self._block_raws.append(np.concatenate([table.block_raws for table in tables]))
        codecs = np.concatenate([table.block_codecs for table in tables])
        self._base_blocks.append(np.flatnonzero(codecs == DIFFERENCE) + len(self._block_codecs))
        self._block_codecs.append(codecs)
        self._bases.append(np.concatenate([table.bases for table in tables]))

        blocks = np.concatenate(
            [table.chunk_blocks + first for table, first in zip(tables, firsts[:-1], strict=True)]
        )
        self._settle_chunks(
            np.concatenate([table.ids for table in tables]),
            blocks.astype(np.int64),
            np.concatenate([table.chunk_offsets for table in tables]),
            np.concatenate([table.chunk_lengths for table in tables]),
        )

    def _settle_chunks(
        self,
        ids: npt.NDArray[np.uint8],
        blocks: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.uint32],
        lengths: npt.NDArray[np.uint32],
    ) -> None:
        before = len(self._ids)
        rows = self._ids.add(ids)
        for column in (self._chunk_blocks, self._chunk_offsets, self._chunk_lengths):
            column.extend(len(self._ids))
        new = rows >= before
        whole = self._block_codecs.rows[blocks] != DIFFERENCE
        better = ~new & whole
        better[better] = self._block_codecs.rows[self._chunk_blocks.rows[rows[better]]] == DIFFERENCE
        # Where several are for one row, the last written stays: whole ones after differences, each kind backwards.
        for chosen in (new & ~whole, (new & whole) | better):
            order = np.flatnonzero(chosen)[::-1]
            self._chunk_blocks.rows[rows[order]] = blocks[order]
            self._chunk_offsets.rows[rows[order]] = offsets[order]
            self._chunk_lengths.rows[rows[order]] = lengths[order]
