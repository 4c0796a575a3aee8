"""Keep a backup for ever, or no longer."""

from __future__ import annotations

from holdfast.installation import Installation
from holdfast.model import BackupMetadata


def pin(installation: Installation, reference: str, *, pinned: bool) -> BackupMetadata:
    """A pinned backup, and what it rests on, never expires. Raises BackupNotFound; LockHeld while metadata is written
    anew, and what is read here would be old by the time that it is written: by `key rotate`, `repair`, `expire`."""
    repository = installation.repository
    with repository.lent():
        return repository.set_pinned(repository.find(reference), pinned)
