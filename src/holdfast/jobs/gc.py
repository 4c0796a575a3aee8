"""Free what nothing references any more."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.events import Emit, Noted, Warned
from holdfast.installation import Installation


@dataclass(frozen=True, slots=True)
class Freed:
    """What a `gc` has done, and what a later one will do."""

    names: list[str]
    """What was deleted."""
    bytes: int
    """Of packs among that."""
    rewritten: int
    """Packs of which what is needed was written anew, to new packs of `written_bytes`."""
    written_bytes: int
    later_bytes: int
    """Of packs that are deleted a day from now at the earliest."""


def gc(installation: Installation, emit: Emit) -> Freed:
    """Deletes what runs that were killed have left in the repository, lists of backups that are gone, and packs that
    no backup needs any more: those in two calls, at least a day apart. Of packs of which backups need little, that is
    written anew.

    Raises LockHeld while backups are being read (and, where they are archives, made); KeyMissing where there are
    packs, and manifests cannot be read here; CorruptBackup where it cannot be told what backups need.
    """
    repository = installation.repository
    with repository.expiring():
        freed = repository.clean()
        collected = repository.collect()
        freed += collected.deleted
        known = {metadata.backup_id for metadata in repository.backups() if metadata.is_good}
        for backup_id in installation.state.lists():
            if backup_id not in known:
                installation.state.list_file(backup_id).unlink(missing_ok=True)
                freed.append(f"list of {backup_id}")
    for name in freed:
        emit(Noted(f"freed {name}"))
    for left in collected.left:
        emit(Noted(left))
    for damaged in collected.damaged:
        emit(Warned(damaged))
    if collected.rewritten:
        emit(
            Noted(
                f"wrote what is needed of {collected.rewritten} packs anew: "
                f"{collected.written_bytes / 1e6:.1f} MB"
            )
        )
    if collected.later_bytes:
        emit(Noted(f"{collected.later_bytes / 1e6:.1f} MB come free with a `holdfast gc` in a day or later"))
    return Freed(
        freed, collected.freed_bytes, collected.rewritten, collected.written_bytes, collected.later_bytes
    )
