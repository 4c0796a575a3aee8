"""How much memory the tables of chunks take alone, at ten million."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from functools import partial

from bench.measure import Contender, Sample, in_turns, run
from bench.programs import Peers
from bench.report import Result, Table, limit_goal
from bench.workspace import PROJECT, Workspace

_LIMIT = 1_000_000_000
_KINDS = {
    "index": "what restore and verify look chunks up in",
    "learn": "what a host remembers of its chunks, being written",
    "known": "the same, read by the next backup",
}


def index_memory(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """Each in a process of its own, filled as packs fill it."""
    count = max(1, round(10_000_000 * space.scale))
    place = space.fresh("remembered")

    def measure(kind: str) -> Sample:
        argv = [sys.executable, "-m", "bench.index_tables", kind, str(place), str(count)]
        return run(argv, cwd=PROJECT, env=os.environ)

    rows = in_turns(1, [Contender(title, partial(measure, kind)) for kind, title in _KINDS.items()])
    table = Table(f"{count:,} chunks", rows)
    goals = [limit_goal(row.name, row.rss / 1e6, _LIMIT / 1e6, "MB") for row in rows]
    return Result("index-memory", [table], goals, (), _LIMIT)
