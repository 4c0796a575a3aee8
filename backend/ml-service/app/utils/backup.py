"""The service's backups, under the names that its own code imports."""

from holdfast.manager import BackupConfig, BackupManager, BackupMetadata

__all__ = ["BackupConfig", "BackupManager", "BackupMetadata", "backup_manager"]

backup_manager = BackupManager()
