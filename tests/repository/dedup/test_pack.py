from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup, NoSpace, RepositoryError, StorageError
from holdfast.repository.dedup import _pack_writer
from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._pack_reader import PackReader
from holdfast.repository.dedup._pack_writer import BLOCK_CHUNKS, BLOCK_SIZE, BlockBuilder, PackWriter
from holdfast.repository.dedup._seal import BLOCK, HEADER_LENGTH, Sealer
from holdfast.repository.dedup._table import DIFFERENCE, MAX_RAW, PACK_MAGIC, PackTable
from holdfast.storage.local import LocalStorage, LocalUpload
from repository.dedup.sealed import (
    Bytes,
    every_kind,
    flipped,
    forge_pack,
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


def left_behind(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def contents(reader: PackReader, resolve: Callable[[bytes], bytes] = no_base) -> list[bytes]:
    return [
        reader.block(chunk.block, resolve)[chunk.offset : chunk.offset + chunk.length]
        for chunk in reader.table.chunks()
    ]


class Packed:
    """A small pack with a block of each codec, and its bytes."""

    def __init__(self, directory: Path) -> None:
        self.keys = make_keys()
        blocks, self.parts = every_kind()
        self.table = write_pack(LocalStorage(directory), self.keys, 5, blocks)
        self.data = pack_bytes(directory, self.table)

    def resolve(self, name: bytes) -> bytes:
        assert name == chunk_id(self.keys.id_key, self.parts["base"])
        return self.parts["base"]

    def verify(self, data: bytes) -> None:
        PackReader(Bytes(data), self.table.name, self.keys).verify(self.resolve)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return Packed(tmp_path_factory.mktemp("packed"))


def test_a_pack_gives_back_what_went_in(packed: Packed) -> None:
    reader = PackReader(Bytes(packed.data), packed.table.name, packed.keys)

    reader.verify(packed.resolve)

    parts = packed.parts
    assert [row.codec for row in packed.table.blocks()] == [0, 1, 2, 3]
    assert contents(reader, packed.resolve) == [
        parts[name] for name in ("stored", "rows", "more rows", "weights", "version")
    ]
    assert packed.table.size == len(packed.data)
    assert packed.table.hash == reader.table.hash == blake3(packed.data[:-40]).hexdigest()
    assert reader.table.blocks() == packed.table.blocks()
    assert reader.table.chunks() == packed.table.chunks()


def test_a_pack_is_as_the_format_says(packed: Packed) -> None:
    """Read by the description alone."""
    data, keys = packed.data, packed.keys
    head = b"HFPACK01" + bytes.fromhex(keys.run) + struct.pack("<I", 5)
    length, digest = struct.unpack("<I32s", data[-44:-8])
    table = data[-44 - length : -44]
    cipher = AESGCM(keys.data_key)

    assert data.startswith(head)
    assert data.endswith(b"HFPACKED")
    assert blake3(data[:-40]).digest() == digest
    plain = cipher.decrypt(struct.pack("<IQ", 5, 2**64 - 1), table, head + b"T")
    line, _, columns = io.BytesIO(zstandard.ZstdDecompressor().decompress(plain)).read().partition(b"\n")
    found = json.loads(line)
    assert found == {"blocks": 4, "chunks": 5, "bytes": len(columns)}
    assert len(columns) == 4 * 9 + 52 + 5 * 44
    lengths, raws = np.frombuffer(columns, "<u4", 8).reshape(2, 4)
    assert columns[32:36] == b"\0\1\2\3"
    assert columns[36:68] == chunk_id(keys.id_key, packed.parts["base"])
    assert columns[68:88] == bytes(20)
    start = len(head)
    for position, size in enumerate(lengths.tolist()):
        encoded = cipher.decrypt(struct.pack("<IQ", 5, position), data[start : start + size], head + b"B")
        start += size
        if position == 0:
            assert encoded == packed.parts["stored"]
        if position == 1:
            raw = zstandard.ZstdDecompressor().decompress(encoded)
            assert raw == packed.parts["rows"] + packed.parts["more rows"]
    assert start == len(data) - 44 - length
    assert raws.tolist() == [60, len(packed.parts["rows"]) + 320, 500, 500]
    names = [columns[88 + 32 * row : 120 + 32 * row] for row in range(5)]
    assert names[1] == chunk_id(keys.id_key, packed.parts["rows"])
    blocks, offsets, sizes = np.frombuffer(columns, "<u4", 15, 88 + 160).reshape(3, 5)
    assert blocks.tolist() == [0, 1, 1, 2, 3]
    assert offsets.tolist() == [0, 0, len(packed.parts["rows"]), 0, 0]
    assert sizes.tolist() == [60, len(packed.parts["rows"]), 320, 500, 500]


def test_every_flipped_bit_is_noticed(packed: Packed) -> None:
    for bit in range(8 * len(packed.data)):
        with pytest.raises(CorruptBackup):
            packed.verify(flipped(packed.data, bit))


def test_a_pack_that_is_cut_short_is_noticed(packed: Packed) -> None:
    for length in range(len(packed.data)):
        with pytest.raises(CorruptBackup):
            packed.verify(packed.data[:length])


@pytest.mark.parametrize("place", [0, HEADER_LENGTH, -44, None])
def test_something_added_is_noticed(packed: Packed, place: int | None) -> None:
    data = packed.data
    broken = data + b"\0" if place is None else data[:place] + b"\0" + data[place:]

    with pytest.raises(CorruptBackup):
        packed.verify(broken)


def test_blocks_that_have_changed_places_are_noticed(storage: LocalStorage, keys: RunKeys) -> None:
    size = 100
    table = write_pack(storage, keys, 0, [([os.urandom(size)], 1, None), ([os.urandom(size)], 1, None)])
    data = pack_bytes(storage.directory, table)
    first, second = HEADER_LENGTH, HEADER_LENGTH + size + 16
    swapped = (
        data[:first] + data[second : second + size + 16] + data[first:second] + data[second + size + 16 :]
    )

    with pytest.raises(CorruptBackup, match="block 0"):
        PackReader(Bytes(swapped), table.name, keys).block(0, no_base)


def test_a_table_from_an_index_is_enough_to_read_a_block(packed: Packed) -> None:
    class Counting(Bytes):
        reads: list[tuple[int, int]] = []  # noqa: RUF012

        def read_at(self, offset: int, length: int) -> bytes:
            self.reads.append((offset, length))
            return super().read_at(offset, length)

    source = Counting(packed.data)
    reader = PackReader(source, packed.table.name, packed.keys, table=packed.table)

    assert reader.block(0, no_base) == packed.parts["stored"]
    assert source.reads == [(HEADER_LENGTH, 60 + 16)]


def test_a_pack_under_the_name_of_another_says_so(storage: LocalStorage, keys: RunKeys) -> None:
    tables = [write_pack(storage, keys, number, [([b"x" * 100], 1, None)]) for number in range(2)]
    other = make_keys(like=keys)

    with pytest.raises(CorruptBackup, match=f"holds another pack, {tables[0].name}"):
        PackReader(Bytes(pack_bytes(storage.directory, tables[0])), tables[1].name, keys)
    with pytest.raises(CorruptBackup, match=f"holds another pack, {keys.run}"):
        PackReader(Bytes(pack_bytes(storage.directory, tables[0])), f"{other.run}-0", other)


def test_a_pack_of_another_key_says_so(packed: Packed) -> None:
    stranger = RunKeys(**{**_fields(packed.keys), "data_key": bytes(32)})

    with pytest.raises(CorruptBackup, match=f"{packed.table.name}.* key that is not this run's"):
        PackReader(Bytes(packed.data), packed.table.name, stranger)


def _fields(keys: RunKeys) -> dict[str, Any]:
    return {name: getattr(keys, name) for name in RunKeys.__slots__}


def test_a_pack_of_a_later_version_asks_for_an_update(packed: Packed) -> None:
    with pytest.raises(CorruptBackup, match=f"{packed.table.name}.*newer Holdfast") as caught:
        packed.verify(b"HFPACK02" + packed.data[8:])

    assert "Update" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"HFPACK01", b"\x7fELF" * 40, b"HFPACK0x" + bytes(200)])
