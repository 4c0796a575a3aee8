"""Whether good backups are missing. Pure: nothing is read.

The absence of backups is an incident of its own. No run tells of it, because there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast.model import BackupMetadata

_TOLERANCE = timedelta(hours=1)
"""What is dated later than this after now was made by a wrong clock, and would hide an absence for as long."""


def last_good(backups: Iterable[BackupMetadata], now: datetime) -> BackupMetadata | None:
    """The newest good full or incremental backup that holds all that the newest good full one does. One of the
    configuration, the models or the database alone does not count: it would hide that the rest is not backed up."""
    good = sorted(
        (known for known in backups if known.is_good and known.moment <= now + _TOLERANCE),
        key=lambda known: (known.moment, known.backup_id),
        reverse=True,
    )
    full = next((known for known in good if known.type == "full"), None)
    needed = set(full.components) if full is not None else set()
    return next(
        (
            known
            for known in good
            if known.type in ("full", "incremental") and needed <= set(known.components)
        ),
        None,
    )


@dataclass(frozen=True, slots=True)
class Absence:
    """There has been no good backup for too long."""

    last: BackupMetadata | None
    """The last good one; None where there is none at all."""
    hours: float | None
    """Since `last`."""
    alarm_hours: float

    def __str__(self) -> str:
        if self.last is None:
            return "there is no good backup"
        return (
            f"no good backup for {self.hours:.1f} hours, more than {self.alarm_hours:g}: "
            f"the last one is {self.last.backup_id}"
        )


def absence(backups: Iterable[BackupMetadata], now: datetime, alarm_hours: float) -> Absence | None:
    """The alarm that is due now, if any."""
    last = last_good(backups, now)
    if last is None:
        return Absence(None, None, alarm_hours)
    hours = (now - last.moment) / timedelta(hours=1)
    return Absence(last, hours, alarm_hours) if hours > alarm_hours else None
