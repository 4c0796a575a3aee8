"""Marks lead to where the chunks of a pack are, or to a clear error."""

from __future__ import annotations

import pytest

from holdfast.errors import CorruptBackup
from holdfast.repository._manifest import PackRef
from holdfast.repository.dedup._moved import MAX_PLACES, Moved
from holdfast.storage.memory import MemoryStorage

HASH = "0" * 64


def pack(number: int) -> PackRef:
    return PackRef(f"{number:032x}-0", 10, HASH)


def world(there: list[int], moved: dict[int, list[int]]) -> Moved:
    storage = MemoryStorage()
    for number in there:
        name = pack(number).name
        storage.put(f"packs/{name[:2]}/{name}", b"")
    marks = Moved(storage)
    for number, places in moved.items():
        marks.put(pack(number).name, [pack(place) for place in places])
    return Moved(storage)


def places(moved: Moved, number: int) -> list[PackRef]:
    return sorted(moved.places(pack(number)))


def test_a_pack_that_is_there_is_read_whatever_its_mark_says() -> None:
    assert places(world([1, 2], {1: [2]}), 1) == [pack(1)]


def test_marks_are_followed_over_several_and_by_several_ways() -> None:
    moved = world([5, 6], {1: [2, 3], 2: [4, 5], 3: [4], 4: [5, 6]})
    assert places(moved, 1) == [pack(5), pack(6)]
    assert set(moved.reached([pack(1)])) == {pack(number).name for number in range(1, 7)}
    assert set(moved.names()) == {pack(number).name for number in range(1, 5)}


def test_nothing_is_left_of_a_pack_of_which_nothing_was_needed() -> None:
    assert places(world([], {1: []}), 1) == []


@pytest.mark.parametrize("marks", [{}, {1: [2]}, {1: [2, 3], 2: [3]}])
def test_what_has_no_end_is_missing(marks: dict[int, list[int]]) -> None:
    with pytest.raises(CorruptBackup, match="is missing"):
        places(world([], marks), 1)


def test_packs_that_lead_to_each_other_lead_elsewhere_as_well() -> None:
    moved = world([5, 6], {1: [2, 5], 2: [6, 1], 3: [3]})
    assert places(moved, 1) == places(moved, 2) == [pack(5), pack(6)]
    assert places(moved, 3) == []


def test_a_chain_without_end_is_cut_off() -> None:
    moved = world([], {number: [2 * number, 2 * number + 1] for number in range(1, 1000)})
    with pytest.raises(CorruptBackup):
        places(moved, 1)
    assert len(moved.reached([pack(1)])) == 1999


def test_a_mark_that_names_more_than_it_may_is_refused() -> None:
    moved = world([2], {1: [2] * (MAX_PLACES + 1)})
    with pytest.raises(CorruptBackup, match="does not say where"):
        moved.to(pack(1).name)
    assert world([2], {1: [2] * MAX_PLACES}).to(pack(1).name) is not None
