"""Chunks are freed, not only packs: what is needed of a pack is written anew, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.ground import ignore_progress
from conformance.trees import Trees, assert_holds, directory, file, models, noise, store
from forks import scratch
from holdfast.model import BackupMetadata
from repository.dedup.grounds import DedupGround

DAY = 25 * 3600


@pytest.fixture
def ground() -> Iterator[DedupGround]:
    with scratch() as top:
        yield DedupGround(top, encrypt=True)


def state(*seeds: int, size: int = 200_000) -> Trees:
    return models(
        directory("files/models/d"),
        *(file(f"files/models/d/{seed:03}", noise(size, seed)) for seed in sorted(seeds)),
    )


def make(ground: DedupGround, trees: Trees, parent: BackupMetadata | None = None) -> BackupMetadata:
    metadata = store(ground.repository(), trees, parent=parent)
    ground.clock.forward()
    return metadata


def collect_all(ground: DedupGround) -> None:
    """As often as it takes until there is no more to free."""
    for _ in range(4):
        ground.repository().collect()
        ground.clock.forward(DAY)


def stored_bytes(ground: DedupGround) -> int:
    return sum(path.stat().st_size for path in (ground.directory / "packs").rglob("*") if path.is_file())


def packs(ground: DedupGround) -> set[str]:
    return {path.name for path in (ground.directory / "packs").rglob("*") if path.is_file()}


def marks(ground: DedupGround) -> set[str]:
    return {path.name for path in (ground.directory / "moved").glob("*")}


def assert_good(ground: DedupGround, metadata: BackupMetadata, trees: Trees) -> None:
    assert_holds(ground.repository(), metadata, trees)
    for deep in (False, True):
        ground.repository().verify(metadata, deep=deep, progress=ignore_progress)


def test_what_stays_of_a_pack_is_written_anew_and_the_rest_freed(ground: DedupGround) -> None:
    first = make(ground, state(*range(10)))
    kept = make(ground, state(3, 4))
    ground.repository().delete(first)
    before = stored_bytes(ground)
    done = ground.repository().collect()
    assert (done.rewritten, done.deleted) == (1, [])
    assert done.written_bytes < 500_000
    assert done.later_bytes > 1_900_000
    assert_good(ground, kept, state(3, 4))
    ground.clock.forward(DAY)
    done = ground.repository().collect()
    assert done.rewritten == 0
    assert done.freed_bytes > 1_900_000
    assert stored_bytes(ground) < before / 4
    assert_good(ground, kept, state(3, 4))
    collect_all(ground)
    assert_good(ground, kept, state(3, 4))
    ground.repository().delete(kept)
    collect_all(ground)
    assert (packs(ground), marks(ground)) == (set(), set())
    assert {path.name for name in ("keys", "index") for path in (ground.directory / name).iterdir()} == set()


def test_small_packs_are_joined(ground: DedupGround) -> None:
    made = [make(ground, state(*range(seed), size=20_000)) for seed in range(1, 12)]
    assert len(packs(ground)) == 11
    collect_all(ground)
    assert len(packs(ground)) == 1
    for number, metadata in enumerate(made, 1):
        assert_good(ground, metadata, state(*range(number), size=20_000))
    # A second time there is nothing to gain.
    assert ground.repository().collect().rewritten == 0


def test_the_next_backup_stores_nothing_anew(ground: DedupGround) -> None:
    first = make(ground, state(*range(10)))
    kept = make(ground, state(3, 4))
    ground.repository().delete(first)
    ground.repository().collect()
    again = make(ground, state(3, 4, 5), parent=kept)
    assert 200_000 < again.size_bytes < 210_000
    collect_all(ground)
    for metadata, trees in ((kept, state(3, 4)), (again, state(3, 4, 5))):
        assert_good(ground, metadata, trees)
