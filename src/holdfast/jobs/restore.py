"""Put a backup back, whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from holdfast.errors import ConfirmationRequired, RestoreError
from holdfast.events import Emit, Noted, RunFinished, RunStarted, StageStarted, Warned
from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.jobs._paths import find_paths
from holdfast.jobs._reading import Reading, check_room, chosen
from holdfast.jobs._restore_log import RestoreLog, restore_log
from holdfast.jobs._selection import Selection, SourceKey
from holdfast.jobs._trust import Confirm, check_signature
from holdfast.model import COMPONENTS, BackupMetadata, SourceRecord
from holdfast.repository.base import StoredBackup
from holdfast.sources.files._staging import make_empty_directory
from holdfast.text import shown
from holdfast.transaction import Transaction

_NAMED = 5
"""Paths that are told, of those that were chosen."""
_ROOM = "What is there now is kept until the restore has succeeded. Free some space, or use --target."


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    metadata: BackupMetadata
    sources: tuple[str, ...]
    entries: int
    bytes_restored: int
    duration_seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    target: Path | None
    log: Path


def nobody(question: str) -> bool:
    """For callers without a person to ask."""
    return False


def restore(
    installation: Installation,
    reference: str,
    emit: Emit,
    *,
    components: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    target: Path | None = None,
    confirm: Confirm = nobody,
    vouch: Confirm = nobody,
    create_db: bool = False,
    trust: bool = False,
) -> Restored:
    """Restores a backup's components, by default all of them, over the live data, or below `target`.

    With `paths` only these files, directories and databases, as `ls` prints them, relative to the service root, or
    absolute; their neighbours are left alone. `confirm` is asked before live data is replaced, `vouch` where nothing
    tells yet whose backups to believe. With `create_db`, missing directories above a SQLite file are made. On any
    error the data is as it was. Raises HoldfastError of every kind.
    """
    started = time.monotonic()
    with restore_log(installation, reference, emit) as log:
        repository, metadata = locate(installation, reference)
        wanted = chosen(metadata, components)
        log.emit(RunStarted("restore", metadata.backup_id))
        if reference == "latest" and components is None and not paths:
            _tell_what_it_lacks(repository.backups(), metadata, log.emit)
        check_signature(installation, repository, metadata, trust=trust, vouch=vouch)
        with repository.lent(), repository.open(metadata) as stored:
            records = [record for record in stored.sources() if record.component in wanted]
            replaced = ", ".join(dict.fromkeys(record.component for record in records))
            only: dict[SourceKey, list[str]] = {}
            source = stored
            if paths:
                found = find_paths(stored, records, paths, installation.settings.root)
                replaced = _named([path for each in found.values() for path in each])
                log.emit(Noted(f"only {replaced} of {metadata.backup_id}"))
                is_there = partial(_is_there, installation) if target is None else _nothing
                source = selection = Selection(stored, found, is_there)
                records = list(selection.sources())
                only = {record.key: selection.tops(record) for record in records}
            work = _Work(source, records, log)
            if target is not None:
                work.extract(installation, target)
            else:
                root = installation.settings.root
                if not confirm(f"Replace {replaced} in {root} by {metadata.backup_id}?"):
                    raise ConfirmationRequired(
                        f"restoring {metadata.backup_id} replaces {replaced} in {root}"
                    )
                work.swap(installation, metadata, only, create_db=create_db)
        log.emit(RunFinished("restore", metadata.backup_id))
        return Restored(
            metadata=metadata,
            sources=tuple(f"{record.component} {record.name}" for record in records),
            entries=work.reading.entries,
            bytes_restored=work.reading.bytes,
            duration_seconds=time.monotonic() - started,
            warnings=tuple(log.warnings),
            notes=tuple(log.notes),
            target=target,
            log=log.path,
        )


def _named(paths: Sequence[str]) -> str:
    return ", ".join([shown(path) for path in paths[:_NAMED]] + ["…"] * (len(paths) > _NAMED))


def _nothing(record: SourceRecord, path: str) -> bool:
    return False


def _is_there(installation: Installation, record: SourceRecord, path: str) -> bool:
    place = installation.place(record, path)
    if os.path.isdir(place) and (path in record.roots or not os.path.islink(place)):
        return True
    if os.path.lexists(place):
        raise RestoreError(
            f"{shown(str(place))} is no directory, and in the backup it is one",
            hint=f"Restore all of it, with --path {shown(path)}; or restore elsewhere with --target DIR.",
        )
    return False


def _tell_what_it_lacks(backups: Sequence[BackupMetadata], latest: BackupMetadata, emit: Emit) -> None:
    """The latest backup may hold less than the one before it: then nobody must think that all has come back."""
    for component in COMPONENTS:
        if component in latest.components:
            continue
        other = next((known for known in backups if known.is_good and component in known.components), None)
        if other is not None:
            emit(
                Noted(
                    f"{latest.backup_id} does not hold {component}; the newest backup that does is {other.backup_id}"
                )
            )


class _Work:
    """The entries of the wanted sources on their way to where they belong."""

    def __init__(self, stored: StoredBackup, records: Sequence[SourceRecord], log: RestoreLog) -> None:
        self.reading = Reading(stored, records, log.emit)
        self._records = records
        self._log = log

    def swap(
        self,
        installation: Installation,
        metadata: BackupMetadata,
        only: Mapping[SourceKey, Sequence[str]],
        *,
        create_db: bool,
    ) -> None:
        targets = [
            (record, installation.target(record, create_database=create_db, only=only.get(record.key)))
            for record in self._records
        ]
        needs: dict[Path, int] = {}
        for record, place in targets:
            for directory, size in place.needs(record.bytes).items():
                needs[directory] = needs.get(directory, 0) + size
        check_room(needs, "the restore", _ROOM)
        state = installation.state
        state.make()
        with Transaction.begin(
            state.service,
            installation.swaps,
            verb="restore",
            subject=metadata.backup_id,
            clock=installation.clock,
        ) as transaction:
            swaps = []
            for record, place in targets:
                self._log.emit(StageStarted("stage", f"{record.component} {record.name}", record.bytes))
                swaps += place.stage(
                    self.reading.entries_of(record), self.reading.read, transaction, self._log.emit
                )
                self.reading.flush()
            self._log.emit(StageStarted("swap", metadata.backup_id))
            for warning in transaction.apply(swaps):
                self._log.emit(Warned(warning))
            for swap in swaps:
                if swap.note:
                    self._log.emit(Noted(swap.note))

    def extract(self, installation: Installation, target: Path) -> None:
        target = target.absolute()
        check_room({target: self.reading.limit}, "the restore", _ROOM)
        make_empty_directory(target)
        for record in self._records:
            self._log.emit(StageStarted("write", f"{record.component} {record.name}", record.bytes))
            place = installation.elsewhere(record, target, self._records)
            place.write(self.reading.entries_of(record), self.reading.read, self._log.emit, within=target)
            self.reading.flush()
