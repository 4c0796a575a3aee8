"""Put a backup back, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.durable import free_bytes
from holdfast.errors import (
    ConfirmationRequired,
    HostileBackup,
    NoSpace,
    UsageError,
)
from holdfast.events import Emit, Noted, RunFinished, RunStarted, StageStarted, Warned
from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.jobs._progress import Progress
from holdfast.jobs._restore_log import RestoreLog, restore_log
from holdfast.jobs._trust import Confirm, check_signature
from holdfast.model import BackupMetadata, Entry, SourceRecord, parse_components
from holdfast.repository.base import StoredBackup
from holdfast.sources.base import Read
from holdfast.sources.files._staging import make_empty_directory
from holdfast.transaction import Transaction

_RESERVE = 16 << 20
"""Bytes left alone on every file system that is restored to."""


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
    target: Path | None = None,
    confirm: Confirm = nobody,
    vouch: Confirm = nobody,
    create_db: bool = False,
    trust: bool = False,
) -> Restored:
    """Restores a backup's components, by default all of them, over the live data, or below `target`.

    `confirm` is asked before live data is replaced, `vouch` where nothing tells yet whose backups to believe.
    With `create_db`, missing directories above a SQLite file are made. On any error the data is as it was. Raises
    HoldfastError of every kind.
    """
    started = time.monotonic()
    with restore_log(installation, reference, emit) as log:
        repository, metadata = locate(installation, reference)
        wanted = parse_components(list(components)) if components is not None else metadata.components
        if lacking := [name for name in wanted if name not in metadata.components]:
            raise UsageError(
                f"{metadata.backup_id} does not hold {', '.join(lacking)}",
                hint=f"It holds {', '.join(metadata.components)}.",
            )
        log.emit(RunStarted("restore", metadata.backup_id))
        check_signature(installation, repository, metadata, trust=trust, vouch=vouch)
        with repository.lent(), repository.open(metadata) as stored:
            records = [record for record in stored.sources() if record.component in wanted]
            work = _Work(stored, records, log)
            if target is not None:
                work.extract(installation, target)
            else:
                replaced = ", ".join(dict.fromkeys(record.component for record in records))
                root = installation.settings.root
                if not confirm(f"Replace {replaced} in {root} by {metadata.backup_id}?"):
                    raise ConfirmationRequired(
                        f"restoring {metadata.backup_id} replaces {replaced} in {root}"
                    )
                work.swap(installation, metadata, create_db=create_db)
        log.emit(RunFinished("restore", metadata.backup_id))
        return Restored(
            metadata=metadata,
            sources=tuple(f"{record.component} {record.name}" for record in records),
            entries=work.entries,
            bytes_restored=work.bytes,
            duration_seconds=time.monotonic() - started,
            warnings=tuple(log.warnings),
            notes=tuple(log.notes),
            target=target,
            log=log.path,
        )


class _Work:
    """The entries of the wanted sources on their way to where they belong."""

    def __init__(self, stored: StoredBackup, records: Sequence[SourceRecord], log: RestoreLog) -> None:
        self.entries = 0
        self.bytes = 0
        self._stored = stored
        self._records = records
        self._log = log
        self._limit = sum(record.bytes for record in records)
        self._progress = Progress(log.emit)

    def swap(self, installation: Installation, metadata: BackupMetadata, *, create_db: bool) -> None:
        targets = [
            (record, installation.target(record, create_database=create_db)) for record in self._records
        ]
        needs: dict[Path, int] = {}
        for record, place in targets:
            for directory, size in place.needs(record.bytes).items():
                needs[directory] = needs.get(directory, 0) + size
        _check_room(needs)
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
                swaps += place.stage(self._read_entries(record), self._read, transaction, self._log.emit)
                self._progress.flush()
            self._log.emit(StageStarted("swap", metadata.backup_id))
            for warning in transaction.apply(swaps):
                self._log.emit(Warned(warning))
            for swap in swaps:
                if swap.note:
                    self._log.emit(Noted(swap.note))

    def extract(self, installation: Installation, target: Path) -> None:
        target = target.absolute()
        _check_room({target: self._limit})
        make_empty_directory(target)
        for record in self._records:
            self._log.emit(StageStarted("write", f"{record.component} {record.name}", record.bytes))
            place = installation.elsewhere(record, target, self._records)
            place.write(self._read_entries(record), self._read, self._log.emit, within=target)
            self._progress.flush()

    def _read_entries(self, record: SourceRecord) -> Iterator[Entry]:
        for entry in self._stored.entries(record):
            self.entries += 1
            if entry.kind == "file":
                self.bytes += entry.size
                if self.bytes > self._limit:
                    raise HostileBackup("the backup unpacks to more than its manifest adds up to")
            yield entry
            self._progress(0, 1)

    @property
    def _read(self) -> Read:
        progress, read = self._progress, self._stored.read

        def counted(entry: Entry) -> Iterator[bytes | memoryview]:
            for piece in read(entry):
                progress(len(piece))
                yield piece

        return counted


def _check_room(needs: dict[Path, int]) -> None:
    by_device: dict[int, tuple[Path, int]] = {}
    for directory, size in needs.items():
        while not directory.exists():
            directory = directory.parent
        device = directory.stat().st_dev
        by_device[device] = directory, size + by_device.get(device, (directory, 0))[1]
    for directory, size in by_device.values():
        free = free_bytes(directory)
        if size + _RESERVE > free:
            raise NoSpace(
                f"the restore needs {size / 1e9:.3g} GB in {directory}, which has {free / 1e9:.3g} GB free",
                hint="What is there now is kept until the restore has succeeded. Free some space, or use --target.",
            )
