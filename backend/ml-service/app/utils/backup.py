"""The service's backups, under the names that its own code imports."""

from holdfast.jobs.drill import rehearse
from holdfast.manager import BackupConfig, BackupManager, BackupMetadata
from holdfast.scheduler import BackupScheduler

__all__ = [
    "BackupConfig",
    "BackupManager",
    "BackupMetadata",
    "BackupScheduler",
    "backup_manager",
    "backup_scheduler",
]

backup_manager = BackupManager()
"""The key of the service's backups: `encryption.key` may be set by hand when the environment has lost it."""

backup_scheduler = BackupScheduler(drill=rehearse)
"""Makes and keeps schedules; what is due is made by `python -m backend.ml-service.scripts.backup_scheduler`."""
