"""Free what nothing references any more."""

from __future__ import annotations

from holdfast.events import Emit, Noted
from holdfast.installation import Installation


def gc(installation: Installation, emit: Emit) -> list[str]:
    """Deletes what runs that were killed have left in the repository, lists of backups that are gone, and packs that
    no backup needs any more: those in two calls, at least a day apart.

    Returns their names. Raises LockHeld while backups are being read (and, where they are archives, made); KeyMissing
    where there are packs, and manifests cannot be read here.
    """
    repository = installation.repository
    with repository.expiring():
        freed = repository.clean()
        freed += repository.free()
        known = {metadata.backup_id for metadata in repository.backups() if metadata.is_good}
        for backup_id in installation.state.lists():
            if backup_id not in known:
                installation.state.list_file(backup_id).unlink(missing_ok=True)
                freed.append(f"list of {backup_id}")
    for name in freed:
        emit(Noted(f"freed {name}"))
    return freed
