from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from conformance.trees import Clock
from forks import run_child, scratch
from holdfast.durable import file_lock
from holdfast.errors import Interrupted, JournalRefused, LockHeld, NothingToUndo, RestoreError
from holdfast.sources.files._swap import RenameSwap
from holdfast.transaction import KEEP_FOR, Kept, Transaction, discard, is_place_name, kept, recover, undo
from sources.disk import places


class Trouble(RenameSwap):
    """A swap that fails once, after it has done its work, at a step that it is told."""

    kind = "trouble"
    fails: ClassVar[dict[str, BaseException]] = {}

    def apply(self) -> None:
        super().apply()
        _fail("apply")

    def revert(self) -> None:
        _fail("revert")
        super().revert()

    def settle(self) -> None:
        _fail("settle")
        super().settle()


def _fail(step: str) -> None:
    if step in Trouble.fails:
        raise Trouble.fails.pop(step)


KINDS = {RenameSwap.kind: RenameSwap, Trouble.kind: Trouble}


class Service:
    """A directory with data, and restores over it."""

    def __init__(self, path: Path) -> None:
        self.state = path / "state"
        self.root = path / "service"
        self.root.mkdir()
        self.clock = Clock()
        self.write("models", "old models")
        self.write(".env", "old env")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def data(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.root.iterdir() if not is_place_name(path.name)}

    def places(self) -> list[str]:
        return places(self.root)

    def begin(self, subject: str = "full_20240101_020000") -> Any:
        return Transaction.begin(self.state, KINDS, verb="restore", subject=subject, clock=self.clock)

    def restore(
        self, data: dict[str, str], *, kind: type[RenameSwap] = RenameSwap, subject: str = ""
    ) -> None:
        with self.begin(subject or "full_20240101_020000") as transaction:
            swaps = [self.stage(transaction, name, text, kind) for name, text in data.items()]
            assert transaction.apply(swaps) == ()

    def stage(
        self, transaction: Transaction, name: str, text: str, kind: type[RenameSwap] = RenameSwap
    ) -> RenameSwap:
        place = transaction.place(self.root)
        (place / "staged").mkdir()
        (place / "staged" / name).write_text(text)
        return kind.prepare(place, [name])

    def recover(self) -> Any:
        return recover(self.state, KINDS, self.clock())

    def undo(self) -> Kept:
        return undo(self.state, KINDS, clock=self.clock)


OLD = {"models": "old models", ".env": "old env"}
NEW = {"models": "new models", ".env": "new env"}


@pytest.fixture
def service() -> Iterator[Service]:
    Trouble.fails = {}
    with scratch() as directory:
        yield Service(directory)
    assert not Trouble.fails, "a failure that was asked for did not come"


def test_what_was_applied_is_live_and_can_be_taken_back(service: Service) -> None:
    service.restore(NEW)
    assert service.data() == NEW
    assert kept(service.state) == Kept("restore", "full_20240101_020000", service.clock.now)
    assert service.recover() is None
    assert service.undo().subject == "full_20240101_020000"
    assert service.data() == OLD


def test_undo_can_be_taken_back_in_turn(service: Service) -> None:
    service.restore(NEW | {"added": "new"})
    for data in (OLD, NEW | {"added": "new"}, OLD):
        service.undo()
        assert service.data() == data
    assert kept(service.state) == Kept("undo", "full_20240101_020000", service.clock.now)


def test_undo_keeps_what_was_written_since_the_restore(service: Service) -> None:
    service.restore(NEW)
    service.write("models", "written since")
    service.undo()
    assert service.data() == OLD
    service.undo()
    assert service.data() == NEW | {"models": "written since"}


@pytest.mark.parametrize("error", [RestoreError("no"), KeyboardInterrupt(), OSError(5, "no")])
def test_an_error_while_staging_leaves_everything_as_it_was(service: Service, error: BaseException) -> None:
    def restore() -> None:
        with service.begin() as transaction:
            service.stage(transaction, "models", "new models")
            raise error

    with pytest.raises(type(error)):
        restore()
    assert service.data() == OLD
    assert service.places() == []
    assert kept(service.state) is None
    assert service.recover() is None


@pytest.mark.parametrize("error", [RestoreError("no"), KeyboardInterrupt(), OSError(5, "no")])
def test_an_error_while_applying_takes_back_what_was_applied(service: Service, error: BaseException) -> None:
    Trouble.fails = {"apply": error}
    with pytest.raises(type(error)):
        service.restore(NEW | {"added": "new"}, kind=Trouble)
    assert service.data() == OLD
    assert service.places() == []


