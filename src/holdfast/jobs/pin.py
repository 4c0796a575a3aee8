"""Keep a backup for ever, or no longer."""

from __future__ import annotations

from holdfast.installation import Installation
from holdfast.model import BackupMetadata


def pin(installation: Installation, reference: str, *, pinned: bool) -> BackupMetadata:
    """A pinned backup, and what it rests on, never expires. Raises BackupNotFound."""
    repository = installation.repository
    return repository.set_pinned(repository.find(reference), pinned)