def test_what_is_no_pack_is_refused_by_name(data: bytes, keys: RunKeys) -> None:
    with pytest.raises(CorruptBackup, match=keys.run):
        PackReader(Bytes(data), f"{keys.run}-0", keys)


# What its table says


def head(blocks: int, chunks: int, size: int) -> bytes:
    return json.dumps({"blocks": blocks, "chunks": chunks, "bytes": size}).encode() + b"\n"


def columns(
    blocks: Sequence[tuple[int, int, int]], chunks: Sequence[tuple[int, int, int]], bases: int | None = None
) -> bytes:
    differences = sum(codec == DIFFERENCE for _, _, codec in blocks) if bases is None else bases
    return b"".join(
        [
            np.array([length for length, _, _ in blocks], "<u4").tobytes(),
            np.array([raw for _, raw, _ in blocks], "<u4").tobytes(),
            bytes(codec for _, _, codec in blocks),
            (b"\xbb" * 51 + b"\0") * differences,
            b"".join(row.to_bytes(32, "big") for row in range(len(chunks))),
            np.array(chunks, "<u4").reshape(-1, 3).T.tobytes(),
        ]
    )


def forged(keys: RunKeys, table: bytes, room: int = 0) -> PackReader:
    return PackReader(Bytes(forge_pack(keys, 0, bytes(room), table)), f"{keys.run}-0", keys)


