"""Events as log records, under the logger ``holdfast``."""

from __future__ import annotations

import logging

from holdfast.events import (
    DrillFinished,
    Event,
    Noted,
    Progressed,
    RunFailed,
    RunFinished,
    RunStarted,
    ScheduleDisabled,
    ScheduledRunFailed,
    ScheduledRunFinished,
    StageStarted,
    Warned,
)
from holdfast.text import harmless

logger = logging.getLogger("holdfast")


def describe(event: Event) -> tuple[int, str] | None:
    """The level and the line of an event; None for one that has none."""
    match event:
        case Progressed(bytes_done, entries_done):
            return logging.DEBUG, f"{bytes_done} bytes, {entries_done} entries"
        case StageStarted(stage, subject):
            return logging.DEBUG, harmless(f"{stage} {subject}")
        case Warned(message):
            return logging.WARNING, harmless(message)
        case Noted(message):
            return logging.INFO, harmless(message)
        case RunStarted(verb, subject):
            return logging.INFO, harmless(f"{verb} {subject}: started")
        case RunFinished(verb, subject):
            return logging.INFO, harmless(f"{verb} {subject}: done")
        case RunFailed(verb, subject, error):
            return logging.ERROR, harmless(f"{f'{verb} {subject}'.rstrip()}: {error}")
        case ScheduledRunFinished() | ScheduledRunFailed() | ScheduleDisabled():
            return _of_a_schedule(event)
        case DrillFinished(backup_id, seconds, restore_seconds):
            estimate = "" if restore_seconds is None else f"; a restore would take {restore_seconds:.1f} s"
            return logging.INFO, harmless(f"drill {backup_id}: took {seconds:.1f} s{estimate}")
    return None


def _of_a_schedule(event: ScheduledRunFinished | ScheduledRunFailed | ScheduleDisabled) -> tuple[int, str]:
    match event:
        case ScheduledRunFinished(schedule_id, backup_id, size_bytes, next_run):
            line = f"made {backup_id}, {size_bytes} bytes; next run {next_run}"
            level = logging.INFO
        case ScheduledRunFailed(schedule_id, error, hint, next_run, failures):
            line = (
                f"failed, {failures} in a row: {error.rstrip('.?')}. {hint}".rstrip()
                + f" Next run {next_run}"
            )
            level = logging.ERROR
        case ScheduleDisabled(schedule_id, failures):
            line = (
                f"disabled after {failures} failures in a row: it makes no backups any more. "
                f"When what is wrong is put right, enable it: holdfast schedule enable {schedule_id}"
            )
            level = logging.CRITICAL
    return level, harmless(f"schedule {schedule_id}: {line}")


def log(event: Event) -> None:
    """Subscribes `logging` to a job."""
    told = describe(event)
    if told is not None:
        logger.log(told[0], "%s", told[1])
