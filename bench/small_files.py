"""Very many small files."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from bench.checks import same_tree
from bench.measure import Contender, Sample, in_turns
from bench.programs import Borg, Holdfast, Peers, Restic
from bench.report import Result, Table, limit_goal, speed_goal
from bench.workspace import Workspace, count_of, size_of, warm

_PIGZ = "tar | pigz -6"
_TAR = "tar xz"
_UNCHANGED_LIMIT = 2.0  # seconds


def small_files(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """A backup of 100,000 files, the same again with nothing changed, and a restore."""
    service = space.small()
    count = count_of(service)

    def holdfast(level: int) -> Holdfast:
        return Holdfast(service, space.fresh(f"level-{level}"), level=level)

    def again(level: int) -> Sample:
        last = Holdfast(service, space.path(f"level-{level}"), level=level)
        return last.backup("--incremental")

    packing = [
        Contender("holdfast, level 6", lambda: holdfast(6).backup()),
        Contender("holdfast, level 9", lambda: holdfast(9).backup()),
    ]
    repeating = [Contender("holdfast", lambda: again(9))]
    restored = space.path("restored") / "service"
    unpacking = [
        Contender(
            "holdfast",
            lambda: Holdfast(service, space.path("level-6")).run(
                "restore", "latest", "--target", str(space.fresh("restored") / "service")
            ),
        )
    ]
    if peers.have("tar", "pigz", "gzip"):
        archive = space.fresh("packed") / "small.tar.gz"
        packing.append(Contender(_PIGZ, lambda: peers.pack(service, archive, 6), is_peer=True))
        unpacking.append(
            Contender(_TAR, lambda: peers.extract(archive, space.fresh("unpacked")), is_peer=True)
        )
    # The first table makes their repositories, the others use them.
    others: dict[str, Restic | Borg] = {}

    def first(name: str) -> Sample:
        kind = Restic if name == "restic" else Borg
        others[name] = kind(peers.programs[name], space.fresh(name))
        return others[name].backup(service)

    def second(name: str) -> Sample:
        return others[name].backup(service)

    def back(name: str) -> Sample:
        return others[name].restore(space.fresh("unpacked"))

    for name in filter(peers.have, ("restic", "borg")):
        for contenders, measure in ((packing, first), (repeating, second), (unpacking, back)):
            contenders.append(Contender(name, partial(measure, name), is_peer=True, once=True))

    full = Table(f"full backup of {count:,} files, {size_of(service) / 1e6:,.0f} MB", in_turns(runs, packing))
    warm(space.path("level-6"))
    restore = Table("restore", in_turns(runs, unpacking))
    check = same_tree(service, restored)
    unchanged = Table("again, nothing changed", in_turns(runs, repeating))
    goals = [
        speed_goal(full, "holdfast, level 6", _PIGZ),
        speed_goal(full, "holdfast, level 9", _PIGZ),
        speed_goal(restore, "holdfast", _TAR),
        limit_goal("holdfast: unchanged", unchanged.rows[0].wall, _UNCHANGED_LIMIT, "s"),
    ]
    return Result("small-files", [full, unchanged, restore], goals, [check])
