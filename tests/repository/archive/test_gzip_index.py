from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup
from holdfast.repository.archive._gzip_index import BlockIndex


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1000, 16 << 20)), min_size=1),
    st.integers(0, 1 << 40),
)
def test_the_index_knows_where_every_block_lies(pairs: list[tuple[int, int]], start: int) -> None:
    index = BlockIndex(pairs, start=start)
    assert list(index) == pairs
    assert len(index) == len(pairs)
    assert index.raw_size == sum(raw for _, raw in pairs)
    assert index.compressed_end == start + sum(packed for packed, _ in pairs)
    packed_offset, raw_offset = start, 0
    for number, (packed, raw) in enumerate(pairs):
        assert index[number] == (packed, raw)
        assert index.compressed_offset(number) == packed_offset
        assert index.raw_offset(number) == raw_offset
        assert index.find(raw_offset) == index.find(raw_offset + raw - 1) == number
        packed_offset, raw_offset = packed_offset + packed, raw_offset + raw


@pytest.mark.parametrize(
    "pair",
    [
        (0, 1),
        (1, 0),
        (-1, 1),
        (1, -1),
        (1, (16 << 20) + 1),
        (10_000, 100),
        ((16 << 20) + (1 << 20), 16 << 20),
        (1 << 70, 1),
    ],
)
def test_lengths_that_no_block_can_have_are_refused(pair: tuple[int, int]) -> None:
    index = BlockIndex([(5, 5)])
    with pytest.raises(CorruptBackup):
        index.append(*pair)
    assert list(index) == [(5, 5)]


@pytest.mark.parametrize("start", [-1, 1 << 63, 1 << 64])
def test_a_start_that_no_file_can_have_is_refused(start: int) -> None:
    with pytest.raises(CorruptBackup):
        BlockIndex(start=start)


def test_offsets_beyond_any_file_are_refused() -> None:
    index = BlockIndex(start=(1 << 63) - 10)
    with pytest.raises(CorruptBackup):
        index.append(100, 100)


@pytest.mark.parametrize("number", [-1, 1])
def test_a_block_that_is_not_there_has_no_lengths(number: int) -> None:
    with pytest.raises(IndexError):
        BlockIndex([(5, 5)])[number]


def test_a_million_mebibytes_are_indexed_in_little_memory() -> None:
    tracemalloc.start()
    try:
        index = BlockIndex((700_000, 1 << 20) for _ in range(100_000))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index.raw_size == 100_000 << 20
    assert size < 2_000_000
