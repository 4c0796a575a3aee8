"""Makes the backups that are due."""

from __future__ import annotations

from holdfast.scheduler._run import Drill, Outcome
from holdfast.scheduler._scheduler import CHECK_EVERY, BackupScheduler
from holdfast.schedules import Schedule, next_due

__all__ = ["CHECK_EVERY", "BackupScheduler", "Drill", "Outcome", "Schedule", "next_due"]
