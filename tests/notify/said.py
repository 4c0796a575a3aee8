"""Events as the scheduler publishes them."""

from __future__ import annotations

from holdfast.events import ScheduleDisabled, ScheduledRunFailed, ScheduledRunFinished

UUID = "3f2b8c1e-0c5d-4a8f-9d43-8e6f1a2b3c4d"
NEXT = "2024-01-02T02:00:00"


def finished(schedule_id: str = UUID, *, email: str | None = None) -> ScheduledRunFinished:
    return ScheduledRunFinished(schedule_id, "full_20240101_020000", 104857600, NEXT, email)


def failed(
    error: str = "Database backup failed: main is locked",
    *,
    hint: str = "Find the process that holds a transaction open.",
    log: tuple[str, ...] = ("2024-01-01 02:00:00 INFO backup: started", "2024-01-01 02:00:31 ERROR locked"),
    failures: int = 1,
    schedule_id: str = UUID,
    email: str | None = None,
) -> ScheduledRunFailed:
    return ScheduledRunFailed(schedule_id, error, hint, NEXT, failures, email, log)


def disabled(*, email: str | None = None) -> ScheduleDisabled:
    return ScheduleDisabled(UUID, 3, email)
