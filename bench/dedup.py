"""The deduplicating repository, against restic and Borg: first, unchanged, after a day of work, proved, put back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial

from bench.checks import same_tree
from bench.measure import Contender, Sample, in_turns
from bench.programs import EVERYTHING, Borg, Holdfast, Peers, Restic
from bench.report import Result, Table, size_goal, speed_goal
from bench.workspace import Workspace, make_data, size_of

_FACTORS = (2, 1, 2, 1 / 0.8, 1 / 0.7)
"""How much faster than each other program, table by table."""
_SETTLE = 3  # seconds: what was modified just before a backup is read again by the next one


def dedup(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """`BACKUP_FORMAT=dedup`, encrypted, beside the others in one go."""
    live = space.copy(space.service(), "live")
    time.sleep(_SETTLE)
    kept: dict[str, Holdfast | Restic | Borg] = {}

    def first(name: str) -> Sample:
        place = space.fresh(name)
        if name == "holdfast":
            made = Holdfast(live, place, encrypt=True, environ={"BACKUP_FORMAT": "dedup"})
            kept[name] = made
            return made.backup(*EVERYTHING)
        peer = kept[name] = (Restic if name == "restic" else Borg)(peers.programs[name], place)
        return peer.backup(live)

    def again(name: str) -> Sample:
        held = kept[name]
        return held.backup(*EVERYTHING) if isinstance(held, Holdfast) else held.backup(live)

    def after_a_day(name: str) -> Sample:
        if name == "holdfast":  # it comes first; the others find the same day
            make_data("day", live)
            time.sleep(_SETTLE)
        return again(name)

    def proved(name: str) -> Sample:
        held = kept[name]
        return held.run("verify", "latest", "--deep") if isinstance(held, Holdfast) else held.check()

    def restored(name: str) -> Sample:
        held, target = kept[name], space.fresh(f"restored-{name}")
        if isinstance(held, Holdfast):
            return held.run("restore", "latest", "--target", str(target / "live"))
        return held.restore(target)

    others = [name for name in ("restic", "borg") if peers.have(name)]

    def table(title: str, measure: Callable[[str], Sample]) -> Table:
        contenders = [
            Contender(name, partial(measure, name), is_peer=name != "holdfast")
            for name in ("holdfast", *others)
        ]
        return Table(title, in_turns(runs, contenders))

    tables = [
        table(f"first backup of {size_of(live) / 1e6:,.0f} MB", first),
        table("again, nothing changed", again),
        table("after a day of work", after_a_day),
        table("read back and verify all", proved),
        table("restore", restored),
    ]
    check = f"holdfast: {same_tree(live, space.path('restored-holdfast') / 'live')}"
    goals = []
    for peer in others:
        goals += [
            speed_goal(made, "holdfast", peer, factor) for made, factor in zip(tables, _FACTORS, strict=True)
        ]
        goals.append(size_goal(tables[0], "holdfast", peer, 0.76))
        goals.append(size_goal(tables[2], "holdfast", peer, 0.18))
    return Result("dedup", tables, goals, [check])
