"""Whatever else is at work, or interrupts it, a backup that was made stays one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conformance.trees import assert_holds, file, models, noise, plan_of, store, store_source
from forks import scratch
from holdfast.errors import SizeLimitExceeded, StorageError
from holdfast.repository import _lists as lists
from holdfast.repository.dedup._known import Known
from holdfast.repository.dedup.repository import DedupRepository
from repository.dedup.grounds import DedupGround

TREES = models(file("files/models/x", noise(700_000, 1)))


@pytest.fixture
def ground() -> Iterator[DedupGround]:
    with scratch() as top:
        yield DedupGround(top)


def first_time(before: Callable[[], object], function: Callable[..., Any]) -> Callable[..., Any]:
    """As `function`; but the first time `before` happens between what it finds and its return."""
    waiting = [before]

    def meanwhile(*args: Any, **named: Any) -> Any:
        found = function(*args, **named)
        if waiting:
            waiting.pop()()
        return found

    return meanwhile


def test_a_run_that_ends_while_others_clean_up_is_left_alone(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    begun = ground.repository().begin(plan_of(TREES))
    run = begun.__enter__()
    store_source(run, ("models", "main"), TREES["models", "main"])

    def end() -> None:
        made.append(run.commit(warnings=0, duration_seconds=0))
        begun.__exit__(None, None, None)

    cleaner = ground.repository()
    monkeypatch.setattr(cleaner, "backups", first_time(end, cleaner.backups))
    assert cleaner.clean() == []
    assert ground.repository().find("latest") == made[0]
    assert_holds(ground.repository(), made[0], TREES)


def test_the_key_of_a_run_that_begins_while_packs_are_freed_stays(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(ground.repository(), TREES)
    ground.clock.forward()
    trees = models(file("files/models/x", noise(700_000, 2)))
    begun = ground.repository().begin(plan_of(trees))
    runs = []
    freeing = ground.repository()
    monkeypatch.setattr(
        freeing, "_manifest", first_time(lambda: runs.append(begun.__enter__()), freeing._manifest)
    )
    freeing.collect()
    store_source(runs[0], ("models", "main"), trees["models", "main"])
    metadata = runs[0].commit(warnings=0, duration_seconds=0)
    begun.__exit__(None, None, None)
    assert_holds(ground.repository(), metadata, trees)


def test_a_run_that_is_interrupted_as_it_notes_a_pack_leaves_nothing_that_cannot_be_read(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Known.add

    def interrupted(self: Known, *args: Any) -> None:
        add(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Known, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store(ground.repository(), TREES)
    ground.clock.forward()
    assert_holds(ground.repository(), store(ground.repository(), TREES), TREES)


def test_a_run_that_others_took_for_dead_as_it_began_is_at_work_all_the_same(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = ground.repository()
    others = ground.repository()
    monkeypatch.setattr(repository, "reserve", first_time(others.clean, repository.reserve))
    with repository.begin(plan_of(TREES)) as run:
        (record,) = ground.repository().backups()
        assert (record.backup_id, record.status) == (run.backup_id, "running")
        assert others.clean() == []
        store_source(run, ("models", "main"), TREES["models", "main"])
        metadata = run.commit(warnings=0, duration_seconds=0)
    assert_holds(ground.repository(), metadata, TREES)


@pytest.mark.parametrize("error", [StorageError("no answer"), KeyboardInterrupt()])
def test_what_goes_wrong_after_the_metadata_takes_no_backup_back(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(lists, "forget_old", fails)
        try:
            store(ground.repository(), TREES)
        except KeyboardInterrupt:
            assert isinstance(error, KeyboardInterrupt)
    assert_holds(ground.repository(), ground.repository().find("latest"), TREES)


def test_packs_of_a_run_that_grew_too_large_stay_while_another_takes_them_for_present(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = ground.repository().begin(plan_of(TREES, max_bytes=500_000))
    ground_run = large.__enter__()
    monkeypatch.setattr("holdfast.repository.dedup._chunk_store.ChunkStore.check_size", lambda *_: None)
    store_source(ground_run, ("models", "main"), TREES["models", "main"])
    ground_run.store.finish()
    ground.clock.forward(1)
    with ground.repository().begin(plan_of(TREES)) as run:
        store_source(run, ("models", "main"), TREES["models", "main"])
        check = DedupRepository._check_there

        def meanwhile(self: DedupRepository, *args: Any) -> None:
            check(self, *args)
            error = SizeLimitExceeded("too large")
            assert large.__exit__(SizeLimitExceeded, error, None) is False

        monkeypatch.setattr(DedupRepository, "_check_there", meanwhile)
        metadata = run.commit(warnings=0, duration_seconds=0)
    assert_holds(ground.repository(), metadata, TREES)


def test_entries_that_are_kept_out_of_order_are_refused(ground: DedupGround) -> None:
    trees = models(file("files/models/b", b"b"))
    parent = store(ground.repository(), trees)
    ground.clock.forward()

    def out_of_order() -> None:
        with ground.repository().begin(plan_of(trees, parent=parent)) as run:
            run.begin_source("models", "main")
            run.add(file("files/models/c", b"c").entry, None, None)
            known = run.known("files/models/b")
            assert known is not None
            run.keep(known)

    with pytest.raises(Exception, match="out of order"):
        out_of_order()
