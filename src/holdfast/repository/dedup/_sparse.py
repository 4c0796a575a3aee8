"""Which packs are worth writing anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from holdfast.repository.dedup._pack_writer import PACK_SIZE
from holdfast.repository.dedup._survey import PackUse

SPARSE: Final = 1 / 3
"""More than this of a pack must be of no use. So each byte that is written frees half a byte at least, and what is
stored is one and a half times what is needed at most."""

JOINED: Final = 8
"""So many small packs of like size are joined. Then no chunk is written more often than its pack grows eightfold on
its way to a full one: five times from a pack of 2 KiB. Some few dozen small packs stay."""


def worth_rewriting(uses: Iterable[PackUse]) -> list[PackUse]:
    """Of packs that may lie in one, those that gain by it: sparse ones, and small ones of which there are many."""
    sparse: list[PackUse] = []
    small: dict[int, list[PackUse]] = defaultdict(list)
    for use in uses:
        if use.bytes - use.live > use.bytes * SPARSE:
            sparse.append(use)
        elif use.bytes < PACK_SIZE // 2:
            small[_size_class(use.bytes)].append(use)
    return sparse + [use for alike in small.values() if len(alike) >= JOINED for use in alike]


def _size_class(size: int) -> int:
    """How many times a full pack is eight times larger."""
    steps = 0
    while size * JOINED < PACK_SIZE:
        size *= JOINED
        steps += 1
    return steps
