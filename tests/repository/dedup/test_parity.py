from __future__ import annotations

import os
import random
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup
from holdfast.repository._parity import mend, repair, write_parity
from holdfast.storage.base import OpenObject
from holdfast.storage.local import LocalStorage
from holdfast.storage.memory import MemoryStorage
from repository.dedup.parities import (
    MIB,
    NAME,
    PARITY,
    SECTOR,
    check_for,
    flipped,
    header,
    mended,
    noise,
    stored,
    without,
)


@pytest.mark.parametrize("size", [0, 1, SECTOR - 1, SECTOR, SECTOR + 1, 5 * SECTOR + 7, 33 * SECTOR, 3 * MIB])
def test_a_sound_object_needs_no_mending(size: int) -> None:
    content = noise(size)
    storage = stored(content)
    assert mend(storage, NAME) is None
    assert repair(storage, NAME, check_for(content)) is None
    assert storage.get(NAME, limit=size) == content


def test_without_parity_there_is_nothing_to_mend_with() -> None:
    storage = MemoryStorage()
    storage.put(NAME, b"content")
    assert mend(storage, NAME) is None


def test_an_object_that_is_gone_is_gone() -> None:
    storage = stored(b"content")
    storage.delete(NAME)
    with pytest.raises(FileNotFoundError):
        mend(storage, NAME)
    with pytest.raises(FileNotFoundError):
        write_parity(storage, "packs/none")
    assert not storage.exists("packs/none.parity")


@pytest.mark.parametrize("size", [1, 61, 512])
def test_every_flipped_bit_of_a_small_object_is_mended(size: int) -> None:
    content = noise(size)
    storage = stored(content)
    for bit in range(8 * size):
        storage.put(NAME, flipped(content, bit))
        assert mended(storage) == content


def test_a_flipped_bit_in_any_byte_of_several_sectors_is_mended() -> None:
    content = noise(2 * SECTOR + 100)
    storage = stored(content)
    for byte in range(0, len(content), 3):
        storage.put(NAME, flipped(content, byte * 8 + byte % 8))
        assert mended(storage) == content


@pytest.mark.parametrize(
    ("sectors", "group", "sets"), [(40, 4, 10), (41, 4, 11), (33, 32, 2), (7, 1, 7), (9, 1024, 1)]
)
def test_a_burst_as_long_as_there_are_sets_is_mended_wherever_it_is(
    sectors: int, group: int, sets: int
) -> None:
    content = noise(sectors * SECTOR - 1000)
    storage = stored(content, group=group)
    for start in range(sectors - sets + 1):
        storage.put(NAME, without(content, range(start, start + sets)))
        found = mend(storage, NAME)
        assert found is not None
        with found:
            assert found.bad_sectors == sets
            assert found.read_at(0, found.size) == content
    if sets < sectors:
        storage.put(NAME, without(content, range(sets + 1)))
        with pytest.raises(CorruptBackup, match="cannot be mended"):
            mend(storage, NAME)


def test_two_bad_sectors_of_one_set_are_refused_and_of_two_sets_mended() -> None:
    content = noise(40 * SECTOR)
    storage = stored(content, group=4)  # 10 sets
    for one, two in [(0, 10), (3, 33), (9, 39), (0, 11), (3, 34), (38, 39)]:
        damaged = without(content, [one, two])
        storage.put(NAME, damaged)
        if one % 10 == two % 10:
            with pytest.raises(CorruptBackup, match="share"):
                mend(storage, NAME)
        else:
            assert mended(storage) == content
        assert storage.get(NAME, limit=MIB) == damaged


@pytest.mark.parametrize("ending", [b"", bytes(3 * SECTOR)])
def test_a_lost_tail_is_mended_as_long_as_parity_reaches(ending: bytes) -> None:
    content = noise(37 * SECTOR + 50) + ending
    storage = stored(content, group=4)
    last = -(-len(content) // SECTOR)
    sets = -(-last // 4)
    for left in range(len(content) - 1, (last - sets - 1) * SECTOR, -777):
        storage.put(NAME, content[:left])
        if left >= (last - sets) * SECTOR:
            assert mended(storage) == content
        else:
            with pytest.raises(CorruptBackup):
                mend(storage, NAME)
    storage.put(NAME, b"")
    with pytest.raises(CorruptBackup):
        mend(storage, NAME)


def test_an_object_of_one_sector_comes_back_from_nothing() -> None:
    storage = stored(b"content")
    storage.put(NAME, b"")
    assert mended(storage) == b"content"


@pytest.mark.parametrize("size", [0, 7, SECTOR, 3 * SECTOR + 5])
def test_what_an_object_has_too_much_is_cut_off(size: int) -> None:
    content = noise(size)
    storage = stored(content)
    storage.put(NAME, content + b"more" * 3000)
    assert mended(storage) == content
    assert repair(storage, NAME, check_for(content)) == 0
    assert storage.get(NAME, limit=size) == content
    storage.put(NAME, without(content, [0]) + b"more")
    assert mended(storage) == content


def test_any_range_of_a_mended_object_can_be_read_by_several_threads() -> None:
    content = noise(50 * SECTOR - 77)
    storage = stored(content, group=4)
    storage.put(NAME, without(content, [0, 7, 8, 9, 30])[: 49 * SECTOR + 5])
    draw = random.Random(3)
    ranges = [(draw.randrange(len(content) + 10), draw.randrange(5 * SECTOR)) for _ in range(300)]
    found = mend(storage, NAME)
    assert found is not None
    with found, ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda one: found.read_at(*one), ranges))
        assert found.size == len(content)
        assert found.bad_sectors == 6
    assert read == [content[start : start + length] for start, length in ranges]


