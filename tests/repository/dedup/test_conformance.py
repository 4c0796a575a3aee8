from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.catalog import CatalogSuite
from conformance.faults import DamageSuite, InterruptedRunSuite, KilledRunSuite
from conformance.ground import Ground, ignore_progress, in_child
from conformance.repository import RepositorySuite
from conformance.trees import assert_holds, file, models
from forks import scratch
from holdfast.repository.base import RunPlan
from repository.dedup.grounds import DedupGround


@pytest.fixture
def top() -> Iterator[Path]:
    """In memory, where that is possible: what is proved here does not depend on a disk."""
    with scratch() as directory:
        yield directory


class Plain:
    @pytest.fixture
    def ground(self, top: Path) -> DedupGround:
        return DedupGround(top)


class Encrypted:
    @pytest.fixture
    def ground(self, top: Path) -> DedupGround:
        return DedupGround(top, encrypt=True)


class TestStoring(Plain, RepositorySuite):
    pass


class TestStoringEncrypted(Encrypted, RepositorySuite):
    pass


class TestCatalog(Plain, CatalogSuite):
    def test_a_second_run_in_another_process_is_refused_at_once(self, ground: Ground) -> None:
        """Here it is not: several write at once, and backups may be deleted beside them."""
        full = self.make(ground, 1)
        held = []

        def hold() -> None:
            run = ground.repository().begin(RunPlan("full", ("models",), None))
            run.__enter__()
            held.append(run)

        with in_child(hold):
            second = self.make(ground, 2)
            assert [known.status for known in ground.repository().backups()].count("running") == 1
            with ground.repository().expiring():
                ground.repository().delete(full)
            assert_holds(ground.repository(), second, models(file("files/models/a", b"2")))
        # What is left of the run that was killed is told as a failure by the next one.
        third = self.make(ground, 3)
        assert [known.status for known in ground.repository().backups()].count("failed") == 1
        assert_holds(ground.repository(), third, models(file("files/models/a", b"3")))

    def test_an_incremental_whose_parent_is_gone_says_which_it_needs(self, ground: Ground) -> None:
        """Here it needs none."""
        full = self.make(ground, 1)
        middle = self.make(ground, 2, full)
        last = self.make(ground, 3, middle)
        ground.repository().delete(middle)
        ground.repository().verify(last, deep=True, progress=ignore_progress)
        assert_holds(ground.repository(), last, models(file("files/models/a", b"3")))
        assert_holds(ground.repository(), full, models(file("files/models/a", b"1")))

    def test_a_deleted_backup_is_gone_and_no_other(self, ground: Ground) -> None:
        """But for its packs, which `gc` deletes."""
        one, two = self.make(ground, 1), self.make(ground, 2)
        *_, manifest, metadata = ground.files_of(two)
        ground.repository().delete(two)
        assert ground.repository().backups() == [one]
        assert not manifest.exists()
        assert not metadata.exists()
        assert ground.strays() == []
        assert_holds(ground.repository(), one, models(file("files/models/a", b"1")))
        ground.repository().delete(two)


class TestInterruptedRun(Plain, InterruptedRunSuite):
    pass


class TestKilledRun(Plain, KilledRunSuite):
    pass


class TestDamage(Plain, DamageSuite):
    pass


class TestDamageEncrypted(Encrypted, DamageSuite):
    pass
