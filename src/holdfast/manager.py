"""`BackupManager`: the contract's Python API, over the jobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from holdfast.clock import Clock, system_clock
from holdfast.config import BackupConfig
from holdfast.errors import BackupNotFound, CorruptBackup, RepositoryError, UsageError
from holdfast.eventlog import log
from holdfast.events import Emit
from holdfast.installation import Installation
from holdfast.jobs.backup import backup
from holdfast.jobs.expire import expire
from holdfast.jobs.recover import recover
from holdfast.jobs.restore import restore
from holdfast.jobs.verify import verify
from holdfast.model import BACKUP_TYPES, BackupMetadata, BackupType

__all__ = ["BackupConfig", "BackupManager", "BackupMetadata", "Encryption", "encryption"]


class Encryption:
    """The key, where it is set by hand: ``encryption.key = b"…"`` wins over ENCRYPTION_KEY in this process."""

    def __init__(self) -> None:
        self.key: str | bytes | None = None
        """A passphrase, an age identity, or age recipients; None for what is configured."""

    def __repr__(self) -> str:
        return f"<Encryption, key {'set by hand' if self.key else 'as configured'}>"


encryption = Encryption()


class BackupManager:
    """Backups of the service in a directory, by default the current one at the time of each call.

    Settings are read at each call, so a variable that is exported, or a ``holdfast.toml`` that is written, counts
    from then on. Failures raise; the error's ``hint`` says what to do.
    """

    def __init__(
        self,
        config: BackupConfig | None = None,
        *,
        root: Path | None = None,
        emit: Emit = log,
        clock: Clock = system_clock,
    ) -> None:
        """`config`, where given, wins over the environment and ``holdfast.toml``. `emit` is told what happens; by
        default it goes to the logger ``holdfast``."""
        self.config = config
        self._root = root
        self._emit = emit
        self._clock = clock

    def create_full_backup(self, components: Sequence[str] | None = None) -> BackupMetadata:
        """Backs up `components`, by default the database and what the settings include."""
        return backup(self._installation(), self._emit, components=components).metadata

    def create_incremental_backup(self, since_backup_id: str | None = None) -> BackupMetadata:
        """Backs up what has changed since the last good full backup, or since another backup.

        Raises ParentMissing when there is no full backup yet.
        """
        return backup(self._installation(), self._emit, incremental=True, since=since_backup_id).metadata

    def restore_from_backup(
        self,
        backup_id: str,
        components: Sequence[str] | None = None,
        *,
        create_db: bool = False,
        trust: bool = False,
    ) -> bool:
        """Replaces the live data by a backup's, whole or not at all. Returns True, or raises.

        The call is the confirmation. `trust` accepts a backup of a host whose signing key is not known here.
        """
        restore(
            self._installation(),
            backup_id,
            self._emit,
            components=components,
            confirm=lambda question: True,
            create_db=create_db,
            trust=trust,
        )
        return True

    def list_backups(self, backup_type: str | None = None) -> list[BackupMetadata]:
        """The good backups, newest first, of one type or of all: full, incremental, config, models."""
        return [metadata for metadata in self._repository_list(backup_type) if metadata.is_good]

    def verify_backup_integrity(self, backup_id: str) -> bool:
        """Whether a backup, and all that it rests on, is there and has its checksum. False for an unknown one."""
        try:
            verify(self._installation(), backup_id, self._emit)
        except (BackupNotFound, CorruptBackup, RepositoryError, UsageError):
            return False
        return True

    def cleanup_old_backups(self) -> int:
        """Deletes what is older than the retention allows, and returns how many backups that were."""
        return sum(not verdict.keep for verdict in expire(self._installation(), self._emit))

    def _repository_list(self, backup_type: str | None) -> list[BackupMetadata]:
        kind: BackupType | None = None
        if backup_type is not None:
            kind = next((known for known in BACKUP_TYPES if known == backup_type), None)
            if kind is None:
                raise UsageError(
                    f"unknown backup type {backup_type!r}", hint=f"The types are {', '.join(BACKUP_TYPES)}."
                )
        return self._installation().repository.backups(kind)

    def _installation(self) -> Installation:
        installation = Installation.load(
            self._root or Path.cwd(),
            os.environ,
            self.config,
            clock=self._clock,
            manual_key=lambda: encryption.key,
        )
        recover(installation, self._emit)
        return installation
