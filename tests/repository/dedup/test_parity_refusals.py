from __future__ import annotations

import errno
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.storage import content_of
from holdfast.errors import CorruptBackup, StorageError
from holdfast.repository import _parity
from holdfast.repository._parity import mend, repair, write_parity
from holdfast.storage.memory import Crashed, MemoryStorage
from holdfast.streams import RandomAccess
from repository.dedup.parities import (
    MIB,
    NAME,
    PARITY,
    SECTOR,
    FailingDisk,
    check_for,
    flipped,
    header,
    mended,
    noise,
    stored,
    without,
)


@pytest.fixture(params=[OSError(errno.EIO, "Input/output error"), StorageError("the disk refused")])
def refusal(request: pytest.FixtureRequest) -> Exception:
    error: Exception = request.param
    return error


def test_sectors_that_cannot_be_read_are_mended_and_not_read_again(refusal: Exception) -> None:
    content = noise(40 * SECTOR - 9)
    storage = FailingDisk("", [2, 3, 39], refusal)
    storage.put(NAME, content)
    write_parity(storage, NAME, group=4)
    storage.name = NAME
    assert mended(storage) == content
    with pytest.raises((OSError, StorageError)), storage.open(NAME) as file:
        file.read_at(0, len(content))


def test_too_much_that_cannot_be_read_is_told_as_that(refusal: Exception) -> None:
    storage = FailingDisk("", [2, 12], refusal)
    storage.put(NAME, noise(40 * SECTOR))
    write_parity(storage, NAME, group=4)
    storage.name = NAME
    with pytest.raises(StorageError, match="not all can be read"):
        mend(storage, NAME)


def test_parity_is_not_written_of_what_cannot_be_read(refusal: Exception) -> None:
    storage = FailingDisk(NAME, [2], refusal)
    storage.put(NAME, noise(40 * SECTOR))
    with pytest.raises(StorageError):
        write_parity(storage, NAME)
    assert not storage.exists(PARITY)
    assert storage.sweep() == []


def test_a_read_that_fails_once_is_no_damage() -> None:
    storage = stored(noise(40 * SECTOR))
    before = storage.faults.calls["read_at"]
    assert mend(storage, NAME) is None
    storage.faults.fail("read_at", at=storage.faults.calls["read_at"] - before)  # the last: the object's own
    assert mend(storage, NAME) is None


def test_a_short_read_is_never_taken_for_content() -> None:
    content = noise(40 * SECTOR)
    storage = stored(content, group=4)
    storage.put(NAME, without(content, [3]))
    found = mend(storage, NAME)
    assert found is not None
    with found:
        storage.faults.truncate("read_at", to=10)
        with pytest.raises(StorageError):
            found.read_at(8 * SECTOR, SECTOR)
        assert found.read_at(8 * SECTOR, SECTOR) == content[8 * SECTOR : 9 * SECTOR]
    storage.faults.truncate("read_at", to=10, times=None)
    with pytest.raises(StorageError):
        write_parity(storage, NAME)


def test_every_damage_to_the_parity_is_refused_where_it_is_needed() -> None:
    content = noise(5 * SECTOR)
    storage = stored(content)
    parity = storage.get(PARITY, limit=MIB)
    storage.put(NAME, without(content, [4]))
    for byte in (*range(60), *range(60, len(parity), 97), len(parity) - 1):
        storage.put(PARITY, flipped(parity, byte * 8 + byte % 8))
        with pytest.raises(CorruptBackup, match=r"\.parity|its parity"):
            mend(storage, NAME)
    for length in (*range(60), len(parity) - SECTOR, len(parity) - 1):
        storage.put(PARITY, parity[:length])
        with pytest.raises(CorruptBackup, match=r"\.parity|its parity"):
            mend(storage, NAME)
    storage.put(PARITY, parity + b"\0")
    with pytest.raises(CorruptBackup):
        mend(storage, NAME)
    assert storage.get(NAME, limit=MIB) == without(content, [4])


def test_a_bad_sector_of_the_parity_costs_its_own_set_only() -> None:
    content = noise(40 * SECTOR)
    storage = stored(content, group=4)
    parity = storage.get(PARITY, limit=MIB)
    storage.put(PARITY, flipped(parity, (len(parity) - 10 * SECTOR + 3 * SECTOR) * 8))  # that of set 3
    storage.put(NAME, without(content, [12, 14]))
    assert mended(storage) == content
    storage.put(NAME, without(content, [13]))
    with pytest.raises(CorruptBackup):
        mend(storage, NAME)