def forged_table(
    keys: RunKeys, blocks: Sequence[tuple[int, int, int]], chunks: Sequence[tuple[int, int, int]]
) -> PackTable:
    data = columns(blocks, chunks)
    room = sum(length for length, _, _ in blocks)
    return forged(keys, head(len(blocks), len(chunks), len(data)) + data, min(room, 1 << 20)).table


def test_an_honest_table_can_be_forged(keys: RunKeys) -> None:
    """So that the refusals below are for what they say."""
    table = forged_table(keys, [(50, 100, 1), (17, 8, 3)], [(0, 0, 60), (0, 70, 30), (1, 0, 8)])

    assert [row.base for row in table.blocks()] == [None, b"\xbb" * 32]
    assert [row.base_pack for row in table.blocks()] == ["", f"{'bb' * 16}-{0xBBBBBB}"]
    assert [(row.block, row.offset, row.length) for row in table.chunks()] == [
        (0, 0, 60),
        (0, 70, 30),
        (1, 0, 8),
    ]


@pytest.mark.parametrize(
    ("blocks", "chunks", "why"),
    [
        ([(50, 0, 1)], [], "block of no bytes"),
        ([(50, MAX_RAW + 1, 1)], [], "block of no bytes, or of more"),
        ([(16, 10, 1)], [], "sealed block of no bytes"),
        ([(MAX_RAW + 17, 10, 1)], [], "sealed block of no bytes, or of more"),
        ([(50, 100, 4)], [], "codec 4"),
        ([(50, 100, 1)], [(1, 0, 10)], "block that is not there"),
        ([(50, 100, 1)], [(0, 0, 0)], "chunk of no bytes"),
        ([(50, 100, 1)], [(0, 91, 10)], "beyond the end"),
        ([(50, 100, 1)], [(0, 2**32 - 1, 2**32 - 1)], "beyond the end"),
        ([(50, 100, 1)], [(0, 0, 10), (0, 9, 10)], "overlap"),
        ([(50, 100, 1)], [(0, 10, 10), (0, 0, 10)], "out of order"),
        ([(50, 100, 1), (50, 100, 1)], [(1, 0, 10), (0, 0, 10)], "out of order"),
        ([(50, 100, 3)], [], "not one whole chunk"),
        ([(50, 100, 3)], [(0, 0, 99)], "not one whole chunk"),
        ([(50, 100, 3)], [(0, 0, 50), (0, 50, 50)], "not one whole chunk"),
    ],
)
def test_a_table_that_says_what_cannot_be_is_refused(
    keys: RunKeys, blocks: list[tuple[int, int, int]], chunks: list[tuple[int, int, int]], why: str
) -> None:
    with pytest.raises(CorruptBackup, match=why) as caught:
        forged_table(keys, blocks, chunks)

    assert keys.run in str(caught.value)


