"""Which backups there are, and who may touch them: part of what every `Repository` promises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from conformance.ground import Ground, ignore_progress, in_child
from conformance.trees import assert_holds, file, models, read_back, store, store_source
from holdfast.errors import BackupNotFound, LockHeld, ParentMissing, RepositoryError, UsageError
from holdfast.model import BackupMetadata
from holdfast.repository.base import RunPlan


class CatalogSuite:
    """Which backups there are, and who may touch them."""

    @pytest.fixture
    def ground(self) -> Ground:
        raise NotImplementedError

    def make(self, ground: Ground, number: int, parent: BackupMetadata | None = None) -> BackupMetadata:
        metadata = store(ground.repository(), models(file("files/models/a", b"%d" % number)), parent=parent)
        ground.clock.forward()
        return metadata

    def test_backups_are_listed_newest_first(self, ground: Ground) -> None:
        assert ground.repository().backups() == []
        full = self.make(ground, 1)
        incremental = self.make(ground, 2, full)
        other = store(ground.repository(), models(file("files/models/a", b"3")), type_="models")
        assert ground.repository().backups() == [other, incremental, full]
        assert ground.repository().backups("full") == [full]
        assert ground.repository().backups("incremental") == [incremental]
        assert ground.repository().backups("models") == [other]
        assert ground.repository().backups("config") == []

    def test_a_backup_is_found_by_latest_its_id_or_a_prefix(self, ground: Ground) -> None:
        full = self.make(ground, 1)
        incremental = self.make(ground, 2, full)
        repository = ground.repository()
        assert repository.find("latest") == incremental
        assert repository.find(full.backup_id) == full
        assert repository.find("full") == full
        assert repository.find(incremental.backup_id[:-1]) == incremental

    def test_a_prefix_of_several_ids_is_refused_and_names_them(self, ground: Ground) -> None:
        one, two = self.make(ground, 1), self.make(ground, 2)
        with pytest.raises(UsageError, match=f"{two.backup_id}, {one.backup_id}"):
            ground.repository().find("full_2024")

    @pytest.mark.parametrize(
        "reference",
        ["", "nothing", "full_20240101_0200001", "full_19990101_000000", "../../etc/passwd", "full_*", "\0"],
    )
    def test_an_unknown_reference_is_not_found(self, ground: Ground, reference: str) -> None:
        self.make(ground, 1)
        with pytest.raises(BackupNotFound):
            ground.repository().find(reference)

    def test_there_is_no_latest_before_the_first(self, ground: Ground) -> None:
        with pytest.raises(BackupNotFound, match="no backup yet"):
            ground.repository().find("latest")

    def test_a_failed_run_is_recorded_and_never_found(self, ground: Ground) -> None:
        good = self.make(ground, 1)
        with pytest.raises(RuntimeError), ground.repository().begin(RunPlan("full", ("models",), None)):
            raise RuntimeError("the disk is on fire")
        failed, *others = ground.repository().backups()
        assert others == [good]
        assert failed.status == "failed"
        assert not failed.is_good
        assert "on fire" in (failed.error_message or "")
        assert ground.repository().find("latest") == good
        assert ground.repository().find("full") == good
        with pytest.raises(BackupNotFound, match="on fire"):
            ground.repository().find(failed.backup_id)

    def test_an_incremental_whose_parent_is_gone_says_which_it_needs(self, ground: Ground) -> None:
        full = self.make(ground, 1)
        middle = self.make(ground, 2, full)
        last = self.make(ground, 3, middle)
        ground.repository().delete(middle)
        for refused in (
            lambda: ground.repository().chain(last),
            lambda: read_back(ground.repository(), last),
            lambda: ground.repository().verify(last, deep=True, progress=ignore_progress),
        ):
            with pytest.raises(ParentMissing, match=f"{last.backup_id} rests on {middle.backup_id}"):
                refused()
        assert_holds(ground.repository(), full, models(file("files/models/a", b"1")))

    def test_a_deleted_backup_is_gone_and_no_other(self, ground: Ground) -> None:
        one, two = self.make(ground, 1), self.make(ground, 2)
        ground.repository().delete(two)
        assert ground.repository().backups() == [one]
        assert not any(path.exists() for path in ground.files_of(two))
        assert ground.strays() == []
        assert_holds(ground.repository(), one, models(file("files/models/a", b"1")))
        ground.repository().delete(two)

    def test_a_pin_leaves_what_a_later_version_has_written(self, ground: Ground) -> None:
        metadata = self.make(ground, 1)
        path = ground.files_of(metadata)[-1]
        path.write_text(path.read_text().replace("{", '{\n  "of_tomorrow": [1, {"a": null}],', 1))
        ground.repository().set_pinned(metadata, True)
        assert json.loads(path.read_text())["of_tomorrow"] == [1, {"a": None}]

    def test_a_pin_lasts_until_it_is_taken_out(self, ground: Ground) -> None:
        metadata = self.make(ground, 1)
        pinned = ground.repository().set_pinned(metadata, True)
        assert pinned == replace(metadata, pinned=True) == ground.repository().find("latest")
        ground.repository().verify(pinned, deep=True, progress=ignore_progress)
        assert ground.repository().set_pinned(pinned, False) == metadata == ground.repository().find("latest")

    def test_a_taken_second_gives_the_next_free_one(self, ground: Ground) -> None:
        trees = models(file("files/models/a", b"1"))
        made = [store(ground.repository(), trees) for _ in range(3)]
        assert [metadata.backup_id[-2:] for metadata in made] == ["00", "01", "02"]
        assert [metadata.timestamp[-2:] for metadata in made] == ["00", "01", "02"]
        assert ground.repository().backups() == made[::-1]

    def test_a_clock_set_back_gives_ids_of_its_own_and_harms_nothing(self, ground: Ground) -> None:
        one = self.make(ground, 1)
        ground.clock.forward(-7200)
        two = self.make(ground, 2)
        three = self.make(ground, 3, two)
        assert len({one.backup_id, two.backup_id, three.backup_id}) == 3
        stamps = [metadata.timestamp for metadata in ground.repository().backups()]
        assert stamps == sorted(stamps, reverse=True)
        for number, metadata in enumerate((one, two, three), 1):
            assert_holds(ground.repository(), metadata, models(file("files/models/a", b"%d" % number)))

    def test_a_second_run_in_another_process_is_refused_at_once(self, ground: Ground) -> None:
        full = self.make(ground, 1)
        held = []

        def hold() -> None:
            run = ground.repository().begin(RunPlan("full", ("models",), None))
            run.__enter__()
            held.append(run)

        with in_child(hold):
            with pytest.raises(LockHeld), ground.repository().begin(RunPlan("full", ("models",), None)):
                pytest.fail("two runs at once")
            with pytest.raises(LockHeld), ground.repository().expiring():
                pytest.fail("backups were deleted beside a run")
            with ground.repository().lent():
                assert_holds(ground.repository(), full, models(file("files/models/a", b"1")))
        # The lock dies with its process.
        self.make(ground, 2)

    def test_nothing_is_deleted_while_another_process_reads(self, ground: Ground) -> None:
        self.make(ground, 1)
        held = []

        def hold() -> None:
            lent = ground.repository().lent()
            lent.__enter__()
            held.append(lent)

        with in_child(hold):
            with pytest.raises(LockHeld), ground.repository().expiring():
                pytest.fail("backups were deleted while they were read")
            with ground.repository().lent():
                pass
            self.make(ground, 2)
        with ground.repository().expiring():
            pass

    def test_one_run_after_the_other_begins_where_the_first_has_ended(self, ground: Ground) -> None:
        plan = RunPlan("full", ("models",), None)
        with ground.repository().begin(plan) as run:
            trees = models(file("files/models/a", b"1"))
            store_source(run, ("models", "main"), trees["models", "main"])
            metadata = run.commit(warnings=2, duration_seconds=3)
        assert metadata.warnings == 2
        ground.clock.forward()
        assert ground.repository().find("latest") == metadata

    def test_a_copy_has_the_id_and_the_time_of_its_original_and_leaves_nothing_when_it_fails(
        self, ground: Ground
    ) -> None:
        trees = models(file("files/models/a", b"1"))
        original = replace(store(ground.repository(), trees), host="another", pinned=True)
        ground.clock.forward()
        with pytest.raises(RepositoryError, match="another backup has the id"):
            store(ground.repository(), trees, original=original)
        with ground.repository().expiring():
            ground.repository().delete(original)
        plan = RunPlan("full", ("models",), None, original=original)
        with pytest.raises(RuntimeError), ground.repository().begin(plan):
            raise RuntimeError("the disk is on fire")
        assert ground.repository().backups() == []
        copied = store(ground.repository(), trees, original=original)
        for name in ("backup_id", "timestamp", "host", "pinned"):
            assert getattr(copied, name) == getattr(original, name)
        assert original.manifest is not None
        assert copied.identity == original.identity == original.manifest.digest
        assert ground.repository().backups() == [copied]
        assert_holds(ground.repository(), copied, trees)
