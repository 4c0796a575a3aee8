"""One model of many, put back: how much is read for it."""

from __future__ import annotations

import filecmp
from collections.abc import Collection
from pathlib import Path

from bench.dedup import FORMAT, MEMORY_LIMIT
from bench.measure import Contender, RunFailed, Sample, in_turns
from bench.programs import Holdfast, Peers, Restic
from bench.report import Goal, Result, Table, share_goal
from bench.workspace import Workspace, size_of

_LIMIT = 1.5  # times the model's own size


def one_model(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """`restore --path` beside restic's `--include`.

    Read is what the whole process has, its own modules included; what it takes to list the backups is taken off."""
    service = space.models()
    models = sorted((service / "models").iterdir())
    model = models[len(models) // 2].relative_to(service)
    holdfast = Holdfast(service, space.fresh("holdfast"), encrypt=True, environ=FORMAT)
    holdfast.backup("--component=models")

    def restore() -> Sample:
        target = space.fresh("restored") / "service"
        return holdfast.run("restore", "latest", "--path", str(model), "--target", str(target))

    restoring = [Contender("holdfast", restore)]
    starting = [Contender("holdfast", lambda: holdfast.run("list"))]
    if peers.have("restic"):
        restic = Restic(peers.programs["restic"], space.fresh("restic"))
        restic.backup(service)

        def theirs() -> Sample:
            return restic.restore(space.fresh("restored-restic"), "--include", f"/{model}")

        restoring.append(Contender("restic", theirs, is_peer=True))
        starting.append(Contender("restic", restic.list, is_peer=True))

    title = f"one model of {size_of(service) / len(models) / 1e6:.1f} MB out of {len(models)}"
    restored = Table(title, in_turns(runs, restoring), reading=True)
    started = Table("list the backups", in_turns(runs, starting), reading=True)
    check = _check(service, space.path("restored") / "service", model)
    goals = [_reading_goal(restored, started, (service / model).stat().st_size)]
    goals.append(share_goal(restored, "holdfast", "wall", 1))
    return Result("one-model", [restored, started], goals, [check], MEMORY_LIMIT)


def _reading_goal(restored: Table, started: Table, size: int) -> Goal:
    text = f"{restored.title}: holdfast reads at most {_LIMIT:g} times the model, start apart"
    told, mine = [], None
    for row, start in zip(restored.rows, started.rows, strict=True):
        if row.read is None or start.read is None:
            continue
        read = row.read - start.read
        told.append(f"{row.name} {read / 1e6:.2f} MB, {read / size:.2f} times")
        mine = mine or read
    return Goal(text, "; ".join(told) or "the system does not tell", mine <= _LIMIT * size if mine else None)


def _check(service: Path, target: Path, model: Path) -> str:
    """That it came back, and nothing else. Raises RunFailed."""
    found = [path.relative_to(target) for path in target.rglob("*") if not path.is_dir()]
    if found != [model] or not filecmp.cmp(service / model, target / model, shallow=False):
        raise RunFailed(f"{target} does not hold {model} as it was, and nothing else")
    return f"holdfast: {model.name} compared with its source; no other model came with it"
