"""Items of 1, 2, 4 or 8 bytes, apart byte by byte, and as differences.

The bytes of one place in all items are a *plane*. In weights, the plane with the exponents uses few values, often the
same ones, and those of the mantissa are noise: apart, each can be coded as it deserves.

*Rotated* items are turned left by one bit first: the sign of an IEEE 754 number, which is noise, leaves the plane of
the exponent, which then holds nothing else for float32 and bfloat16.

All arithmetic is on unsigned integers and wraps around, so every pattern of bits comes back, NaN payloads included.
numpy releases the GIL in all that takes long here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.uint8]
Items: TypeAlias = NDArray[Any]
"""Unsigned integers of the item's size, little-endian."""

ITEM_SIZES = (1, 2, 4, 8)
_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}


def items(data: bytes | bytearray | memoryview | Plane, item_size: int) -> Items:
    """The whole items of `data`, without a copy. What follows the last whole one is left out."""
    return np.frombuffer(data, _TYPES[item_size], count=len(data) // item_size)


def split(values: Items, *, rotated: bool) -> list[Plane]:
    """The planes, the lowest byte's first."""
    item_size = values.itemsize
    if rotated:
        values = _rotate_left(values)
    if item_size == 1:
        return [np.ascontiguousarray(values)]
    if item_size == 2:
        return [values.astype(np.uint8), (values >> 8).astype(np.uint8)]
    # Halving the items step by step is twice as fast as taking each byte out of the whole item.
    half = _TYPES[item_size // 2]
    low, high = values.astype(half), (values >> (item_size * 4)).astype(half)
    return [*split(low, rotated=False), *split(high, rotated=False)]


def merge(planes: Sequence[Plane], *, rotated: bool) -> Items:
    """The items of which `planes` are the planes, as many as `split` gives and all of the same length."""
    values = _join(planes)
    return _rotate_right(values) if rotated else values


def differences(values: Items, base: Items) -> Items:
    """By how much `values` differ from `base`, small ones near zero whatever their sign (zigzag).

    0, -1, 1, -2, 2 … become 0, 1, 2, 3, 4 …: https://protobuf.dev/programming-guides/encoding/#signed-ints
    """
    delta = values - base
    signed = delta.view(f"<i{delta.itemsize}")
    signs = (signed >> (delta.itemsize * 8 - 1)).view(delta.dtype)
    delta <<= 1
    delta ^= signs
    return delta


def undo_differences(delta: Items, base: Items) -> Items:
    """The values that differ from `base` by `delta`. Writes into `delta`, and returns it."""
    odd = delta & 1
    np.negative(odd, out=odd)
    delta >>= 1
    delta ^= odd
    delta += base
    return delta


def _join(planes: Sequence[Plane]) -> Items:
    if len(planes) == 1:
        return planes[0]
    middle = len(planes) // 2
    dtype = _TYPES[len(planes)]
    values = _join(planes[middle:]).astype(dtype)
    values <<= len(planes) * 4
    values |= _join(planes[:middle])
    return values


def _rotate_left(values: Items) -> Items:
    turned = values << 1
    turned |= values >> (values.itemsize * 8 - 1)
    return turned


def _rotate_right(values: Items) -> Items:
    turned = values << (values.itemsize * 8 - 1)
    turned |= values >> 1
    return turned
