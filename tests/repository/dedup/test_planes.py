from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.repository.dedup._planes import ITEM_SIZES, differences, items, merge, split, undo_differences

SIZES = st.sampled_from(ITEM_SIZES)


@given(st.binary(max_size=300), SIZES, st.booleans())
def test_planes_give_back_the_whole_items(data: bytes, item_size: int, rotated: bool) -> None:
    values = items(data, item_size)
    planes = split(values, rotated=rotated)
    assert [len(plane) for plane in planes] == [len(data) // item_size] * item_size
    assert merge(planes, rotated=rotated).tobytes() == data[: len(data) // item_size * item_size]


@given(st.binary(max_size=300), st.binary(min_size=300, max_size=300), SIZES)
def test_differences_give_back_every_pattern_of_bits(data: bytes, other: bytes, item_size: int) -> None:
    values, base = items(data, item_size), items(other[: len(data)], item_size)
    assert undo_differences(differences(values, base), base).tobytes() == values.tobytes()


@pytest.mark.parametrize("item_size", ITEM_SIZES)
def test_plane_number_zero_holds_the_lowest_bytes(item_size: int) -> None:
    data = bytes(range(item_size)) * 5
    assert [plane.tobytes() for plane in split(items(data, item_size), rotated=False)] == [
        bytes([place]) * 5 for place in range(item_size)
    ]


@pytest.mark.parametrize("item_size", ITEM_SIZES)
def test_small_differences_are_near_zero_whatever_their_sign(item_size: int) -> None:
    base = np.full(5, 100, f"<u{item_size}")
    values = base + np.array([0, -1, 1, -2, 2], f"<i{item_size}").view(base.dtype)
    assert differences(values, base).tolist() == [0, 1, 2, 3, 4]


def test_a_rotated_float_has_its_exponent_in_one_plane() -> None:
    numbers = np.array([1.5, -1.5, 3.0, -3.0], "<f4")
    assert split(numbers.view("<u4"), rotated=True)[3].tolist() == [127, 127, 128, 128]
