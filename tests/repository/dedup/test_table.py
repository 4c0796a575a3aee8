from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Sequence

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._pack_reader import PackReader
from holdfast.repository.dedup._seal import HEADER_LENGTH, Sealer
from holdfast.repository.dedup._table import MAX_RAW, PACK_MAGIC, PackTable
from repository.dedup.sealed import (
    Bytes,
    columns,
    forge_pack,
    head,
    make_keys,
)

KEYS = make_keys()


@pytest.fixture
def keys() -> RunKeys:
    return make_keys()


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
