"""Runs of schedules: made, recorded, told; failed, put off, interrupted, killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest

from forks import run_child
from holdfast.errors import Interrupted, RestoreError, UsageError
from holdfast.events import (
    Emit,
    Event,
    RunFailed,
    RunFinished,
    ScheduleDisabled,
    ScheduledRunFailed,
    ScheduledRunFinished,
    StageStarted,
    Warned,
)
from holdfast.storage.local import LocalStorage
from scheduler.conftest import Ground


def kinds(outcomes: list[Any]) -> list[str]:
    return [outcome.kind for outcome in outcomes]


def test_what_is_due_is_made_recorded_and_told(ground: Ground) -> None:
    schedule_id = ground.add(components=["database", "models"], notification_email="admin@example.com")
    scheduler = ground.scheduler()
    assert scheduler.run_due() == []
    ground.at("2024-01-02T02:00:00")
    assert kinds(scheduler.run_due()) == ["success"]
    [made] = ground.backups()
    assert (made.type, made.components, made.schedule_id) == ("full", ("database", "models"), schedule_id)
    schedule = scheduler.schedules[schedule_id]
    assert schedule["last_run"] == "2024-01-02T02:00:00"
    assert schedule["last_status"] == "success"
    assert schedule["next_run"] == "2024-01-03T02:00:00"
    assert schedule["started_at"] is None
    assert ground.told(ScheduledRunFinished) == [
        ScheduledRunFinished(
            schedule_id, made.backup_id, made.size_bytes, "2024-01-03T02:00:00", "admin@example.com"
        )
    ]
    [record] = ground.history("backup")
    assert (record["status"], record["schedule_id"]) == ("success", schedule_id)
    assert scheduler.run_due() == []


def test_what_was_missed_while_the_machine_slept_runs_once(ground: Ground) -> None:
    schedule_id = ground.add(schedule_type="hourly")
    ground.at("2024-01-20T17:32:10")
    assert kinds(ground.scheduler().run_due()) == ["success"]
    assert ground.scheduler().run_due() == []
    assert len(ground.backups()) == 1
    assert ground.scheduler().schedules[schedule_id]["next_run"] == "2024-01-20T18:00:00"


def test_a_clock_set_back_runs_nothing_again_and_is_told_once(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")
    scheduler = ground.scheduler()
    scheduler.run_due()
    for moment in ("2024-01-02T01:59:00", "2024-01-01T23:00:00", "2023-06-01T02:00:00"):
        ground.at(moment)
        assert scheduler.run_due() == []
    assert [schedule_id in warning for warning in ground.warnings] == [True]
    assert "the clock was set back" in ground.warnings[0]
    assert f"holdfast schedule enable {schedule_id}" in ground.warnings[0]
    ground.at("2025-01-01T00:00:00")
    assert kinds(scheduler.run_due()) == ["success"]


def test_a_schedule_as_it_was_given_runs_once_and_an_id_runs_now(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")
    [due] = ground.scheduler().get_due_schedules()
    assert ground.scheduler().execute_scheduled_backup(due) is True
    assert ground.scheduler().execute_scheduled_backup(due) is False
    assert len(ground.backups()) == 1
    ground.at("2024-01-02T12:00:00")
    assert ground.scheduler().execute_scheduled_backup(schedule_id) is True
    assert len(ground.backups()) == 2
    assert ground.scheduler().schedules[schedule_id]["next_run"] == "2024-01-03T02:00:00"


def test_a_failure_is_recorded_and_told_with_its_hint_and_the_last_lines(ground: Ground) -> None:
    schedule_id = ground.add(notification_email="admin@example.com")
    ground.break_database()
    ground.at("2024-01-02T02:00:00")
    [outcome] = ground.scheduler().run_due()
    assert (outcome.kind, outcome.schedule_id) == ("failed", schedule_id)
    [failed] = ground.told(ScheduledRunFailed)
    assert failed.error.startswith("Database backup failed")
    assert failed.hint
    assert (failed.consecutive_failures, failed.next_run) == (1, "2024-01-03T02:00:00")
    assert failed.email == "admin@example.com"
    assert any("Database backup failed" in line and " ERROR " in line for line in failed.log_tail)
    assert len(failed.log_tail) <= 20
    schedule = ground.schedule(schedule_id)
    assert (schedule.last_status, schedule.consecutive_failures, schedule.status) == ("failed", 1, "active")
    assert ground.backups() == []


def test_three_failures_in_a_row_disable_it_loudly_and_enabling_resets_the_count(ground: Ground) -> None:
    schedule_id = ground.add(notification_email="admin@example.com")
    good = (ground.service.root / "service.db").read_bytes()
    ground.break_database()
    for day in (2, 3, 4):
        assert ground.told(ScheduleDisabled) == []
        ground.at(f"2024-01-0{day}T02:00:00")
        assert kinds(ground.scheduler().run_due()) == ["failed"]
    assert ground.told(ScheduleDisabled) == [ScheduleDisabled(schedule_id, 3, "admin@example.com")]
    told = [event.next_run for event in ground.told(ScheduledRunFailed)]
    assert told == ["2024-01-03T02:00:00", "2024-01-04T02:00:00", "none, the schedule is disabled"]
    assert ground.schedule(schedule_id).status == "disabled"
    [record] = ground.history("schedule")
    assert record["status"] == "disabled"
    assert f"holdfast schedule enable {schedule_id}" in record["message"]
    (ground.service.root / "service.db").write_bytes(good)
    ground.at("2024-01-10T12:00:00")
    assert ground.scheduler().run_due() == []
    with pytest.raises(UsageError, match="is disabled"):
        ground.scheduler().execute_scheduled_backup(schedule_id)
    ground.scheduler().enable_schedule(schedule_id)
    schedule = ground.schedule(schedule_id)
    assert (schedule.status, schedule.consecutive_failures) == ("active", 0)
    ground.at("2024-01-11T02:00:00")
    assert kinds(ground.scheduler().run_due()) == ["success"]


def test_a_success_in_between_begins_the_count_anew(ground: Ground) -> None:
    schedule_id = ground.add()
    good = (ground.service.root / "service.db").read_bytes()
    for day, works in enumerate((False, False, True, False, False), start=2):
        if works:
            (ground.service.root / "service.db").write_bytes(good)
        else:
            ground.break_database()
        ground.at(f"2024-01-0{day}T02:00:00")
        assert kinds(ground.scheduler().run_due()) == ["success" if works else "failed"]
    assert ground.schedule(schedule_id).status == "active"
    assert ground.schedule(schedule_id).consecutive_failures == 2


def test_one_schedule_that_fails_keeps_no_other_from_running(ground: Ground) -> None:
    ground.add(components=["database"])
    ground.add(components=["models"])
    ground.break_database()
    ground.at("2024-01-02T02:00:00")
    assert sorted(kinds(ground.scheduler().run_due())) == ["failed", "success"]


def test_what_nobody_thought_of_is_a_failure_too_and_shows_no_words_of_others(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")

    def fail(event: Event) -> None:
        if isinstance(event, StageStarted):
            raise ZeroDivisionError("postgresql://user:secret@host")

    assert kinds(ground.scheduler(subscribers=[fail]).run_due()) == ["failed"]
    [failed] = ground.told(ScheduledRunFailed)
    assert failed.error.startswith("unexpected ZeroDivisionError at test_runs.py:")
    assert "secret" not in failed.error
    assert ground.schedule(schedule_id).consecutive_failures == 1


def test_while_another_run_is_at_work_it_waits_for_the_next_check(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")
    before = ground.schedule(schedule_id)
    with LocalStorage(ground.service.backups).lock("backup"):
        assert kinds(ground.scheduler().run_due()) == ["put off"]
    assert ground.schedule(schedule_id) == before
    assert ground.told(ScheduledRunFailed) == []
    assert any("tried again at the next check" in warning for warning in ground.warnings)
    with ground.file.running():
        assert kinds(ground.scheduler().run_due()) == ["put off"]
    assert kinds(ground.scheduler().run_due()) == ["success"]


# Interrupted


def interrupt_in(subject: str, ground: Ground) -> Callable[[], None]:
    """For `check`: raises once the job reads that."""

    def check() -> None:
        if any(isinstance(event, StageStarted) and event.subject == subject for event in ground.events):
            raise Interrupted("interrupted")

    return check


@pytest.mark.parametrize("subject", ["database main", "models"])
def test_an_interrupted_run_is_no_failure_leaves_nothing_and_stays_due(ground: Ground, subject: str) -> None:
    schedule_id = ground.add()
    due = ground.schedule(schedule_id)
    ground.at("2024-01-02T02:00:00")
    with pytest.raises(Interrupted):
        ground.scheduler(check=interrupt_in(subject, ground)).run_due()
    after = ground.schedule(schedule_id)
    assert (after.last_status, after.consecutive_failures) == ("interrupted", 0)
    assert (after.next_run, after.attempts, after.started_at) == (due.next_run, 0, None)
    assert ground.told(ScheduledRunFailed) == []
    assert list(ground.service.backups.rglob("*.tar.gz*")) == []
    assert list(ground.service.backups.rglob("*.partial")) == []
    ground.at("2024-01-02T02:05:00")
    assert kinds(ground.scheduler().run_due()) == ["success"]


def test_an_interruption_after_the_last_step_finds_the_backup_made(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")

    def late(event: Event) -> None:
        if isinstance(event, RunFinished):
            raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        ground.scheduler(subscribers=[late]).run_due()
    assert ground.schedule(schedule_id).last_status == "success"
    assert len(ground.told(ScheduledRunFinished)) == 1
    assert ground.scheduler().run_due() == []
    assert len(ground.backups()) == 1


def kill_at(ground: Ground, kind: type[Event], stage: str = "") -> None:
    """A scheduler that is killed when its job comes to a point."""

    def kill(event: Event) -> None:
        if isinstance(event, kind) and stage in getattr(event, "stage", ""):
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_child(lambda: ground.scheduler(subscribers=[kill]).run_due()) == signal.SIGKILL


def test_a_run_that_was_killed_runs_again_at_the_next_check(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")
    kill_at(ground, StageStarted, "seal")
    ground.at("2024-01-02T02:05:00")
    assert kinds(ground.scheduler().run_due()) == ["success"]
    schedule = ground.schedule(schedule_id)
    assert (schedule.last_status, schedule.consecutive_failures, schedule.attempts) == ("success", 0, 0)
    assert len(ground.backups()) == 1
    assert list(ground.service.backups.rglob("*.partial")) == []


def test_a_run_that_was_killed_once_its_backup_was_made_is_not_run_again(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")
    kill_at(ground, RunFinished)
    assert ground.schedule(schedule_id).started_at is not None
    ground.at("2024-01-02T02:05:00")
    assert kinds(ground.scheduler().run_due()) == ["success"]
    [made] = ground.backups()
    [finished] = ground.told(ScheduledRunFinished)
    assert finished.backup_id == made.backup_id
    schedule = ground.scheduler().schedules[schedule_id]
    assert (schedule["last_run"], schedule["last_status"]) == ("2024-01-02T02:00:00", "success")
    assert schedule["next_run"] == "2024-01-03T02:00:00"


def test_a_backup_of_a_killed_run_does_not_stand_for_the_next_one(ground: Ground) -> None:
    ground.add()
    ground.at("2024-01-02T02:00:00")
    kill_at(ground, RunFinished)
    ground.at("2024-01-03T02:00:00")
    assert kinds(ground.scheduler().run_due()) == ["success"]
    assert [made.timestamp for made in ground.backups()] == ["2024-01-03T02:00:00", "2024-01-02T02:00:00"]


def test_runs_that_are_killed_each_time_are_a_failure_and_not_begun_for_ever(ground: Ground) -> None:
    schedule_id = ground.add()
    for minute in (0, 5, 10):
        ground.at(f"2024-01-02T02:{minute:02}:00")
        kill_at(ground, StageStarted, "read")
        assert ground.schedule(schedule_id).consecutive_failures == 0
    ground.at("2024-01-02T02:15:00")
    assert kinds(ground.scheduler().run_due()) == ["failed"]
    [failed] = ground.told(ScheduledRunFailed)
    assert "3 runs in a row were cut off" in failed.error
    schedule = ground.schedule(schedule_id)
    assert (schedule.consecutive_failures, schedule.attempts) == (1, 0)
    assert ground.scheduler().schedules[schedule_id]["next_run"] == "2024-01-03T02:00:00"


def test_a_schedule_that_is_removed_while_it_runs_stays_removed(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")

    def remove(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "seal":
            ground.scheduler().remove_schedule(schedule_id)

    assert kinds(ground.scheduler(subscribers=[remove]).run_due()) == ["success"]
    assert ground.scheduler().schedules == {}
    assert len(ground.backups()) == 1


# What is backed up


def test_components_by_default_are_what_there_is(ground: Ground) -> None:
    ground.add(include_logs=True)
    shutil.rmtree(ground.service.root / "models")
    ground.at("2024-01-02T02:00:00")
    assert kinds(ground.scheduler().run_due()) == ["success"]
    assert ground.backups()[0].components == ("database", "config", "logs")
    (ground.service.root / "models").mkdir()
    (ground.service.root / "models/new.bin").write_bytes(b"new")
    ground.at("2024-01-03T02:00:00")
    ground.scheduler().run_due()
    assert ground.backups()[0].components == ("database", "models", "config", "logs")


def test_components_that_were_named_must_be_there(ground: Ground) -> None:
    ground.add(components=["models"])
    shutil.rmtree(ground.service.root / "models")
    ground.at("2024-01-02T02:00:00")
    assert kinds(ground.scheduler().run_due()) == ["failed"]


def test_an_incremental_schedule_begins_with_a_full_backup(ground: Ground) -> None:
    schedule_id = ground.add(schedule_type="hourly", backup_type="incremental")
    for hour in (3, 4, 5):
        ground.at(f"2024-01-01T{hour:02}:00:00")
        assert kinds(ground.scheduler().run_due()) == ["success"]
    last, first, full = ground.backups()
    assert (full.type, first.type, last.type) == ("full", "incremental", "incremental")
    assert first.parent == last.parent == full.backup_id
    assert {made.schedule_id for made in ground.backups()} == {schedule_id}
    assert any("no full backup to rest on" in note for note in ground.notes)


def test_an_incremental_schedule_rests_on_the_full_backup_of_anybody(ground: Ground) -> None:
    full = ground.service.back_up()
    ground.add(schedule_type="hourly", backup_type="incremental")
    ground.at("2024-01-01T05:00:00")
    ground.scheduler().run_due()
    assert ground.backups()[0].parent == full.backup_id


def test_an_incremental_schedule_rests_on_nothing_that_is_gone_or_is_a_part(ground: Ground) -> None:
    whole = ground.service.back_up()
    ground.service.back_up(components=["database", "config"])
    ground.add(schedule_type="hourly", backup_type="incremental")
    ground.at("2024-01-01T05:00:00")
    ground.scheduler().run_due()
    assert ground.backups()[0].parent == whole.backup_id
    (ground.service.backups / f"full/{whole.backup_id}.tar.gz").unlink()
    ground.at("2024-01-01T06:00:00")
    assert kinds(ground.scheduler().run_due()) == ["success"]
    assert ground.backups()[0].type == "full"
    assert ground.backups()[0].components == ("database", "models", "config")


# Drills


def test_a_schedule_has_the_drill_that_it_asks_for(ground: Ground) -> None:
    rehearsed: list[str] = []

    def drill(installation: object, metadata: Any, emit: Emit) -> None:
        rehearsed.append(metadata.timestamp)
        if len(rehearsed) == 2:
            error = RestoreError("the golden prediction is wrong")
            emit(RunFailed("drill", metadata.backup_id, str(error)))
            raise error

    scheduler = ground.scheduler(drill=drill)
    schedule_id = scheduler.schedule_backup({"schedule_type": "daily", "drill": "weekly"})
    for day in range(2, 18):
        ground.at(f"2024-01-{day:02}T02:00:00")
        assert kinds(scheduler.run_due()) == ["success"]
    # Of each week the first backup: January 8 and 15 are Mondays.
    assert rehearsed == ["2024-01-02T02:00:00", "2024-01-08T02:00:00", "2024-01-15T02:00:00"]
    assert [event.error for event in ground.told(RunFailed)] == ["the golden prediction is wrong"]
    assert ground.schedule(schedule_id).consecutive_failures == 0


def test_a_warning_of_the_run_is_passed_on(ground: Ground) -> None:
    ground.service.back_up()
    ground.add()
    shutil.rmtree(ground.service.root / "models")
    ground.at("2024-01-02T02:00:00")
    told: list[Event] = []
    ground.scheduler(subscribers=[told.append]).run_due()
    assert any(isinstance(event, Warned) and "models" in event.message for event in told)
