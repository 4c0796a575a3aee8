"""What happened, as it happens. Progress bars, plain lines, logs, notifications and metrics subscribe.

Jobs are handed one `Emit` and call it; they never print. An event is published *before* its step is
taken when its name is a present participle, and *after* it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """The root of all events."""


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A job began."""

    verb: str
    subject: str
    """The backup's id, or what else the job is about."""


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    """A job came to its next stage."""

    stage: str
    """``read``, ``verify``, ``stage``, ``check``, ``swap``…"""
    subject: str
    """A component and source (``models``, ``database main``), or an id."""
    total_bytes: int | None = None
    """What the stage will go through, where that is known."""


@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """So much more was done since the last such event of the stage. Sent a few times a second at most."""

    bytes_done: int
    entries_done: int = 0


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something a person should know, that did not stop the job."""

    message: str


@dataclass(frozen=True, slots=True)
class Skipped(Warned):
    """A socket, fifo or device was passed over."""


@dataclass(frozen=True, slots=True)
class Noted(Event):
    """Something worth a line."""

    message: str


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """A job ended well."""

    verb: str
    subject: str


@dataclass(frozen=True, slots=True)
class RunFailed(Event):
    """A job ended with an error."""

    verb: str
    subject: str
    error: str


@dataclass(frozen=True, slots=True)
class ScheduledRunFinished(Event):
    """The scheduler has made a backup."""

    schedule_id: str
    backup_id: str
    size_bytes: int
    """Of the backup as it is stored."""
    next_run: str
    """When the schedule runs next, as the contract writes times: UTC, ``2024-01-02T02:00:00``."""
    email: str | None
    """The schedule's own ``notification_email``; None where it has none, and that of the settings counts."""


@dataclass(frozen=True, slots=True)
class ScheduledRunFailed(Event):
    """The scheduler could not make a backup. An interrupted run is none of these."""

    schedule_id: str
    error: str
    hint: str
    next_run: str
    consecutive_failures: int
    """This one included."""
    email: str | None
    log_tail: tuple[str, ...]
    """The last lines of the scheduler's log, oldest first, without secrets."""


@dataclass(frozen=True, slots=True)
class ScheduleDisabled(Event):
    """A schedule failed so often in a row that it does not run any more until somebody enables it."""

    schedule_id: str
    failures: int
    """In a row."""
    email: str | None


@dataclass(frozen=True, slots=True)
class DrillFinished(Event):
    """A rehearsed restore went well."""

    backup_id: str
    seconds: float
    """That the drill took."""
    restore_seconds: float | None
    """That a restore of the same components would take here, estimated; None where not all of it could be tried."""
    content_bytes: int
    """What was restored, as it is when it is restored."""
    warnings: int
    email: str | None = None
    """As in ScheduledRunFinished."""


@dataclass(frozen=True, slots=True)
class DrillFailed(Event):
    """A rehearsed restore failed: the backup could not be restored here. An interrupted one, and one that waits for
    another run, are none of these."""

    backup_id: str
    error: str
    hint: str
    email: str | None = None


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """For callers who listen to nothing."""
