"""Fills one of the tables of chunks: `python -m bench.index_tables index|learn|known DIRECTORY COUNT`."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from holdfast.repository.dedup._index import ChunkIndex
from holdfast.repository.dedup._known import Known
from holdfast.repository.dedup._names import object_name
from holdfast.repository.dedup._table import BASE_LENGTH, DIFFERENCE, PackTable

_RUN = "7" * 32
_CHUNKS = 1024  # of a pack, each in a block of its own, which takes the most memory
_DIFFERENCES = 8  # one chunk of so many is one
_ORIGINS = 4  # packs that those of one pack are differences from
_LOOKED_UP = 1000


def tables(count: int) -> Iterator[PackTable]:
    """Packs of random ids, `count` in all."""
    rng = np.random.default_rng(1)
    for number, start in enumerate(range(0, count, _CHUNKS)):
        chunks = min(_CHUNKS, count - start)
        lengths = rng.integers(1 << 16, 1 << 20, chunks, dtype=np.uint32)
        codecs = np.ones(chunks, np.uint8)
        codecs[::_DIFFERENCES] = DIFFERENCE
        bases = rng.integers(0, 256, (len(codecs[::_DIFFERENCES]), BASE_LENGTH), dtype=np.uint8)
        for row in range(len(bases)):
            origin = max(0, number - 1 - row % _ORIGINS)
            bases[row, 32:] = np.frombuffer(bytes.fromhex(_RUN) + struct.pack("<I", origin), np.uint8)
        yield PackTable(
            name=object_name(_RUN, number),
            size=1 << 30,
            hash=rng.bytes(32).hex(),
            block_lengths=lengths,
            block_raws=lengths,
            block_codecs=codecs,
            bases=bases,
            ids=rng.integers(0, 256, (chunks, 32), dtype=np.uint8),
            chunk_blocks=np.arange(chunks, dtype=np.uint32),
            chunk_offsets=np.zeros(chunks, np.uint32),
            chunk_lengths=lengths,
        )


def main() -> None:
    kind, directory, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if kind == "index":
        index = ChunkIndex()
        for pack in tables(count):
            index.add(pack)
        table: ChunkIndex | Known = index
    else:
        table = known = Known(directory, repository=_RUN, writer="a writer", id_key=bytes(32))
        if kind == "learn":
            known.learn(object_name(_RUN, 0), "a writer", "0" * 64, tables(count))
    some = [row.tobytes() for row in next(tables(min(count, _CHUNKS))).ids[:_LOOKED_UP]]
    if len(table) != count or None in table.find_many(some):
        sys.exit(f"{len(table):,} of {count:,} chunks were found again")


if __name__ == "__main__":
    main()
