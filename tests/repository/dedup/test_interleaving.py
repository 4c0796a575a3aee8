"""Backups, expiry and `gc` of several hosts, in any order and between each other's steps: nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conformance.trees import file, models, noise
from forks import scratch
from holdfast.repository.dedup import _pack_writer, _rewrite, _sparse
from holdfast.storage.memory import Crashed, Faults
from repository.dedup.worlds import DAY, World, some_trees, tensors


@pytest.fixture
def top(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Small packs, so that a run has several, and a few of them are joined.
    monkeypatch.setattr(_pack_writer, "BLOCK_SIZE", 50_000)
    monkeypatch.setattr(_sparse, "JOINED", 3)
    monkeypatch.setattr(_rewrite, "BATCH", 150_000)
    monkeypatch.setattr(_pack_writer, "PACK_SIZE", 200_000)
    monkeypatch.setattr(_sparse, "PACK_SIZE", 200_000)
    with scratch() as found:
        yield found


def play(world: World, draw: random.Random, steps: int) -> None:
    """So many things happen. Runs stay open while other things do."""
    with ExitStack() as stack:
        open_runs: list[tuple[ExitStack, Iterator[None]]] = []
        for _ in range(steps):
            host = draw.choice(world.hosts)
            match draw.choices(
                ["begin", "go on", "end", "expire", "gc", "wait", "look"], [4, 3, 4, 3, 4, 3, 1]
            )[0]:
                case "begin" if len(open_runs) < 2:
                    parent = host.last if host.last and host.last.backup_id in world.backups else None
                    run = stack.enter_context(ExitStack())
                    steps_of = run.enter_context(
                        world.backing_up(host, some_trees(draw), draw.choice([parent, None]))
                    )
                    open_runs.append((run, steps_of))
                    world.clock.forward(1)
                case "go on" if open_runs:
                    next(draw.choice(open_runs)[1], None)
                case "end" if open_runs:
                    open_runs.pop(draw.randrange(len(open_runs)))[0].close()
                    world.clock.forward(1)
                case "expire" if len(world.backups) > 2:
                    for backup_id in draw.sample(sorted(world.backups), len(world.backups) // 2):
                        world.expire(backup_id)
                case "gc":
                    with host.repository().expiring():
                        host.repository().collect()
                    world.clock.forward(1)
                case "wait":
                    world.clock.forward(draw.choice([60, 3600, DAY, DAY]))
                case "look":
                    world.assert_good(host)
    world.assert_good(deep=True)


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(5, 400))]
)
def test_nothing_is_lost_whatever_happens_in_between(top: Path, seed: int) -> None:
    draw = random.Random(seed)
    world = World(top)
    play(world, draw, 100)
    for _ in range(6):
        world.hosts[0].repository().collect()
        world.clock.forward(DAY)
        world.assert_good()
    for backup_id in sorted(world.backups):
        world.expire(backup_id)
    for _ in range(3):
        world.hosts[1].repository().collect()
        world.clock.forward(DAY)
    assert not any(world.names(prefix) for prefix in ("packs/", "index/", "keys/", "condemned/", "moved/"))


def worn(world: World) -> None:
    """Much of what is stored is of no use any more, differences and their bases among it."""
    own, other = world.hosts
    files = [file(f"files/models/a{seed:02}", noise(20_000, seed)) for seed in range(16)]
    tuned = [file(f"files/models/t{n}.safetensors", tensors(1, n)) for n in range(3)]
    bases = world.back_up(own, models(*files[:8], tuned[0]))
    world.back_up(own, models(*files[:2], tuned[1]))
    several = world.back_up(own, models(*files[3:6], tuned[1], tuned[2]))
    for number in range(10, 14):
        world.back_up(own, models(files[number]))
    foreign = world.back_up(other, models(*files, tuned[1]))
    world.back_up(other, models(*files[6:9]))
    for gone in (bases, several, foreign):
        world.expire(gone.backup_id)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.torture)])
@pytest.mark.parametrize("stage", range(3))
def test_a_gc_that_is_killed_leaves_everything_whole_and_the_next_one_goes_on(
    top: Path, stage: int, every: int
) -> None:
    world = World(top)
    worn(world)
    own, other = world.hosts

    def collect(faults: Faults | None = None) -> None:
        own.repository(faults).collect()

    for _ in range(stage):
        collect()
        world.clock.forward(DAY)
        if stage == 2:
            world.expire(min(world.backups))
            world.back_up(own, models(file("files/models/new", noise(30_000, 77))))
    with world.kept() as put_back:
        counting = Faults()
        collect(counting)
        changes = {verb: counting.calls[verb] for verb in ("create", "publish", "put", "delete")}
        put_back()
        for _ in range(5):
            world.clock.forward(DAY)
            collect()
        least = world.stored_bytes()
        for verb, calls in changes.items():
            for at in range(1 + stage, calls + 1, every):
                put_back()
                faults = Faults()
                faults.crash(verb, at=at, done=at % 2 == 0)
                with pytest.raises(Crashed):
                    collect(faults)
                world.assert_good()
                world.back_up(own, models(file("files/models/a01", noise(20_000, 1))))
                for _ in range(5):
                    world.clock.forward(DAY)
                    collect()
                world.assert_good(other, deep=True)
                assert world.stored_bytes() < 1.2 * least + 25_000


@pytest.mark.parametrize("every", [60, pytest.param(1, marks=pytest.mark.torture)])
@pytest.mark.parametrize("what", ["begins", "ends", "is made"])
def test_a_backup_that_a_gc_comes_between_is_whole(top: Path, what: str, every: int) -> None:
    """It takes for present what was there when it began: also what nobody else needs any more."""
    world = World(top)
    worn(world)
    own, _ = world.hosts
    own.repository().collect()
    world.clock.forward(DAY)
    trees = models(
        *(file(f"files/models/a{seed:02}", noise(20_000, seed)) for seed in range(1, 8)),
        file("files/models/t2.safetensors", tensors(1, 2)),
    )
    with world.kept() as put_back:
        calls = at = 0
        while at <= calls:
            put_back()
            calls = 0
            with ExitStack() as after:
                run = world.backing_up(own, trees)
                if what == "ends":
                    next(after.enter_context(run))
                    world.clock.forward(1)

                def between(run: Any = run, after: ExitStack = after, at: int = at) -> None:
                    nonlocal calls
                    calls += 1
                    if calls != at + 1:
                        return
                    world.clock.forward(1)
                    if what == "begins":
                        next(after.enter_context(run))
                    elif what == "ends":
                        after.close()
                    else:
                        world.back_up(own, trees)
                    world.clock.forward(1)

                own.repository(between=between).collect()
            world.assert_good()
            for _ in range(4):
                world.clock.forward(DAY)
                own.repository().collect()
            world.assert_good(deep=True)
            at += every


def test_the_packs_of_a_run_at_work_rest_on_what_they_were_made_from(top: Path) -> None:
    """Nobody else needs the base that a run has found. It is not among what is written anew meanwhile."""
    world = World(top, hosts=1)
    (host,) = world.hosts
    files = [file(f"files/models/n{number:02}", noise(20_000, number)) for number in range(110)]
    tuned = [file(f"files/models/a{number}.safetensors", tensors(1, number)) for number in range(2)]
    bases = world.back_up(host, models(tuned[0], *files[:4]))
    world.back_up(host, models(*files[:1]))
    world.expire(bases.backup_id)
    with world.backing_up(host, models(tuned[1], *files[4:])) as steps:
        world.clock.forward(1)
        for _ in range(100):  # By then its first pack is durable, and remembered.
            next(steps)
        before = world.names("packs/")
        assert host.repository().collect().rewritten == 1
        assert len(world.names("packs/") - before) >= 1
    world.clock.forward(DAY)
    host.repository().collect()
    world.assert_good()
    last = world.back_up(host, models(file("files/models/again.safetensors", tensors(1, 1))))
    assert last.size_bytes < 10_000
    for backup_id in sorted(world.backups.keys() - {last.backup_id}):
        world.expire(backup_id)
    for _ in range(4):
        host.repository().collect()
        world.clock.forward(DAY)
        world.assert_good(deep=True)