@pytest.mark.parametrize(("size", "group"), [(0, 32), (1, 32), (100 * SECTOR - 1, 32), (9 * SECTOR, 2)])
def test_the_parity_is_as_its_description_says(size: int, group: int) -> None:
    content = noise(size)
    parity = stored(content, group=group).get(PARITY, limit=MIB)
    count = -(-size // SECTOR)
    sets = -(-count // group)
    sectors = [content[n * SECTOR : (n + 1) * SECTOR].ljust(SECTOR, b"\0") for n in range(count)]
    expected = header(size, group)
    if count:
        spare = []
        for number in range(sets):
            total = 0
            for sector in sectors[number::sets]:
                total ^= int.from_bytes(sector, "big")
            spare.append(total.to_bytes(SECTOR, "big"))
        tables = b"".join(struct.pack("<I", zlib.crc32(sector)) for sector in sectors + spare)
        expected += tables + struct.pack("<I", zlib.crc32(tables)) + b"".join(spare)
    assert parity == expected


def test_a_large_object_has_stripes_and_each_of_them_is_mended() -> None:
    content = noise(70 * MIB - 5)
    storage = stored(content, group=2)  # stripes of at most 32 MiB: three
    sectors = 70 * MIB // SECTOR
    ends = [sectors * stripe // 3 for stripe in range(4)]
    sets = [-(-(end - begin) // 2) for begin, end in pairwise(ends)]
    damaged = bytearray(content[: (sectors - sets[2]) * SECTOR])
    for begin, burst in zip(ends, sets[:2], strict=False):
        damaged[(begin + 5) * SECTOR : (begin + 5 + burst) * SECTOR] = bytes(burst * SECTOR)
    storage.put(NAME, bytes(damaged))
    found = mend(storage, NAME)
    assert found is not None
    with found:
        assert found.bad_sectors == sum(sets)
        assert found.read_at(0, found.size) == content
    storage.put(NAME, bytes(damaged[:-1]))
    with pytest.raises(CorruptBackup):
        mend(storage, NAME)


def test_memory_does_not_grow_with_the_object(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put(NAME, b"content")
    path = tmp_path / NAME
    os.truncate(path, 256 * MIB)  # a hole, but for its beginning: four stripes, and 64 MiB of parity
    tracemalloc.start()
    try:
        write_parity(storage, NAME, group=4)
        writing = tracemalloc.get_traced_memory()[1]
        with path.open("r+b") as file:
            file.seek(200 * MIB)
            file.write(b"damage")
        tracemalloc.reset_peak()
        found = mend(storage, NAME)
        mending = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    with found:
        assert found.bad_sectors == 1
        assert found.read_at(200 * MIB, 10) == bytes(10)
    assert max(writing, mending) < 40 * MIB


@pytest.mark.parametrize("group", [-1, 0, 1025])
def test_a_group_out_of_bounds_is_refused(group: int) -> None:
    storage = MemoryStorage()
    storage.put(NAME, b"content")
    with pytest.raises(ValueError, match="group"):
        write_parity(storage, NAME, group=group)


@given(
    size=st.integers(0, 30 * SECTOR),
    group=st.integers(1, 40),
    lost=st.integers(0, 3 * SECTOR),
    draw=st.randoms(use_true_random=False),
)
def test_at_most_one_bad_sector_in_each_set_is_always_mended(
    size: int, group: int, lost: int, draw: random.Random
) -> None:
    content = noise(size, size)
    storage = stored(content, group=group)
    count = -(-size // SECTOR)
    sets = -(-count // group)
    left = max(size - lost, (count - sets) * SECTOR, 0)
    gone = {number % sets for number in range(left // SECTOR, count)} if left < size else set()
    hit = [
        draw.choice(range(one, count, sets)) for one in range(sets) if one not in gone and draw.random() < 0.5
    ]
    storage.put(NAME, without(content, hit)[:left])
    found = mended(storage)
    assert found == content if hit or left < size else found is None


def test_a_mended_object_is_an_open_object() -> None:
    storage = stored(b"content")
    storage.put(NAME, b"cOntent")
    found: OpenObject | None = mend(storage, NAME)
    assert found is not None
    with found as same:
        assert same is found
        assert same.size == 7
        with pytest.raises(ValueError, match="negative"):
            same.read_at(-1, 1)
