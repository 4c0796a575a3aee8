"""Drop the backups that the policy releases."""

from __future__ import annotations

from contextlib import nullcontext

from holdfast.clock import timestamp
from holdfast.events import Emit, Noted
from holdfast.installation import Installation
from holdfast.retention import Verdict, decide


def expire(installation: Installation, emit: Emit, *, dry_run: bool = False) -> list[Verdict]:
    """Deletes what is older than the retention allows, and returns the verdict on every backup.

    What a kept incremental rests on stays, and the last good full backup, and what is pinned. Raises LockHeld
    while backups are being made or read.
    """
    repository = installation.repository
    with nullcontext() if dry_run else repository.expiring():
        verdicts = decide(
            repository.backups(),
            now=installation.clock(),
            retention_days=installation.settings.retention_days,
        )
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
