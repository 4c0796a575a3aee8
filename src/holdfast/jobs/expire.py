"""Drop the backups that the policy releases."""

from __future__ import annotations

from contextlib import nullcontext

from holdfast.clock import timestamp
from holdfast.errors import HoldfastError
from holdfast.events import Emit, Noted, Warned
from holdfast.installation import Installation
from holdfast.retention import Policy, Verdict, decide
from holdfast.schedules import ScheduleFile


def expire(
    installation: Installation, emit: Emit, *, dry_run: bool = False, schedule_id: str | None = None
) -> list[Verdict]:
    """Deletes what the retention releases, and returns the verdict on every backup, with its reason.

    What a schedule has made is kept by that schedule's days, as long as there is that schedule; everything else by
    BACKUP_RETENTION_DAYS; both by ``[retention]`` instead, where that has rules. `schedule_id`: only what this
    schedule has made may go. Raises LockHeld while backups are being made or read.
    """
    repository = installation.repository
    policy = _policy(installation, emit)
    with nullcontext() if dry_run else repository.expiring():
        backups = repository.backups()
        # A copy that is being made has the time of its original, however long ago that is.
        copying = [known.backup_id for known in backups if known.original and known.status == "running"]
        verdicts = decide(backups, policy, now=installation.clock(), only=schedule_id, in_use=copying)
        if dry_run:
            return verdicts
        for verdict in verdicts:
            if verdict.keep:
                continue
            repository.delete(verdict.backup)
            emit(Noted(f"{verdict.backup.backup_id} is dropped: {verdict.reason}"))
            installation.state.record(
                {
                    "time": timestamp(installation.clock()),
                    "verb": "expire",
                    "backup_id": verdict.backup.backup_id,
                    "status": "success",
                    "message": verdict.reason,
                }
            )
    return verdicts


def _policy(installation: Installation, emit: Emit) -> Policy:
    settings = installation.settings
    schedules: dict[str, int] | None = None
    try:
        known = ScheduleFile(settings.backup_dir).read()
        schedules = {schedule_id: schedule.retention_days for schedule_id, schedule in known.items()}
    except HoldfastError as error:
        emit(Warned(f"what schedules have made is kept, for nobody can tell for how long: {error}"))
    return Policy(settings.retention_days, settings.keep, schedules)