def test_blocks_must_fill_their_pack(keys: RunKeys) -> None:
    data = columns([(50, 100, 1)], [])
    for room in (49, 51, 0):
        with pytest.raises(CorruptBackup, match="not as long as its pack"):
            forged(keys, head(1, 0, len(data)) + data, room)


def test_columns_of_later_versions_are_passed_over(keys: RunKeys) -> None:
    data = columns([(50, 100, 1)], [(0, 0, 100)]) + b"what a later version adds"
    line = json.dumps({"blocks": 1, "chunks": 1, "bytes": len(data), "colour": ["red"]}).encode()

    assert len(forged(keys, line + b"\n" + data, 50).table.chunks()) == 1


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'{"blocks":1e0,"chunks":0,"bytes":9}\n' + bytes(9),
        b'{"blocks":true,"chunks":0,"bytes":9}\n' + bytes(9),
        b'{"blocks":-1,"chunks":0,"bytes":0}\n',
        b'{"blocks":0,"chunks":0,"bytes":1}\n',
        b'{"blocks":0,"chunks":0,"bytes":0}\nmore',
        b'{"blocks":65537,"chunks":0,"bytes":589833}\n' + bytes(589833),
        b'{"blocks":0,"chunks":262145,"bytes":11534380}\n' + bytes(11534380),
        b'{"blocks":1,"chunks":0,"bytes":' + b"9" * 5000 + b"}\n",
        b"[" * 100_000 + b"\n",
        b" " * 100_000 + b"\n",
        bytes(40 << 20),
        head(0, 1, 43) + bytes(43),
        head(1, 0, 8) + bytes(8),
        head(1, 0, 9) + struct.pack("<IIB", 20, 20, 3),
    ],
    ids=lambda table: f"{len(table)}:{table[:40]!r}",
)
def test_a_table_that_is_none_is_refused(keys: RunKeys, table: bytes) -> None:
    with pytest.raises(CorruptBackup, match=keys.run):
        forged(keys, table, 20)


def test_a_table_does_not_take_the_memory_that_it_asks_for(keys: RunKeys) -> None:
    packed = zstandard.compress(bytes(1 << 30))
    sealer = Sealer(keys, PACK_MAGIC, 0)
    sealed = sealer.seal(b"T", 2**64 - 1, packed)
    body = sealer.header + sealed + struct.pack("<I", len(sealed))
    bomb = body + blake3(body).digest() + b"HFPACKED"
    tracemalloc.start()
    try:
        with pytest.raises(CorruptBackup, match="does not decompress"):
            PackReader(Bytes(bomb), f"{keys.run}-0", keys)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 100 << 20


NUMBERS = st.integers(0, 300) | st.sampled_from([MAX_RAW, MAX_RAW + 1, 2**31, 2**32 - 1])


@given(
    blocks=st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 5)), max_size=4),
    chunks=st.lists(st.tuples(st.integers(0, 5), NUMBERS, NUMBERS), max_size=6),
    bases=st.none() | st.integers(0, 3),
    lie=st.tuples(*[st.integers(-1, 1)] * 3) | st.just((0, 0, 0)),
    cut=st.integers(0, 10),
)
def test_a_hostile_table_is_refused_or_true(
    blocks: list[tuple[int, int, int]],
    chunks: list[tuple[int, int, int]],
    bases: int | None,
    lie: tuple[int, int, int],
    cut: int,
) -> None:
    keys = KEYS
    data = columns(blocks, sorted(chunks), bases)
    data = data[: len(data) - cut]
    room = min(sum(length for length, _, _ in blocks), 1 << 16)
    line = head(len(blocks) + lie[0], len(chunks) + lie[1], len(data) + lie[2])

    try:
        table = forged(keys, line + data, room).table
    except CorruptBackup:
        return
    rows = table.blocks()
    end = HEADER_LENGTH
    for row in rows:
        assert row.offset == end
        assert row.length > 16
        assert 0 < row.raw <= MAX_RAW
        end += row.length
    assert end == HEADER_LENGTH + room
    before = (0, 0)
    for chunk in table.chunks():
        assert (chunk.block, chunk.offset) >= before
        assert 0 < chunk.length <= rows[chunk.block].raw - chunk.offset
        before = (chunk.block, chunk.offset + chunk.length)


