from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forks import scratch
from holdfast.errors import CorruptBackup
from holdfast.repository._manifest import ChunkRef, PackRef
from holdfast.repository.dedup._chunk_reader import ChunkReader
from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._pack_reader import PackReader, Resolve
from holdfast.repository.dedup._table import PackTable
from holdfast.storage.local import LocalFile, LocalStorage
from repository.dedup.sealed import make_keys, nudged, weights, write_pack

KEYS = make_keys()
DEADLINE = 0.5


@pytest.fixture
def top() -> Iterator[Path]:
    with scratch() as directory:
        yield directory


def listed(tables: list[PackTable]) -> list[PackRef]:
    return [PackRef(table.name, table.size, table.hash) for table in tables]


def ref(data: bytes, pack: int) -> ChunkRef:
    return ChunkRef(len(data), chunk_id(KEYS.id_key, data).hex(), pack)


class Counting(LocalStorage):
    """Tells when many packs have been opened."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.opened = 0
        self.many = threading.Event()

    def open(self, name: str) -> LocalFile:
        self.opened += 1
        if self.opened == 40:
            self.many.set()
        return super().open(name)


def test_no_pack_is_closed_while_a_slow_read_of_it_goes_on(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Counting(top)
    bases = [weights(5000, seed) for seed in range(60)]
    tables = [write_pack(storage, KEYS, number, [([base], 2, None)]) for number, base in enumerate(bases)]
    tables.append(write_pack(storage, KEYS, 60, [([nudged(base)], 2, base) for base in bases]))
    block, first = PackReader.block, tables[0].name

    def slow(self: PackReader, position: int, resolve: Resolve) -> bytes:
        if self.name == first:
            storage.many.wait(DEADLINE)
        return block(self, position, resolve)

    monkeypatch.setattr(PackReader, "block", slow)
    reader = ChunkReader(storage, lambda run: KEYS, listed(tables), name="backup")
    try:
        found = [bytes(data) for data in reader.read(ref(nudged(base), 60) for base in bases)]
    finally:
        reader.close()
    assert found == [nudged(base) for base in bases]


def test_a_pack_that_is_needed_for_bases_hides_no_chunk(top: Path) -> None:
    """It may hold the same chunk, as a difference from one that no listed pack has."""
    storage = LocalStorage(top)
    base, other, wanted = weights(5000, 1), weights(5000, 2), nudged(weights(5000, 1))
    gone = write_pack(storage, KEYS, 0, [([base], 2, None)])
    bases = write_pack(storage, KEYS, 1, [([wanted], 2, base), ([other], 2, None)])
    own = write_pack(storage, KEYS, 2, [([nudged(other)], 2, other), ([wanted], 2, None)])
    assert (gone.block_codecs[0], bases.block_codecs[0]) == (2, 3)
    reader = ChunkReader(storage, lambda run: KEYS, listed([bases, own]), name="backup")
    try:
        chunks = [ref(nudged(other), 1), ref(wanted, 1)]
        assert [bytes(data) for data in reader.read(chunks)] == [nudged(other), wanted]
    finally:
        reader.close()


def test_a_base_that_is_nowhere_is_told(top: Path) -> None:
    storage = LocalStorage(top)
    base = weights(5000, 1)
    table = write_pack(storage, KEYS, 0, [([nudged(base)], 2, base)])
    reader = ChunkReader(storage, lambda run: KEYS, listed([table]), name="backup")
    try:
        with pytest.raises(CorruptBackup, match="no pack holds"):
            list(reader.read([ref(nudged(base), 0)]))
    finally:
        reader.close()
