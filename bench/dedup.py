"""The deduplicating repository, against restic and Borg: first, unchanged, after a day of work, proved, put back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from bench.checks import same_tree
from bench.measure import Contender, Sample, in_turns
from bench.programs import EVERYTHING, Borg, Holdfast, Peers, Restic
from bench.report import Result, Table, share_goal
from bench.workspace import Workspace, count_of, make_data, size_of

FORMAT = {"BACKUP_FORMAT": "dedup"}
MEMORY_LIMIT = 300_000_000
"""Bytes that no command may hold in this format, at some millions of chunks."""
SETTLE = 3  # seconds: what was modified just before a backup is read again by the next one


class Contest:
    """Holdfast and those of the others that are installed, each with a repository of `live`, encrypted."""

    def __init__(
        self, space: Workspace, peers: Peers, runs: int, live: Path, components: Sequence[str]
    ) -> None:
        self._space, self._programs, self._runs, self._live = space, peers.programs, runs, live
        self._components = components
        self.others = [name for name in ("restic", "borg") if peers.have(name)]
        self._kept: dict[str, Holdfast | Restic | Borg] = {}

    def table(self, title: str, measure: Callable[[str], Sample]) -> Table:
        contenders = [
            Contender(name, partial(measure, name), is_peer=name != "holdfast")
            for name in ("holdfast", *self.others)
        ]
        return Table(title, in_turns(self._runs, contenders))

    def first(self, name: str) -> Sample:
        """A backup into a new repository."""
        place = self._space.fresh(name)
        if name == "holdfast":
            self._kept[name] = Holdfast(self._live, place, encrypt=True, environ=FORMAT)
        else:
            self._kept[name] = (Restic if name == "restic" else Borg)(self._programs[name], place)
        return self.again(name)

    def again(self, name: str) -> Sample:
        held = self._kept[name]
        return held.backup(*self._components) if isinstance(held, Holdfast) else held.backup(self._live)

    def proved(self, name: str) -> Sample:
        """Everything read back."""
        held = self._kept[name]
        return held.run("verify", "latest", "--deep") if isinstance(held, Holdfast) else held.check()

    def restored(self, name: str) -> Sample:
        held, target = self._kept[name], self._space.fresh(f"restored-{name}")
        if isinstance(held, Holdfast):
            return held.run("restore", "latest", "--target", str(target / "live"))
        return held.restore(target)

    def check(self) -> str:
        """Compares what Holdfast has restored. Raises RunFailed."""
        return f"holdfast: {same_tree(self._live, self._space.path('restored-holdfast') / 'live')}"


def dedup(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """`BACKUP_FORMAT=dedup`, encrypted, beside the others in one go."""
    live = space.copy(space.service(), "live")
    time.sleep(SETTLE)
    contest = Contest(space, peers, runs, live, EVERYTHING)

    def after_a_day(name: str) -> Sample:
        if name == "holdfast":  # it comes first; the others find the same day
            make_data("day", live)
            time.sleep(SETTLE)
        return contest.again(name)

    first = contest.table(f"first backup of {size_of(live) / 1e6:,.0f} MB", contest.first)
    unchanged = contest.table("again, nothing changed", contest.again)
    day = contest.table("after a day of work", after_a_day)
    proved = contest.table("read back and verify all", contest.proved)
    restored = contest.table("restore", contest.restored)
    goals = [
        share_goal(first, "holdfast", "wall", 0.5),
        share_goal(first, "holdfast", "stored", 0.76),
        share_goal(unchanged, "holdfast", "wall", 1),
        share_goal(day, "holdfast", "wall", 0.5),
        share_goal(day, "holdfast", "stored", 0.18),
        share_goal(proved, "holdfast", "wall", 0.8),
        share_goal(restored, "holdfast", "wall", 0.7),
    ]
    tables = [first, unchanged, day, proved, restored]
    return Result("dedup", tables, goals, [contest.check()], MEMORY_LIMIT)


def dedup_small(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """100,000 small files, for the first time, again, and restored."""
    service = space.small()
    contest = Contest(space, peers, runs, service, ["--component=models"])
    title = f"first backup of {count_of(service):,} files, {size_of(service) / 1e6:,.0f} MB"
    first = contest.table(title, contest.first)
    unchanged = contest.table("again, nothing changed", contest.again)
    restored = contest.table("restore", contest.restored)
    goals = [
        share_goal(first, "holdfast", "wall", 1),
        share_goal(first, "holdfast", "stored", 0.6),
        share_goal(unchanged, "holdfast", "wall", 0.4),
        share_goal(restored, "holdfast", "wall", 0.8),
    ]
    return Result("dedup-small", [first, unchanged, restored], goals, [contest.check()], MEMORY_LIMIT)
