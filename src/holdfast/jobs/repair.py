"""Mend what can be mended, and make again what can be made again from the archives."""

from __future__ import annotations

from holdfast.errors import CorruptBackup, CredentialError
from holdfast.events import Emit, Noted, Warned
from holdfast.installation import Installation


def repair(installation: Installation, emit: Emit) -> int:
    """Writes anew what its parity mends; then the metadata that archives have lost, and the list that the next
    incremental needs.

    A signature cannot be made again: restoring such a backup needs `--trust`. Returns how many things were
    repaired. Raises LockHeld, KeyMissing where archives are encrypted and cannot be read.
    """
    repaired = 0
    repository = installation.repository
    installation.state.make()
    with repository.expiring():
        for mending in repository.mend():
            emit(Noted(mending.told) if mending.is_done else Warned(mending.told))
            repaired += mending.is_done
        installation.mended.clear()  # It is written anew by now, or was told of.
        for name in repository.orphans():
            try:
                metadata = repository.examine(name)
            except (CorruptBackup, CredentialError) as error:
                emit(Warned(f"{name} cannot be read: {error}"))
                continue
            if repository.name_of(metadata) != name:
                emit(Warned(f"{name} holds {metadata.backup_id}: give it that name"))
                continue
            repository.save_metadata(metadata)
            emit(Noted(f"{metadata.backup_id}: wrote its metadata again, without a signature"))
            repaired += 1
        if repository.writes == "dedup" and not repository.dedup.can_read():
            emit(Warned("the identity is not here, so nothing that has to be read is made again"))
            return repaired
        full = next((metadata for metadata in repository.backups("full") if metadata.is_good), None)
        if full is not None and repository.rebuild_list(full):
            emit(Noted(f"{full.backup_id}: made the list again that incrementals are compared with"))
            repaired += 1
        if repository.writes == "dedup" and full is not None:
            learnt = repository.dedup.remember()
            if learnt:
                emit(Noted(f"learnt again what lies in {learnt} packs, so that it is not stored once more"))
                repaired += learnt
    return repaired
