"""Where processes are killed by default: a seeded slice of the points that the torture runs take one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random


def kill_points(start: int, *, every: int, seed: object = "") -> Iterator[int]:
    """Points from `start` on without end, one of `every` on average; the same ones for the same seed.

    The gaps differ, so that points before a statement and behind one are both among them.
    """
    if every == 1:
        return itertools.count(start)
    random = Random(f"{seed}")
    gaps = (random.randint(1, 2 * every - 1) for _ in itertools.count())
    return itertools.accumulate(gaps, initial=start)