def test_leaving_without_applying_takes_the_staging_away(service: Service) -> None:
    with service.begin() as transaction:
        service.stage(transaction, "models", "new models")
    assert service.data() == OLD
    assert service.places() == []
    assert service.recover() is None


def test_a_swap_that_cannot_be_reverted_is_told_and_reverted_later(service: Service) -> None:
    Trouble.fails = {"apply": RestoreError("the disk is loose"), "revert": OSError(5, "the disk is gone")}
    with pytest.raises(
        RestoreError, match=r"the disk is loose.*could not be put back.*the disk is gone"
    ) as told:
        service.restore({"models": "new models"}, kind=Trouble)
    assert "holdfast recover" in told.value.hint
    assert service.data() == OLD | {"models": "new models"}
    # As long as that lasts, every command names what is unfinished, and not only what the server or the disk says.
    Trouble.fails = {"revert": OSError(5, "the disk is still gone")}
    with pytest.raises(RestoreError, match=r"the restore of full_20240101_020000 was cut short.*still gone"):
        service.recover()
    assert service.recover().message == (
        "The restore of full_20240101_020000 was cut short while it replaced data; "
        "everything is back as it was before."
    )
    assert service.data() == OLD
    assert service.places() == []


def test_a_swap_inside_what_another_replaced_is_reverted_after_that(service: Service) -> None:
    (service.root / "inner").mkdir()
    (service.root / "inner" / "file").write_text("old")

    def restore() -> None:
        with service.begin() as transaction:
            outer = transaction.place(service.root)
            (outer / "staged" / "inner").mkdir(parents=True)
            inner = transaction.place(service.root / "inner")
            (inner / "staged").mkdir()
            (inner / "staged" / "file").write_text("new")
            transaction.apply([RenameSwap.prepare(outer, ["inner"]), RenameSwap.prepare(inner, ["file"])])

    with pytest.raises(RestoreError):
        restore()
    assert (service.root / "inner" / "file").read_text() == "old"
    assert service.places() == []


def test_failing_to_clean_up_is_a_warning_for_the_restore_is_done(service: Service) -> None:
    Trouble.fails = {"settle": OSError(5, "the disk is loose")}
    with service.begin() as transaction:
        (warning,) = transaction.apply([service.stage(transaction, "models", "new models", Trouble)])
    assert "the disk is loose" in warning
    assert service.data() == OLD | {"models": "new models"}
    assert service.undo()
    assert service.data() == OLD


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("stop")])
def test_an_interrupt_after_the_commit_is_no_failure(service: Service, error: BaseException) -> None:
    Trouble.fails = {"settle": error}
    with service.begin() as transaction:
        (warning,) = transaction.apply([service.stage(transaction, "models", "new models", Trouble)])
    assert "is done" in warning
    assert service.data() == OLD | {"models": "new models"}
    assert "had been done" in service.recover().message
    assert service.recover() is None
    service.undo()
    assert service.data() == OLD


def test_a_restore_discards_what_the_one_before_kept_only_once_it_is_committed(service: Service) -> None:
    service.restore(NEW, subject="full_20240101_020000")
    first = service.places()
    Trouble.fails = {"apply": RestoreError("no")}
    with pytest.raises(RestoreError):
        service.restore({"models": "newer"}, kind=Trouble, subject="full_20240102_020000")
    assert service.places() == first
    assert kept(service.state) == Kept("restore", "full_20240101_020000", service.clock.now)
    service.restore({"models": "newer"}, subject="full_20240103_020000")
    assert not set(first) & set(service.places())
    assert service.undo().subject == "full_20240103_020000"
    assert service.data() == NEW


def test_nothing_to_undo(service: Service) -> None:
    with pytest.raises(NothingToUndo):
        service.undo()
    with pytest.raises(NothingToUndo):
        discard(service.state, KINDS)


def test_a_failed_undo_leaves_the_restored_state_and_can_be_tried_again(service: Service) -> None:
    service.restore(NEW, kind=Trouble)
    before = kept(service.state)
    # The swap that takes one back is a RenameSwap, which fails where its private place is gone.
    (service.root / "models").unlink()
    (service.root / "models").mkdir()
    place = service.root / service.places()[0]
    place.rename(service.root / "hidden")
    with pytest.raises(RestoreError):
        service.undo()
    (service.root / "hidden").rename(place)
    assert kept(service.state) == before
    service.undo()
    assert service.data() == OLD


