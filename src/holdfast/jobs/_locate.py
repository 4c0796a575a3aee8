"""From what a person types to a backup."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.errors import BackupNotFound, CorruptBackup
from holdfast.installation import Installation
from holdfast.model import BACKUP_TYPES, BackupMetadata
from holdfast.repository.archive import ArchiveRepository, archive_id
from holdfast.repository.base import Repository
from holdfast.storage.local import FlatStorage, LocalStorage


def locate(installation: Installation, reference: str) -> tuple[Repository, BackupMetadata]:
    """A good backup, by ``latest``, its id, a unique prefix of one, or the path of an archive.

    An archive may lie anywhere, alone or with its metadata. Raises BackupNotFound, UsageError for a prefix that
    several ids share, CorruptBackup for a file that is no archive.
    """
    if "/" in reference or reference.endswith((".tar.gz", ".enc")) or os.path.isfile(reference):
        return _at(installation, Path(reference))
    return installation.repository, installation.repository.find(reference)


def _at(installation: Installation, path: Path) -> tuple[ArchiveRepository, BackupMetadata]:
    if not os.path.isfile(path):
        raise BackupNotFound(f"there is no file {path}")
    path = path.absolute()
    backup_id = archive_id(path.name)
    if path.parent.name in BACKUP_TYPES:
        repository = installation.repository.archive.over(LocalStorage(path.parent.parent))
        if backup_id is not None and repository.path_of(backup_id) == f"{path.parent.name}/{path.name}":
            return repository, repository.find(backup_id)
    alone = installation.repository.archive.over(FlatStorage(path.parent))
    if backup_id is not None and alone.path_of(backup_id) is not None:
        return alone, alone.find(backup_id)
    metadata = alone.examine(path.name)
    renamed = FlatStorage(path.parent, {alone.archive_name(metadata): path.name})
    if backup_id is not None and metadata.backup_id != backup_id:
        raise CorruptBackup(
            f"{path.name} holds the backup {metadata.backup_id}",
            hint="Give the file its own name back, if you trust where it comes from.",
        )
    return alone.over(renamed), metadata
