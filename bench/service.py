"""One service, packed, proved and put back: against tar and pigz."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bench.checks import same_tree
from bench.measure import Contender, Sample, in_turns
from bench.programs import EVERYTHING, Borg, Holdfast, Peers, Restic
from bench.report import Goal, Result, Table, size_goal, speed_goal
from bench.workspace import Workspace, size_of, warm

_PIGZ = "tar | pigz -9"
_UNPACK = "pigz -dc | tar x"
_PLAIN, _ENCRYPTED = "holdfast", "holdfast, encrypted"


def archive(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """A full backup at level 9, plain and encrypted, against ``tar | pigz -9``."""
    service = space.service()

    def holdfast(encrypt: bool) -> Sample:
        return Holdfast(service, space.fresh("holdfast"), encrypt=encrypt).backup(*EVERYTHING)

    contenders, goals = [], []
    if "archive-plain" in names:
        contenders.append(Contender(_PLAIN, lambda: holdfast(False)))
    if "archive-encrypted" in names:
        contenders.append(Contender(_ENCRYPTED, lambda: holdfast(True)))
    if peers.have("tar", "pigz"):
        contenders.append(Contender(_PIGZ, lambda: _packed(service, space, peers), is_peer=True))
    if peers.have("restic"):
        restic = peers.programs["restic"]
        contenders.append(
            Contender(
                "restic",
                lambda: Restic(restic, space.fresh("restic")).backup(service),
                is_peer=True,
                once=True,
            )
        )
    if peers.have("borg"):
        borg = peers.programs["borg"]
        contenders.append(
            Contender(
                "borg", lambda: Borg(borg, space.fresh("borg")).backup(service), is_peer=True, once=True
            )
        )
    table = Table(f"full backup of {size_of(service) / 1e6:,.0f} MB", in_turns(runs, contenders))
    if "archive-plain" in names:
        goals += [speed_goal(table, _PLAIN, _PIGZ, 6), size_goal(table, _PLAIN, _PIGZ)]
    if "archive-encrypted" in names:
        goals.append(speed_goal(table, _ENCRYPTED, _PIGZ, 5))
    return Result(", ".join(names), [table], goals)


def reading(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """``verify --deep`` and ``restore``, against unpacking with pigz and tar."""
    service = space.service()
    plain = Holdfast(service, space.fresh("plain"))
    encrypted = Holdfast(service, space.fresh("encrypted"), encrypt=True)
    checks = []
    for holdfast in (plain, encrypted):
        holdfast.backup(*EVERYTHING)
        warm(holdfast.backups)
    if peers.have("gzip"):
        peers.test(plain.archive())
        checks.append("gzip -t finds the archive intact")

    unpacking = []
    if peers.have("tar", "pigz"):
        tarball = _tarball(space)
        if not tarball.exists():
            _packed(service, space, peers)
        warm(tarball)
        unpack = Contender(_UNPACK, lambda: peers.unpack(tarball, space.fresh("unpacked")), is_peer=True)
        unpacking.append(unpack)

    tables: list[Table] = []
    goals: list[Goal] = []
    if "verify-deep" in names:
        contenders = [
            Contender(_PLAIN, lambda: plain.run("verify", "latest", "--deep")),
            Contender(_ENCRYPTED, lambda: encrypted.run("verify", "latest", "--deep")),
        ]
        table = Table("verify --deep", in_turns(runs, [*contenders, *unpacking]))
        tables.append(table)
        goals += [speed_goal(table, contender.name, _UNPACK) for contender in contenders]
    if "restore" in names:
        live = space.copy(service, "live")
        contenders = [
            Contender(_PLAIN, lambda: _elsewhere(plain, space)),
            Contender(_ENCRYPTED, lambda: _elsewhere(encrypted, space)),
            Contender("holdfast, in place", lambda: _in_place(plain.on(live))),
        ]
        table = Table("restore", in_turns(runs, [*contenders, *unpacking]))
        tables.append(table)
        goals += [speed_goal(table, contender.name, _UNPACK) for contender in contenders]
        checks += [
            f"{name}: {same_tree(service, directory)}"
            for name, directory in (("--target", space.path("restored") / "service"), ("in place", live))
        ]
    return Result(", ".join(names), tables, goals, checks)


def _tarball(space: Workspace) -> Path:
    return space.data_file(f"service-{space.scale:g}.tar.gz")


def _packed(service: Path, space: Workspace, peers: Peers) -> Sample:
    unfinished = space.fresh("packed") / "service.tar.gz"
    sample = peers.pack(service, unfinished, 9)
    unfinished.replace(_tarball(space))
    return sample


def _elsewhere(holdfast: Holdfast, space: Workspace) -> Sample:
    return holdfast.run("restore", "latest", "--target", str(space.fresh("restored") / "service"))


def _in_place(holdfast: Holdfast) -> Sample:
    """Over a service that has lost a model and has a setting changed."""
    (holdfast.service / "models/vision.safetensors").unlink()
    (holdfast.service / "config/service.yaml").write_text("revision: 0\n")
    sample = holdfast.run("restore", "latest", "--confirm")
    holdfast.run("undo", "--discard")
    return sample
