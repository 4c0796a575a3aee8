"""Which way of coding a block suits its content, judged by samples of it.

Trying every way on whole blocks would take several times as long as the coding. Four samples of 4 KiB from a block of
1 MiB tell nearly as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from holdfast.repository.dedup._planes import Items, Plane, differences, items, split
from holdfast.repository.dedup._zstd import Effort, compress

Coder = Effort | None
"""How one run of bytes is coded; None means stored."""

WORTH = 0.98
"""Where coding leaves more than this, the bytes are stored."""

# A block coded against a base cannot be read without it: that must pay.
_WORTH_A_BASE = 0.9
# Looking for repetitions takes three times as long as counting frequencies.
_WORTH_SEARCHING = 0.97
# Planes of an item size that nobody declared, where the bytes as they are might do.
_WORTH_GUESSING = 0.95

# The sizes to try where none was declared: bfloat16 and float16, float32, float64.
_GUESSES = (2, 4, 8)

_SAMPLE = 4 << 10
_SAMPLES = 4
_FRAME = 13  # what a zstd frame takes beside the codes: much of a sample, nothing of a block


class Way(NamedTuple):
    """One way to code a block."""

    estimate: float
    """The part of the raw size that would remain."""
    item_size: int
    """0: the bytes as they are, without planes."""
    rotated: bool
    difference: bool
    coders: tuple[Coder, ...]
    """One for each plane, or the only one."""


def choose(raw: memoryview, item_size: int, base: memoryview | None) -> Way:
    """The way to code `raw`. `item_size` is 1 where it is not known; `base` is as long as `raw`."""
    sample = _sampled(raw)
    best = _unbased(sample, item_size)
    if base is not None:
        other = _sampled(base)
        for size in (item_size,) if item_size > 1 else (1, 2, 4):
            way = _against(sample, other, size)
            if way.estimate < best.estimate * (1 if best.difference else _WORTH_A_BASE):
                best = way
    return best


def _unbased(sample: memoryview, item_size: int) -> Way:
    if item_size > len(sample):
        return _whole(sample)
    if item_size > 1:
        return _in_planes(sample, item_size)
    whole = _whole(sample)
    if whole.coders == (Effort.REPETITIONS,) or len(sample) < _GUESSES[-1]:
        return whole
    planes = min((_in_planes(sample, size) for size in _GUESSES), key=_estimate)
    return planes if planes.estimate < whole.estimate * _WORTH_GUESSING else whole


def _estimate(way: Way) -> float:
    return way.estimate


def _sampled(raw: memoryview) -> memoryview:
    """Samples from end to end, each at a multiple of 8 bytes, so that items stay whole."""
    if len(raw) <= _SAMPLE * _SAMPLES:
        return raw
    last = len(raw) - _SAMPLE
    starts = (last * number // (_SAMPLES - 1) & ~7 for number in range(_SAMPLES))
    return memoryview(b"".join([raw[start : start + _SAMPLE] for start in starts]))


def _whole(sample: memoryview) -> Way:
    estimate, coder = _coder(sample)
    return Way(estimate, 0, False, False, (coder,))


def _in_planes(sample: memoryview, item_size: int) -> Way:
    values = items(sample, item_size)
    plain, rotated = split(values, rotated=False), split(values, rotated=True)
    if _frequencies(rotated) < _frequencies(plain):
        return _planes(rotated, item_size, rotated=True)
    return _planes(plain, item_size)


def _frequencies(planes: Sequence[Plane]) -> int:
    return sum(len(compress(plane, Effort.FREQUENCIES)) for plane in planes)


def _against(sample: memoryview, base: memoryview, item_size: int) -> Way:
    delta: Items = differences(items(sample, item_size), items(base, item_size))
    return _planes(split(delta, rotated=False), item_size, difference=True)


def _planes(
    planes: Sequence[Plane], item_size: int, *, rotated: bool = False, difference: bool = False
) -> Way:
    judged = [_coder(plane) for plane in planes]
    estimate = sum(part for part, _ in judged) / len(judged)
    return Way(estimate, item_size, rotated, difference, tuple(coder for _, coder in judged))


def _coder(sample: memoryview | Plane) -> tuple[float, Coder]:
    size = len(sample)
    if not size:
        return 1.0, None
    frequencies = (len(compress(sample, Effort.FREQUENCIES)) - _FRAME) / size
    repetitions = (len(compress(sample, Effort.REPETITIONS)) - _FRAME) / size
    if repetitions < min(WORTH, frequencies * _WORTH_SEARCHING):
        return repetitions, Effort.REPETITIONS
    return (frequencies, Effort.FREQUENCIES) if frequencies < WORTH else (1.0, None)
