"""One run of a schedule: claimed, made, recorded.

A run holds a lock that dies with its process, so no two schedulers run anything at once. Under that lock the schedule
is read again: who comes second finds it no longer due. ``next_run`` moves on only when a run has ended, together with
its result, so a run that was killed is due again. ``started_at`` tells that it was killed, and when it had begun: the
backup that it may have finished all the same counts, and is not made a second time.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from holdfast.clock import timestamp
from holdfast.errors import HoldfastError, Interrupted, LockHeld, UsageError
from holdfast.events import (
    DrillFailed,
    DrillFinished,
    Emit,
    Event,
    Noted,
    ScheduleDisabled,
    ScheduledRunFailed,
    ScheduledRunFinished,
    Warned,
)
from holdfast.installation import Installation
from holdfast.jobs.backup import backup
from holdfast.jobs.expire import expire
from holdfast.jobs.recover import recover
from holdfast.model import BackupMetadata
from holdfast.scheduler._parent import parent_of
from holdfast.schedules import FAILURES_ALLOWED, Schedule, ScheduleFile

Drill = Callable[[Installation, BackupMetadata, Emit], None]
"""Rehearses a restore of a backup, records and tells what came of it. Raises HoldfastError when it failed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a schedule that was due."""

    schedule_id: str
    kind: Literal["success", "failed", "put off", "not due"]
    """``put off``: another run is at work. ``not due``: another scheduler has run it."""
    backup_id: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Runner:
    """What all runs of a round have in common."""

    installation: Installation
    file: ScheduleFile
    emit: Emit
    """For what goes on in a job. May raise Interrupted."""
    tell: Emit
    """For what a run has come to. Raises nothing."""
    check: Callable[[], None]
    """Raises Interrupted, when it is to be stopped."""
    tail: Callable[[], tuple[str, ...]]
    """The last lines of the log."""
    drill: Drill | None

    def run(self, schedule_id: str, *, expected: datetime | None) -> Outcome:
        """Runs a schedule, if its ``next_run`` is still the one that is `expected`; now, where that is None.

        What goes wrong with the backup is recorded and told, not raised. Raises Interrupted; what is raised for the
        file of schedules; UsageError for a schedule that is not there, or disabled.
        """
        try:
            with self.file.running():
                return self._run(schedule_id, expected)
        except LockHeld as error:
            self.tell(Noted(f"schedule {schedule_id}: {error}; it is looked at again at the next check"))
            return Outcome(schedule_id, "put off", error=str(error))

    def _run(self, schedule_id: str, expected: datetime | None) -> Outcome:
        schedule, adopted = self._begin(schedule_id, expected)
        if schedule is None:
            return adopted or Outcome(schedule_id, "not due")
        if schedule.attempts > FAILURES_ALLOWED:
            return self._fail(
                schedule,
                f"{FAILURES_ALLOWED} runs in a row were cut off: killed, or the machine went down",
                "Look for what kills them: too little memory is the usual cause.",
            )
        try:
            metadata = self._back_up_unless_stopped(schedule)
        except LockHeld as error:
            self._record(schedule_id, Schedule.put_off)
            self.tell(Warned(f"schedule {schedule_id}: {error}; it is tried again at the next check"))
            return Outcome(schedule_id, "put off", error=str(error))
        except (Interrupted, KeyboardInterrupt):
            # The signal may have come after the last step.
            made = self._made(schedule)
            if made is None:
                self._record(schedule_id, Schedule.interrupted)
            else:
                self._succeed(schedule, made)
            raise
        except HoldfastError as error:
            notes = "".join(f". {note}" for note in getattr(error, "__notes__", ()))
            return self._fail(schedule, f"{error}{notes}", error.hint)
        except Exception as error:  # noqa: BLE001 - one schedule's trouble must not keep the others from running
            return self._fail(schedule, _unexpected(error), "This is a defect of Holdfast: please report it.")
        self._succeed(schedule, metadata)
        self._expire(schedule)
        self._rehearse(schedule, metadata)
        return Outcome(schedule_id, "success", metadata.backup_id)

    def _begin(self, schedule_id: str, expected: datetime | None) -> tuple[Schedule | None, Outcome | None]:
        """Marks the run as begun, and returns the schedule; None where it need not run, and what has run instead."""
        now = self.installation.clock().replace(microsecond=0)
        adopted: Outcome | None = None
        finished: tuple[Schedule, BackupMetadata] | None = None
        with self.file.changing() as schedules:
            schedule = schedules.get(schedule_id)
            if schedule is not None and schedule.started_at is not None:
                made = self._made(schedule)
                if made is not None:
                    finished = (schedule.succeeded(), made)
                    schedule = schedules[schedule_id] = finished[0]
                    adopted = Outcome(schedule_id, "success", made.backup_id)
                    if schedule.is_due(now):  # That was long ago.
                        expected = schedule.next_run
            runs = _may_run(schedule_id, schedule, expected)
            if runs and schedule is not None:
                schedule = schedules[schedule_id] = schedule.begun(now)
        if finished is not None:
            self.tell(
                Noted(f"schedule {schedule_id}: a run that was cut off had made {finished[1].backup_id}")
            )
            self._tell_success(*finished)
        return (schedule if runs else None), adopted

    def _back_up_unless_stopped(self, schedule: Schedule) -> BackupMetadata:
        try:
            return self._back_up(schedule)
        except HoldfastError:
            # What stops us often stops the programs that we run as well, and their failure is seen first.
            self.check()
            raise

    def _back_up(self, schedule: Schedule) -> BackupMetadata:
        installation = self.installation
        recover(installation, self.emit)
        if schedule.default_components:
            settings = replace(
                installation.settings,
                include_models=schedule.include_models,
                include_config=schedule.include_config,
                include_logs=schedule.include_logs,
            )
            installation = replace(installation, settings=settings)
        incremental = schedule.backup_type == "incremental"
        parent = parent_of(installation, schedule) if incremental else None
        if incremental and parent is None:
            self.emit(
                Noted(f"schedule {schedule.schedule_id}: there is no full backup to rest on: one is made")
            )
        return backup(
            installation,
            self.emit,
            components=None if schedule.default_components else schedule.components,
            since=parent.backup_id if parent is not None else None,
            schedule_id=schedule.schedule_id,
        ).metadata

    def _made(self, schedule: Schedule) -> BackupMetadata | None:
        """The backup that a run of the schedule has made since it began."""
        return next(
            (
                metadata
                for metadata in self.installation.repository.backups()
                if metadata.is_good
                and metadata.schedule_id == schedule.schedule_id
                and schedule.started_at is not None
                and metadata.moment >= schedule.started_at
            ),
            None,
        )

    def _record(self, schedule_id: str, change: Callable[[Schedule], Schedule]) -> Schedule | None:
        """Writes what became of a run; None where the schedule was removed meanwhile."""
        with self.file.changing() as schedules:
            schedule = schedules.get(schedule_id)
            if schedule is None or schedule.started_at is None:
                return schedule
            schedules[schedule_id] = change(schedule)
            return schedules[schedule_id]

    def _succeed(self, schedule: Schedule, metadata: BackupMetadata) -> None:
        recorded = self._record(schedule.schedule_id, Schedule.succeeded)
        self._tell_success(recorded or schedule, metadata)

    def _tell_success(self, schedule: Schedule, metadata: BackupMetadata) -> None:
        self.tell(
            ScheduledRunFinished(
                schedule.schedule_id,
                metadata.backup_id,
                metadata.size_bytes,
                timestamp(schedule.next_run),
                schedule.notification_email,
            )
        )

    def _fail(self, schedule: Schedule, error: str, hint: str) -> Outcome:
        schedule = self._record(schedule.schedule_id, Schedule.failed) or schedule.failed()
        self.tell(
            ScheduledRunFailed(
                schedule.schedule_id,
                error,
                hint,
                timestamp(schedule.next_run)
                if schedule.status == "active"
                else "none, the schedule is disabled",
                schedule.consecutive_failures,
                schedule.notification_email,
                self.tail(),
            )
        )
        if schedule.status == "disabled":
            self._disable(schedule)
        self._expire(schedule)
        return Outcome(schedule.schedule_id, "failed", error=error)

    def _disable(self, schedule: Schedule) -> None:
        failures = schedule.consecutive_failures
        self.tell(ScheduleDisabled(schedule.schedule_id, failures, schedule.notification_email))
        self.installation.state.record(
            {
                "time": timestamp(self.installation.clock()),
                "verb": "schedule",
                "schedule_id": schedule.schedule_id,
                "status": "disabled",
                "message": f"{failures} failures in a row; enable it again with: "
                f"holdfast schedule enable {schedule.schedule_id}",
            }
        )

    def _expire(self, schedule: Schedule) -> None:
        """What cannot be dropped now can be dropped after the next run: no reason to call a backup a failure."""
        try:
            expire(self.installation, self.emit, schedule_id=schedule.schedule_id)
        except Interrupted:
            raise
        except HoldfastError as error:
            self.tell(Warned(f"schedule {schedule.schedule_id}: no old backups are dropped: {error}"))

    def _rehearse(self, schedule: Schedule, metadata: BackupMetadata) -> None:
        now = self.installation.clock().replace(microsecond=0)
        if not schedule.drill_is_due(now):
            return
        if self.drill is None:
            self.tell(
                Warned(
                    f"schedule {schedule.schedule_id} asks for a drill ({schedule.drill}), and this scheduler has "
                    "none to run: `holdfast scheduler` has"
                )
            )
            return

        def emit(event: Event) -> None:
            if isinstance(event, (DrillFinished, DrillFailed)):
                self.tell(replace(event, email=schedule.notification_email))
            else:
                self.emit(event)

        try:
            self.drill(self.installation, metadata, emit)
        except Interrupted:
            raise
        except LockHeld as error:
            self.tell(Warned(f"schedule {schedule.schedule_id}: the drill waits for the next run: {error}"))
            return
        except HoldfastError:
            pass  # It has told that itself, and a backup that cannot be restored here is made all the same.
        except Exception as error:  # noqa: BLE001 - one schedule's trouble must not keep the others from running
            hint = "This is a defect of Holdfast: please report it."
            emit(DrillFailed(metadata.backup_id, _unexpected(error), hint))
        with self.file.changing() as schedules:
            known = schedules.get(schedule.schedule_id)
            if known is not None:
                schedules[schedule.schedule_id] = replace(known, last_drill=now)


def _may_run(schedule_id: str, schedule: Schedule | None, expected: datetime | None) -> bool:
    if expected is None:
        if schedule is None:
            raise UsageError(
                f"there is no schedule {schedule_id}", hint="`holdfast schedule list` shows them."
            )
        if schedule.status == "disabled":
            raise UsageError(
                f"schedule {schedule_id} is disabled, after {schedule.consecutive_failures} failures in a row",
                hint=f"Enable it: holdfast schedule enable {schedule_id}",
            )
        return True
    return schedule is not None and schedule.status == "active" and schedule.next_run == expected


def _unexpected(error: Exception) -> str:
    """What and where. Not its message: other people's errors may hold a URL, with its password."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{where}"