@given(table=st.binary(max_size=100))
def test_arbitrary_bytes_are_no_table(table: bytes) -> None:
    with pytest.raises(CorruptBackup):
        forged(KEYS, table, 30)


KEYS = make_keys()


# What a writer with keys could lie about


def lying_pack(storage: LocalStorage, keys: RunKeys) -> PackTable:
    """A pack that says of its chunk what is not so."""
    with pool() as executor, PackWriter(storage, keys, 0, executor) as writer:
        writer.add_block([(chunk_id(keys.id_key, b"honest"), b"not that")])
        return writer.finish()


def test_a_chunk_that_is_not_what_its_id_says_is_noticed(storage: LocalStorage, keys: RunKeys) -> None:
    table = lying_pack(storage, keys)
    reader = PackReader(Bytes(pack_bytes(storage.directory, table)), table.name, keys)

    with pytest.raises(CorruptBackup, match=f"{table.name} does not hold chunk"):
        reader.verify(no_base)


def test_a_base_that_is_another_one_is_noticed(packed: Packed) -> None:
    reader = PackReader(Bytes(packed.data), packed.table.name, packed.keys)
    wrong = weights(250, 99)

    with pytest.raises(CorruptBackup, match="does not hold chunk"):
        reader.verify(lambda name: wrong)
    with pytest.raises(CorruptBackup, match=f"block 3 of pack {packed.table.name}"):
        reader.block(3, lambda name: wrong[:-2])


def test_an_error_of_the_base_is_passed_on(packed: Packed) -> None:
    reader = PackReader(Bytes(packed.data), packed.table.name, packed.keys)
    error = CorruptBackup("its pack is gone")

    def missing(name: bytes) -> bytes:
        raise error

    with pytest.raises(CorruptBackup) as caught:
        reader.block(3, missing)
    assert caught.value is error


def test_a_block_that_does_not_decompress_names_its_pack(keys: RunKeys) -> None:
    sealed = Sealer(keys, PACK_MAGIC, 0).seal(BLOCK, 0, b"no zstd frame")
    data = columns([(len(sealed), 100, 1)], [(0, 0, 100)])
    pack = forge_pack(keys, 0, sealed, head(1, 1, len(data)) + data)
    reader = PackReader(Bytes(pack), f"{keys.run}-0", keys)

    with pytest.raises(CorruptBackup, match=f"block 0 of pack {keys.run}-0"):
        reader.block(0, no_base)


def test_a_reader_with_the_keys_of_another_run_is_a_mistake(packed: Packed) -> None:
    with pytest.raises(ValueError, match="is not of run"):
        PackReader(Bytes(packed.data), packed.table.name, make_keys())


@pytest.mark.parametrize(
    "name", ["", "../x", "0" * 32, "0" * 32 + "-01", "0" * 32 + "-4294967296", "A" * 32 + "-0"]
)
def test_a_name_that_no_pack_has_is_refused(name: str, keys: RunKeys) -> None:
    with pytest.raises(CorruptBackup, match="not the name"):
        PackReader(Bytes(b""), name, keys)


# Writing


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


def test_a_pack_that_is_not_the_one_of_the_index_is_noticed(packed: Packed) -> None:
    table = replace(packed.table, hash="0" * 64)

    with pytest.raises(CorruptBackup, match="its digest is another"):
        PackReader(Bytes(packed.data), table.name, packed.keys, table=table).verify(packed.resolve)


def test_an_opened_block_is_compared_with_its_ids(packed: Packed) -> None:
    reader = PackReader(Bytes(packed.data), packed.table.name, packed.keys)
    raw = reader.block(1, no_base)

    reader.compare(1, raw)
    for bit in (0, 8 * len(raw) - 1):
        with pytest.raises(CorruptBackup, match=f"block 1 of pack {packed.table.name}"):
            reader.compare(1, flipped(raw, bit))


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

    def create(self, name: str, *, replace: bool = False) -> LocalUpload:
        upload = super().create(name, replace=replace)
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
        def create(self, name: str, *, replace: bool = False) -> LocalUpload:
            upload = super().create(name, replace=replace)
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
        while not writer.is_full:
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