def test_discard_ends_what_could_be_taken_back(service: Service) -> None:
    service.restore(NEW)
    discard(service.state, KINDS)
    assert service.data() == NEW
    assert service.places() == []
    assert kept(service.state) is None


def test_what_is_kept_goes_after_seven_days(service: Service) -> None:
    service.restore(NEW)
    service.clock.now += KEEP_FOR
    assert service.recover() is None
    service.clock.now += timedelta(seconds=1)
    assert "more than 7 days old: deleted" in service.recover().message
    assert service.places() == []
    assert service.recover() is None
    with pytest.raises(NothingToUndo):
        service.undo()


def test_a_clock_set_back_deletes_nothing(service: Service) -> None:
    service.restore(NEW)
    service.clock.now = datetime(1980, 1, 1, tzinfo=UTC)
    assert service.recover() is None
    assert service.undo()


@pytest.mark.parametrize("applied", [False, True])
def test_recover_puts_right_what_a_killed_restore_left(service: Service, applied: bool) -> None:
    def die() -> None:
        with service.begin() as transaction:
            swap = service.stage(transaction, "models", "new models")
            if applied:
                Trouble.fails = {"apply": SystemExit()}
                with suppress(SystemExit):
                    transaction.apply([swap, service.stage(transaction, ".env", "new env", Trouble)])
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_child(die) == signal.SIGKILL
    assert service.data() == (NEW if applied else OLD)
    message = service.recover().message
    assert ("everything is back as it was" if applied else "before it replaced anything") in message
    assert service.data() == OLD
    assert service.places() == []
    assert service.recover() is None


def test_a_new_restore_first_recovers_from_a_killed_one(service: Service) -> None:
    def die() -> None:
        with service.begin() as transaction:
            service.stage(transaction, "models", "half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_child(die) == signal.SIGKILL
    service.restore(NEW)
    assert len(service.places()) == len(NEW)
    service.undo()
    assert service.data() == OLD


def test_only_one_restore_at_a_time(service: Service) -> None:
    with service.begin() as transaction:
        service.stage(transaction, "models", "new models")
        for attempt in (service.recover, service.undo, lambda: service.restore(NEW)):
            with pytest.raises(LockHeld):
                attempt()
        assert len(service.places()) == 1


def test_recover_needs_no_lock_when_there_is_nothing_to_do(service: Service) -> None:
    service.restore(NEW)
    with file_lock(service.state / "restore.lock"):
        assert service.recover() is None
        with pytest.raises(LockHeld):
            service.undo()


def test_the_lock_of_a_dead_process_is_free(service: Service) -> None:
    def die() -> None:
        with service.begin():
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_child(die) == signal.SIGKILL
    assert "before it replaced anything" in service.recover().message


def test_a_private_place_is_private_and_in_the_journal_before_it_is_there(service: Service) -> None:
    with service.begin() as transaction:
        missing = service.root / "missing"
        with pytest.raises(RestoreError, match="missing"):
            transaction.place(missing)
        assert str(missing) in (service.state / "restore.json").read_text()
        place = transaction.place(service.root)
        assert place.parent == service.root
        assert place.stat().st_mode & 0o7777 == 0o700


def test_a_kind_that_no_recovery_would_know_is_not_even_begun(service: Service) -> None:
    class Unknown(RenameSwap):
        kind = "unknown"

    with pytest.raises(ValueError, match="unknown"), service.begin() as transaction:
        transaction.apply([service.stage(transaction, "models", "new", Unknown)])
    assert service.data() == OLD


def test_left_overs_that_cannot_be_removed_do_not_stop_later_commands(service: Service) -> None:
    service.restore(NEW)
    (name,) = [place for place in service.places() if (service.root / place / "kept" / "models").exists()]
    place, elsewhere = service.root / name, service.root / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    (warning,) = discard(service.state, KINDS).warnings
    assert name in warning
    assert (elsewhere / "kept" / "models").exists(), "the link was followed"
    assert service.recover().warnings
    place.unlink()
    elsewhere.rename(place)
    assert service.recover().warnings == ()
    assert service.places() == []


def test_a_step_of_an_unknown_kind_is_refused_and_kept(service: Service) -> None:
    service.restore(NEW, kind=Trouble)
    with pytest.raises(JournalRefused, match="trouble"):
        undo(service.state, {RenameSwap.kind: RenameSwap}, clock=service.clock)
    assert service.undo()
