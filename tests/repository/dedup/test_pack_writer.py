from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import NoSpace, RepositoryError, StorageError
from holdfast.repository.dedup import _pack_writer
from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._pack_reader import PackReader
from holdfast.repository.dedup._pack_writer import (
    BLOCK_CHUNKS,
    BLOCK_SIZE,
    PACK_CHUNKS,
    BlockBuilder,
    PackWriter,
)
from holdfast.repository.dedup._table import MAX_CHUNKS, MAX_RAW, PackTable
from holdfast.storage.local import LocalStorage, LocalUpload
from repository.dedup.sealed import (
    Bytes,
    contents,
    flipped,
    make_keys,
    no_base,
    nudged,
    pack_bytes,
    pool,
    weights,
    write_pack,
)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.fixture
def keys() -> RunKeys:
    return make_keys()


KEYS = make_keys()


def left_behind(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=8), min_size=1, max_size=20),
    threads=st.integers(1, 4),
    pending=st.integers(1, 5),
)
def test_blocks_lie_in_the_order_in_which_they_came(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], threads: int, pending: int
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("repository"))
    keys = KEYS
    generator = np.random.default_rng(len(sizes))
    blocks = [[generator.bytes(size // 2) + bytes(size - size // 2) for size in block] for block in sizes]

    with (
        ThreadPoolExecutor(threads) as executor,
        PackWriter(storage, keys, 0, executor, pending=pending) as writer,
    ):
        for block in blocks:
            writer.add_block([(chunk_id(keys.id_key, data), data) for data in block])
        table = writer.finish()

    reader = PackReader(Bytes(pack_bytes(storage.directory, table)), table.name, keys)
    reader.verify(no_base)
    assert contents(reader) == [data for block in blocks for data in block]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_can_be_stored(
    storage: LocalStorage, keys: RunKeys, kind: Callable[[bytes], bytes]
) -> None:
    data = kind(b"some content" * 9)
    with pool() as executor, PackWriter(storage, keys, 0, executor) as writer:
        writer.add_block([(bytes(32), data)])
        table = writer.finish()

    reader = PackReader(Bytes(pack_bytes(storage.directory, table)), table.name, keys)
    assert reader.block(0, no_base) == b"some content" * 9


def test_a_difference_that_does_not_pay_needs_no_base(storage: LocalStorage, keys: RunKeys) -> None:
    table = write_pack(storage, keys, 0, [([weights(5000, 1)], 2, weights(5000, 2))])

    assert table.blocks()[0].base is None
    PackReader(Bytes(pack_bytes(storage.directory, table)), table.name, keys).verify(no_base)


def test_a_difference_can_say_where_its_base_is(storage: LocalStorage, keys: RunKeys) -> None:
    old, elsewhere = weights(5000), f"{'5' * 32}-4294967295"
    with pool() as executor, PackWriter(storage, keys, 0, executor) as writer:
        for pack in (elsewhere, ""):
            chunk = chunk_id(keys.id_key, nudged(old)), nudged(old)
            writer.add_block([chunk], 2, (chunk_id(keys.id_key, old), old), base_pack=pack)
        table = writer.finish()

    reader = PackReader(Bytes(pack_bytes(storage.directory, table)), table.name, keys)
    reader.verify(lambda name: old)
    assert [row.base_pack for row in reader.table.blocks()] == [elsewhere, ""]


def test_nothing_is_seen_of_a_pack_before_it_is_finished(storage: LocalStorage, keys: RunKeys) -> None:
    with pool() as executor, PackWriter(storage, keys, 0, executor) as writer:
        writer.add_block([(bytes(32), b"x")])
        assert not any(storage.directory.glob("packs/*/*"))
        writer.finish()
    assert [path.name for path in storage.directory.glob("packs/*/*")] == [f"{keys.run}-0"]


def test_an_aborted_pack_leaves_nothing(storage: LocalStorage, keys: RunKeys) -> None:
    with pytest.raises(KeyError), pool() as executor, PackWriter(storage, keys, 0, executor) as writer:  # noqa: PT012
        for _ in range(50):
            writer.add_block([(bytes(32), os.urandom(1000))])
        raise KeyError

    assert not left_behind(storage.directory)
    with pytest.raises(ValueError, match="aborted"):
        writer.add_block([(bytes(32), b"x")])


def test_the_next_pack_can_be_begun_while_one_is_finishing(storage: LocalStorage, keys: RunKeys) -> None:
    with pool() as executor:
        finished: list[Future[PackTable]] = []
        for number in range(5):
            with PackWriter(storage, keys, number, executor) as writer:
                writer.add_block([(bytes(32), b"%d" % number)])
                finished.append(writer.finishing())
        tables = [future.result() for future in finished]

    for number, table in enumerate(tables):
        reader = PackReader(Bytes(pack_bytes(storage.directory, table)), table.name, keys)
        assert reader.block(0, no_base) == b"%d" % number


def test_a_finished_pack_takes_no_more(storage: LocalStorage, keys: RunKeys) -> None:
    with pool() as executor, PackWriter(storage, keys, 0, executor) as writer:
        writer.add_block([(bytes(32), b"x")])
        writer.finish()
        with pytest.raises(ValueError, match="finished"):
            writer.add_block([(bytes(32), b"y")])
        with pytest.raises(ValueError, match="finished"):
            writer.finish()


def test_an_empty_pack_is_not_written(storage: LocalStorage, keys: RunKeys) -> None:
    with (
        pytest.raises(ValueError, match="without blocks"),
        pool() as executor,
        PackWriter(storage, keys, 0, executor) as writer,
    ):
        writer.finish()

    assert not left_behind(storage.directory)


def test_the_name_of_a_pack_is_used_once(storage: LocalStorage, keys: RunKeys) -> None:
    write_pack(storage, keys, 0, [([b"x"], 1, None)])

    with pool() as executor, pytest.raises(StorageError, match="already exists"):
        PackWriter(storage, keys, 0, executor)


@pytest.mark.parametrize(
    ("chunks", "base"),
    [
        ([], None),
        ([(bytes(32), b"")], None),
        ([(bytes(31), b"x")], None),
        ([(bytes(32), bytes(MAX_RAW + 1))], None),
        ([(bytes(32), b"x"), (bytes(32), b"y")], (bytes(32), b"xy")),
    ],
)
def test_what_is_no_block_is_refused(
    storage: LocalStorage,
    keys: RunKeys,
    chunks: list[tuple[bytes, bytes]],
    base: tuple[bytes, bytes] | None,
) -> None:
    with pool() as executor, PackWriter(storage, keys, 0, executor) as writer, pytest.raises(ValueError):
        writer.add_block(chunks, 1, base)


def test_a_block_that_does_not_decompress_to_its_source_fails_the_pack(
    storage: LocalStorage, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a processor would that miscalculates."""
    right = _pack_writer.decode

    def wrong(codec: int, encoded: bytes, size: int, base: Any = None) -> bytes:
        return flipped(right(codec, encoded, size, base), 100)

    monkeypatch.setattr(_pack_writer, "decode", wrong)
    with (  # noqa: PT012
        pytest.raises(RepositoryError, match="did not decompress to what it was made from"),
        pool() as executor,
        PackWriter(storage, keys, 0, executor) as writer,
    ):
        writer.add_block([(bytes(32), b"content" * 100)])
        writer.finish()

    assert not left_behind(storage.directory)


class FullDisk(LocalStorage):
    """It has room for so many bytes in an object."""

    def __init__(self, directory: Path, room: int) -> None:
        super().__init__(directory)
        self._room = room

    def create(self, name: str, *, replace: bool = False, hashed: bool = True) -> LocalUpload:
        upload = super().create(name, replace=replace, hashed=hashed)
        write, room = upload.write, self._room

        def limited(data: bytes | bytearray | memoryview) -> int:
            if upload.size + len(data) > room:
                raise NoSpace("the disk is full")
            return write(data)

        upload.write = limited  # type: ignore[method-assign]
        return upload


@pytest.mark.parametrize("room", [0, 28, 500, 10_000, 100_000])
def test_a_full_disk_fails_the_pack_and_leaves_nothing(tmp_path: Path, keys: RunKeys, room: int) -> None:
    storage = FullDisk(tmp_path, room)

    def write() -> None:
        with pool() as executor, PackWriter(storage, keys, 0, executor) as writer:
            for _ in range(100):
                writer.add_block([(bytes(32), os.urandom(1000))])
            writer.finish()

    with pytest.raises(NoSpace):
        write()

    assert not left_behind(tmp_path)


def test_after_a_failure_nothing_more_is_taken(tmp_path: Path, keys: RunKeys) -> None:
    with pool() as executor, PackWriter(FullDisk(tmp_path, 100), keys, 0, executor, pending=1) as writer:
        writer.add_block([(bytes(32), os.urandom(1000))])
        for _ in range(3):
            with pytest.raises(NoSpace):
                writer.add_block([(bytes(32), b"x")])
        with pytest.raises(NoSpace):
            writer.finish()


def test_few_blocks_are_in_memory(storage: LocalStorage, keys: RunKeys) -> None:
    class Counting(ThreadPoolExecutor):
        waiting = 0
        most = 0

        def submit(self, *args: Any, **more: Any) -> Future[Any]:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            return super().submit(*args, **more)

    class Slow(LocalStorage):
        def create(self, name: str, *, replace: bool = False, hashed: bool = True) -> LocalUpload:
            upload = super().create(name, replace=replace, hashed=hashed)
            write = upload.write

            def counted(data: bytes | bytearray | memoryview) -> int:
                executor.waiting -= 1
                return write(data)

            upload.write = counted  # type: ignore[method-assign]
            return upload

    with Counting(3) as executor, PackWriter(Slow(storage.directory), keys, 0, executor, pending=4) as writer:
        executor.waiting = 0  # the header
        for _ in range(100):
            writer.add_block([(bytes(32), os.urandom(5000))])
        writer.finish()

    assert executor.most <= 5


def test_a_pack_is_full_by_size(
    storage: LocalStorage, keys: RunKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pack_writer, "PACK_SIZE", 10_000)
    with pool() as executor, PackWriter(storage, keys, 0, executor, pending=1) as writer:
        count = 0
        while not writer.is_full:
            writer.add_block([(bytes(32), os.urandom(1000))])
            count += 1
        table = writer.finish()

    assert 9 <= count <= 12
    assert table.size > 10_000


def test_a_pack_is_full_by_its_number_of_chunks(storage: LocalStorage, keys: RunKeys) -> None:
    block = [(row.to_bytes(32, "big"), b"x") for row in range(BLOCK_CHUNKS)]
    with pool() as executor, PackWriter(storage, keys, 0, executor) as writer:
        blocks = 0
        while not writer.is_full:
            writer.add_block(block)
            blocks += 1
        assert blocks * BLOCK_CHUNKS == PACK_CHUNKS
        # What has been gathered for it still fits, and the format has room for more.
        for _ in range((MAX_CHUNKS - PACK_CHUNKS) // BLOCK_CHUNKS):
            writer.add_block(block)
        with pytest.raises(ValueError, match="cannot hold more"):
            writer.add_block(block)
        table = writer.finish()

    assert (
        PackReader(Bytes(pack_bytes(storage.directory, table)), table.name, keys).table.chunk_count == 1 << 18
    )


@given(sizes=st.lists(st.integers(1, 3 << 18) | st.integers(1, 500) | st.just(MAX_RAW), max_size=60))
def test_chunks_are_gathered_into_blocks_in_order(sizes: list[int]) -> None:
    builder = BlockBuilder(4)
    room = memoryview(bytes(MAX_RAW))
    chunks = [(bytes([place]), room[:size]) for place, size in enumerate(sizes)]
    blocks = []
    for name, data in chunks:
        if full := builder.add(name, data):
            blocks.append(full)
    if rest := builder.take():
        blocks.append(rest)

    assert [chunk for block in blocks for chunk in block] == chunks
    assert builder.take() == []
    for block in blocks:
        assert len(block) == 1 or sum(len(data) for _, data in block) <= BLOCK_SIZE
    for block, following in pairwise(blocks):
        assert sum(len(data) for _, data in block) + len(following[0][1]) > BLOCK_SIZE


def test_a_block_has_a_bounded_number_of_chunks() -> None:
    builder = BlockBuilder()
    blocks = [full for row in range(3 * BLOCK_CHUNKS) if (full := builder.add(row.to_bytes(32, "big"), b"x"))]

    assert [len(block) for block in blocks] == [BLOCK_CHUNKS] * 3
