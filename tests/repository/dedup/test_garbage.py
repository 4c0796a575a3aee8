"""Packs that nothing needs go, and never one that something needs, whatever else is at work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.ground import ignore_progress
from conformance.trees import (
    Trees,
    assert_holds,
    content_of,
    directory,
    file,
    models,
    noise,
    plan_of,
    record,
    store,
    store_source,
)
from forks import scratch
from holdfast.errors import CorruptBackup, RepositoryError
from repository.dedup.grounds import DedupGround

DAY = 25 * 3600


@pytest.fixture
def ground() -> Iterator[DedupGround]:
    with scratch() as top:
        yield DedupGround(top)


def state(seed: int) -> Trees:
    return models(directory("files/models/d"), file("files/models/d/x", noise(700_000, seed)))


def packs(ground: DedupGround) -> set[str]:
    return {path.name for path in (ground.directory / "packs").rglob("*") if path.is_file()}


def marks(ground: DedupGround) -> set[str]:
    return {path.name for path in (ground.directory / "condemned").glob("*")}


def make(ground: DedupGround, trees: Trees) -> Any:
    metadata = store(ground.repository(), trees)
    ground.clock.forward()
    return metadata


def test_what_nothing_needs_is_condemned_and_deleted_a_day_later(ground: DedupGround) -> None:
    old, new = make(ground, state(1)), make(ground, state(2))
    before = packs(ground)
    assert len(before) == 2
    assert ground.repository().collect().deleted == []
    assert marks(ground) == set()
    ground.repository().delete(old)
    assert ground.repository().collect().deleted == []
    assert packs(ground) == before
    (condemned,) = marks(ground)
    ground.clock.forward(3600)
    assert ground.repository().collect().deleted == []
    ground.clock.forward(DAY)
    freed = ground.repository().collect().deleted
    run = condemned.partition("-")[0]
    assert freed == [f"packs/{run[:2]}/{condemned}", f"index/{run}-0", f"keys/{run}.json"]
    assert packs(ground) == before - {condemned}
    assert marks(ground) == set()
    assert_holds(ground.repository(), new, state(2))
    ground.repository().verify(new, deep=True, progress=ignore_progress)


def test_a_run_takes_nothing_for_present_that_is_condemned(ground: DedupGround) -> None:
    ground.repository().delete(make(ground, state(1)))
    ground.repository().collect()
    again = make(ground, state(1))
    assert again.size_bytes > 600_000
    ground.clock.forward(DAY)
    assert len(ground.repository().collect().deleted) >= 1
    assert_holds(ground.repository(), again, state(1))
    ground.repository().verify(again, deep=True, progress=ignore_progress)


@pytest.mark.parametrize("deleted", ["before", "while"])
def test_a_run_that_began_before_keeps_what_it_takes_for_present(ground: DedupGround, deleted: str) -> None:
    old = make(ground, state(1))
    if deleted == "before":
        ground.repository().delete(old)
    trees = state(1)
    nodes = trees["models", "main"]
    with ground.repository().begin(plan_of(trees)) as run:
        ground.clock.forward(60)
        if deleted == "while":
            ground.repository().delete(old)
        run.begin_source("models", "main")
        for number, (path, node) in enumerate(nodes.items()):
            if number == 1:
                assert ground.repository().collect().deleted == []
                assert len(marks(ground)) == 1
                ground.clock.forward(DAY)
                assert ground.repository().collect().deleted == []
            run.add(node.entry, content_of(node), run.known(path))
        run.end_source(record(("models", "main"), nodes))
        metadata = run.commit(warnings=0, duration_seconds=0)
    assert metadata.size_bytes < 10_000
    assert ground.repository().collect().deleted == []
    assert marks(ground) == set()
    assert_holds(ground.repository(), metadata, trees)


def test_a_pack_that_vanished_meanwhile_fails_the_run_and_not_the_restore(ground: DedupGround) -> None:
    make(ground, state(1))
    trees = state(1)

    def run_beside_a_deletion() -> None:
        with ground.repository().begin(plan_of(trees)) as run:
            store_source(run, ("models", "main"), trees["models", "main"])
            for path in (ground.directory / "packs").rglob("*-0"):
                path.unlink()
            run.commit(warnings=0, duration_seconds=0)

    with pytest.raises(RepositoryError, match="were deleted while it was made"):
        run_beside_a_deletion()
    ground.clock.forward()
    again = make(ground, trees)
    assert_holds(ground.repository(), again, trees)


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_manifest_without_metadata_stops_it(ground: DedupGround, damage: str) -> None:
    metadata = make(ground, state(1))
    path = ground.files_of(metadata)[-1]
    if damage == "lost":
        path.unlink()
    else:
        path.write_text("{")
    with pytest.raises(CorruptBackup, match="no metadata"):
        ground.repository().collect()
    assert marks(ground) == set()


def test_a_mark_that_is_damaged_is_told(ground: DedupGround) -> None:
    ground.repository().delete(make(ground, state(1)))
    ground.repository().collect()
    (mark,) = marks(ground)
    Path(ground.directory, "condemned", mark).write_text(json.dumps({"since": 5}))
    with pytest.raises(CorruptBackup, match="since when"):
        ground.repository().collect()


def test_what_is_not_ours_is_left_alone(ground: DedupGround) -> None:
    metadata = make(ground, state(1))
    pack = ground.files_of(metadata)[0]
    ground.repository().delete(metadata)
    strays = [pack.with_name(".nfs0001"), ground.directory / "keys/notes.json"]
    for stray in strays:
        stray.write_bytes(b"")
    for _ in range(2):
        ground.repository().collect()
        ground.clock.forward(DAY)
    assert not pack.exists()
    assert all(stray.exists() for stray in strays)


def test_a_backup_that_cannot_be_opened_stops_it_and_is_named(ground: DedupGround) -> None:
    made = store(ground.repository(), models(file("files/models/a", noise(9000, 1))))
    ground.clock.forward()
    (ground.directory / f"full/{made.backup_id}.manifest").write_bytes(b"damaged")
    with pytest.raises(CorruptBackup, match=f"nothing is freed.*{made.backup_id} needs") as caught:
        ground.repository().collect()
    assert f"full/{made.backup_id}.manifest" in caught.value.hint