def test_a_parity_sector_that_cannot_be_read_is_told_as_that(refusal: Exception) -> None:
    content = noise(40 * SECTOR)
    storage = FailingDisk("", [0], refusal)
    storage.put(NAME, content)
    size = write_parity(storage, NAME, group=4)
    storage.put(NAME, without(content, [15]))
    storage.name, storage.sectors = PARITY, [(size - 1) // SECTOR]  # the last bytes: of set 9
    assert mended(storage) == content
    storage.put(NAME, without(content, [19]))
    with pytest.raises(StorageError):
        mend(storage, NAME)


@pytest.mark.parametrize("size", [0, 1, 10**6, (1 << 40) + 3, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("group", [0, 1, 32, 1024, 1025, (1 << 32) - 1])
def test_a_forged_header_is_refused_before_memory_is_taken(size: int, group: int) -> None:
    storage = MemoryStorage()
    storage.put(NAME, b"content")
    storage.put(PARITY, header(size, group) + bytes(1000))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptBackup):
            mend(storage, NAME)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_forged_parity_writes_no_more_than_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parity, "MAX_BAD", 10)
    content = noise(11 * SECTOR)
    storage = stored(content, group=1)
    storage.put(NAME, without(content, range(10)))
    assert mended(storage) == content
    storage.put(NAME, b"")
    with pytest.raises(CorruptBackup):
        mend(storage, NAME)


def test_tables_that_contradict_their_parity_are_refused() -> None:
    content = noise(3 * SECTOR)
    storage = stored(content)
    parity = bytearray(storage.get(PARITY, limit=MIB))
    parity[24:28] = struct.pack("<I", 1)  # the checksum of sector 0
    parity[40:44] = struct.pack("<I", zlib.crc32(parity[24:40]))
    storage.put(PARITY, bytes(parity))
    with pytest.raises(CorruptBackup, match="its parity"):
        mend(storage, NAME)


def test_repair_writes_the_object_anew() -> None:
    content = noise(MIB)
    storage = stored(content)
    storage.put(NAME, without(content, [1, 2, 3])[:-50])
    assert repair(storage, NAME, check_for(content)) == 4
    assert storage.get(NAME, limit=MIB) == content
    assert mend(storage, NAME) is None
    assert storage.sweep() == []


def test_repair_replaces_nothing_by_what_its_check_refuses() -> None:
    content = noise(MIB)
    storage = stored(noise(MIB, 2))  # the parity of something else
    storage.put(NAME, without(noise(MIB, 2), [5]))
    with pytest.raises(CorruptBackup, match="not what it must hold"):
        repair(storage, NAME, check_for(content))
    assert storage.get(NAME, limit=MIB) == without(noise(MIB, 2), [5])
    assert storage.sweep() == []


def test_repair_checks_what_it_has_written() -> None:
    content = noise(MIB)
    storage = stored(content)
    storage.put(NAME, without(content, [5]))
    checked: list[bool] = []

    def check(found: RandomAccess) -> None:
        checked.append(content_of(storage, NAME) == content)
        assert found.read_at(0, MIB + 1) == content

    assert repair(storage, NAME, check) == 1
    assert checked == [False, True]


def test_a_repair_that_crashes_can_be_done_again() -> None:
    content = noise(100 * SECTOR)
    whole = stored(content)
    whole.put(NAME, without(content, [5]))
    before = whole.faults.total
    assert repair(whole, NAME, check_for(content)) == 1
    outcomes = set()
    for call in range(1, whole.faults.total - before + 1):
        storage = stored(content)
        storage.put(NAME, without(content, [5]))
        storage.faults.crash(at=call)
        with pytest.raises(Crashed):
            repair(storage, NAME, check_for(content))
        survivor = storage.survivor()
        outcomes.add(repair(survivor, NAME, check_for(content)))
        assert survivor.get(NAME, limit=MIB) == content
    assert outcomes == {1, None}


def test_new_parity_replaces_damaged_parity() -> None:
    content = noise(100 * SECTOR)
    storage = stored(content)
    storage.put(PARITY, b"damaged")
    write_parity(storage, NAME)
    storage.put(NAME, without(content, [5]))
    assert mended(storage) == content


def test_a_full_disk_leaves_no_half_parity() -> None:
    storage = MemoryStorage()
    storage.put(NAME, noise(100 * SECTOR))
    for at in (1, 2, 3):
        storage.faults.fail("write", at=at)
        with pytest.raises(StorageError):
            write_parity(storage, NAME)
        storage.faults.clear()
        assert not storage.exists(PARITY)
        assert storage.sweep() == []


@given(
    hits=st.lists(
        st.tuples(st.booleans(), st.floats(0, 1, exclude_max=True), st.integers(1, 9000)), max_size=4
    ),
    cut=st.one_of(st.none(), st.tuples(st.booleans(), st.floats(0, 1))),
    seed=st.integers(0, 1000),
)
def test_whatever_happens_to_both_nothing_wrong_is_given(
    hits: list[tuple[bool, float, int]], cut: tuple[bool, float] | None, seed: int
) -> None:
    content = noise(12 * SECTOR + seed, seed)
    storage = stored(content, group=3)
    both = [bytearray(storage.get(name, limit=MIB)) for name in (NAME, PARITY)]
    for which, where, length in hits:
        data = both[which]
        begin = int(where * len(data))
        end = min(begin + length, len(data))
        data[begin:end] = noise(end - begin, seed + length)
    if cut is not None:
        del both[cut[0]][int(cut[1] * len(both[cut[0]])) :]
    for name, data in zip((NAME, PARITY), both, strict=True):
        storage.put(name, bytes(data))
    try:
        found = mended(storage)
    except CorruptBackup:
        return
    assert found == content if found is not None else bytes(both[0]) == content
