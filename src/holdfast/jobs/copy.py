"""Copy backups to another backup directory, perhaps in the other format."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.clock import timestamp
from holdfast.durable import explained
from holdfast.errors import (
    BackupNotFound,
    ConfigError,
    CorruptBackup,
    HoldfastError,
    Interrupted,
    KeyMissing,
    LockHeld,
    NoSpace,
    UsageError,
)
from holdfast.events import Emit, Noted, RunFailed, RunFinished, RunStarted, StageStarted, Warned
from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.jobs._progress import Progress
from holdfast.jobs._trust import Confirm, check_signature
from holdfast.model import BackupFormat, BackupMetadata, Entry, is_unchanged, make_backup_id
from holdfast.repository.base import Pieces, Repository, Run, RunPlan, StoredBackup

_SMALL = 256 << 10
"""Bytes up to which content is handed over whole, as sources do."""
_FILES = ("files", "sqlite")
"""Kinds of sources whose entries have a size beforehand. A server's dump has none, and is stored in pieces again."""

_FATAL = (NoSpace, LockHeld, KeyMissing, Interrupted)
"""What would stop every other copy as well."""

Located = tuple[Repository, BackupMetadata]


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one backup."""

    backup: BackupMetadata
    copy: BackupMetadata | None
    """What stands for it in the other directory. None where it could not be copied."""
    made: bool = False
    """It was copied by this call; else it was there already, or failed."""
    error: HoldfastError | None = None
    warnings: tuple[str, ...] = ()


def copy(
    installation: Installation,
    references: Sequence[str],
    to: Path,
    emit: Emit,
    *,
    all_: bool = False,
    format_: BackupFormat | None = None,
    trust: bool = False,
    vouch: Confirm = lambda question: False,
) -> list[Copied]:
    """Copies backups, or all there are, to the backup directory `to`, oldest first, in `format_`, by default that of
    the settings. What an incremental archive rests on goes before it. What is there already is left as it is.

    A copy keeps the id, the time and all else that its original says of itself and of what it holds; size, checksum
    and manifest are its own, and this host signs it. Every content is compared with the digest in the original's
    manifest, whose signature is checked first: see `check_signature` for `trust` and `vouch`.

    Returns what became of each, and of those that went before. Where one cannot be copied, the others are all the
    same; its error is raised when no other was asked for. Raises UsageError and ConfigError for a directory that
    cannot be copied to; and at once NoSpace, LockHeld, and KeyMissing on a host that cannot read.
    """
    target = _target(installation, to, format_)
    chosen = _chosen(installation, references, all_=all_)
    if any(repository is installation.repository for repository, _ in chosen) and _is_same(
        target.settings.backup_dir, installation.settings.backup_dir
    ):
        raise UsageError(
            f"{to} is where the backups are, and a directory holds an id once: a copy keeps its id",
            hint="Copy them to another directory, and use that from then on: BACKUP_DIR names it.",
        )
    copier = _Copier(installation, target, emit, trust=trust, vouch=vouch)
    for repository, metadata in chosen:
        outcome = copier.copy(repository, metadata)
        if len(chosen) == 1 and outcome.error is not None:
            raise outcome.error
    return list(copier.outcomes.values())


def _target(installation: Installation, to: Path, format_: BackupFormat | None) -> Installation:
    directory = installation.settings.root / to
    if not directory.is_dir():
        raise ConfigError(
            f"{directory} is not there, or is no directory",
            hint="Is its disk mounted? A directory for a first copy has to be made by hand.",
        )
    target = installation.at(directory, format_ or installation.settings.format)
    target.settings.check_paths()
    return target


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and os.path.samefile(one, other)


def _chosen(installation: Installation, references: Sequence[str], *, all_: bool) -> list[Located]:
    """What was asked for, oldest first."""
    if all_ and references:
        raise UsageError("both --all and an ID were given", hint="--all copies every backup there is.")
    if all_:
        known = installation.repository.backups()
        found: list[Located] = [
            (installation.repository, metadata)
            for metadata in known
            if metadata.is_good or metadata.status == "damaged"
        ]
    else:
        found = [locate(installation, reference) for reference in references or ["latest"]]
    return sorted(found, key=lambda one: (one[1].moment, one[1].backup_id))


class _Copier:
    """Copies one backup after the other to the same directory."""

    def __init__(
        self, installation: Installation, target: Installation, emit: Emit, *, trust: bool, vouch: Confirm
    ) -> None:
        self._installation = installation
        self._target = target
        self._emit = emit
        self._trust = trust
        self._vouch = vouch
        self.outcomes: dict[tuple[str, str], Copied] = {}
        """By id and identity."""
        self._there = {known.backup_id: known for known in target.repository.backups() if known.is_good}

    def copy(self, repository: Repository, metadata: BackupMetadata) -> Copied:
        """Copies a backup, after what it has to rest on, unless it is there."""
        for level in self._parents(repository, metadata):
            self._copy(repository, level)
        return self._copy(repository, metadata)

    def _parents(self, repository: Repository, metadata: BackupMetadata) -> list[BackupMetadata]:
        """What an incremental archive would rest on, the full backup first."""
        if self._target.settings.format != "archive" or self._is_there(metadata):
            return []
        found = [metadata]
        seen = {metadata.backup_id}
        while (parent := found[-1].parent) is not None and parent not in seen:
            seen.add(parent)
            try:
                found.append(repository.find(parent))
            except (BackupNotFound, CorruptBackup):
                break
        return found[:0:-1]

    def _copy(self, repository: Repository, metadata: BackupMetadata) -> Copied:
        key = metadata.backup_id, metadata.identity
        if key not in self.outcomes:
            try:
                there = self._find(metadata)
                self.outcomes[key] = Copied(metadata, there) if there else self._make(repository, metadata)
            except _FATAL:
                raise
            except HoldfastError as error:
                self.outcomes[key] = Copied(metadata, None, error=error)
        return self.outcomes[key]

    def _make(self, repository: Repository, metadata: BackupMetadata) -> Copied:
        started = time.monotonic()
        try:
            if metadata.status == "damaged":
                raise CorruptBackup(
                    metadata.error_message or "its metadata cannot be read",
                    hint="`holdfast repair` can make it again.",
                )
            self._emit(RunStarted("copy", metadata.backup_id))
            self._check_readable(metadata)
            check_signature(self._installation, repository, metadata, trust=self._trust, vouch=self._vouch)
            made, warnings = self._transfer(repository, metadata)
        except BaseException as error:
            self._record(metadata, started, error=error)
            said = str(error) if isinstance(error, HoldfastError) else type(error).__name__
            self._emit(RunFailed("copy", metadata.backup_id, said))
            raise
        self._there[made.backup_id] = made
        self._record(metadata, started, made=made)
        self._emit(RunFinished("copy", metadata.backup_id))
        return Copied(metadata, made, True, warnings=tuple(warnings))

    def _is_there(self, metadata: BackupMetadata) -> bool:
        return any(known.identity == metadata.identity for known in self._of_moment(metadata.backup_id))

    def _find(self, metadata: BackupMetadata) -> BackupMetadata | None:
        """The copy of a backup; or the backup itself, brought there by other means. Raises CorruptBackup for one that
        is recorded, and not there."""
        for known in self._of_moment(metadata.backup_id):
            if known.identity == metadata.identity:
                if self._target.repository.is_present(known):
                    return known
                raise CorruptBackup(
                    f"{known.backup_id} is recorded in {self._target.settings.backup_dir}, and is not there",
                    hint="Delete its metadata.json there: then it is copied again.",
                )
        return None

    def _of_moment(self, backup_id: str) -> Iterator[BackupMetadata]:
        """What is there under an id, or under that of a full backup of the same moment."""
        for known in (backup_id, f"full_{backup_id.partition('_')[2]}"):
            if known in self._there:
                yield self._there[known]

    def _check_readable(self, metadata: BackupMetadata) -> None:
        if metadata.encrypted and not self._installation.keys().can_decrypt:
            raise KeyMissing(
                f"{metadata.backup_id} cannot be copied: this host can write backups and not read them",
                hint="Copy where the identity is. Archives can be copied as files, with what they rest on.",
            )

    def _plan(self, metadata: BackupMetadata) -> RunPlan:
        type_, parent = metadata.type, None
        if type_ == "incremental" and self._target.settings.format == "archive":
            parent = next(
                (known for known in self._of_moment(metadata.parent or "") if known.format == "archive"), None
            )
            if parent is None:
                type_ = "full"
                whole = make_backup_id("full", metadata.moment)
                self._emit(
                    Noted(f"{metadata.backup_id} becomes {whole}: there is no archive that it could rest on")
                )
        return RunPlan(
            type=type_,
            components=metadata.components,
            parent=parent,
            tags=metadata.tags,
            schedule_id=metadata.schedule_id,
            max_bytes=self._target.settings.max_bytes,
            original=metadata,
        )

    def _transfer(self, repository: Repository, metadata: BackupMetadata) -> tuple[BackupMetadata, list[str]]:
        """Returns the copy, and what a person should know of it."""
        with (
            repository.lent(),
            repository.open(metadata) as stored,
            self._target.repository.begin(self._plan(metadata)) as run,
        ):
            _store(stored, run, self._emit)
            self._emit(StageStarted("seal", run.backup_id))
            made = run.commit(
                warnings=metadata.warnings,
                duration_seconds=metadata.duration_seconds,
                coherent=metadata.coherent,
            )
        for warning in run.warnings:
            self._emit(Warned(warning))
        return made, run.warnings

    def _record(
        self,
        metadata: BackupMetadata,
        started: float,
        *,
        made: BackupMetadata | None = None,
        error: BaseException | None = None,
    ) -> None:
        record: dict[str, Any] = {
            "time": timestamp(self._installation.clock()),
            "verb": "copy",
            "backup_id": metadata.backup_id,
            "to": str(self._target.settings.backup_dir),
            "status": "success" if error is None else "failed",
            "duration_seconds": round(time.monotonic() - started, 3),
        }
        if made is not None:
            record["size_bytes"] = made.size_bytes
        if error is not None:
            record |= {
                "error": type(error).__name__,
                "message": str(error) if isinstance(error, HoldfastError) else "",
            }
        self._installation.state.record(record)


def _store(stored: StoredBackup, run: Run[Any], emit: Emit) -> None:
    """What the run knows to be the same is not read."""
    comparable = stored.digests == run.digests
    for record in stored.sources():
        run.begin_source(record.component, record.name)
        label = f"{record.component} {record.name}".removesuffix(f" {record.component}")
        emit(StageStarted("copy", label, record.bytes))
        progress = Progress(emit)
        for entry in stored.entries(record):
            known = run.known(entry.path)
            if known is not None and _is_known(known.entry, entry, comparable):
                run.keep(known)
                progress(entry.size if entry.kind == "file" else 0, 1)
                continue
            added = run.add(entry, _content(stored, entry, progress, sized=record.kind in _FILES), known)
            if added != (entry if comparable else entry._replace(digest=added.digest)):
                raise CorruptBackup(f"{entry.path}: what was stored is not what was read")
            progress(0, 1)
        progress.flush()
        run.end_source(record)


def _is_known(known: Entry, entry: Entry, comparable: bool) -> bool:
    """Where digests cannot be compared, by what a backup goes by itself when it reads a file no second time."""
    if comparable:
        return known == entry
    return is_unchanged(known, entry) and known._replace(digest=entry.digest) == entry


@dataclass(frozen=True, slots=True)
class _Content:
    """Implements `holdfast.repository.base.Stored`."""

    size: int | None
    data: bytes | None
    stream: Pieces | None


def _content(stored: StoredBackup, entry: Entry, progress: Progress, *, sized: bool) -> _Content | None:
    if entry.kind != "file":
        return None
    pieces = _told(stored.read(entry), progress, stored.metadata.backup_id)
    if sized and entry.size <= _SMALL:
        return _Content(entry.size, b"".join(bytes(piece) for piece in pieces), None)
    return _Content(entry.size if sized else None, None, pieces)


def _told(pieces: Pieces, progress: Progress, backup_id: str) -> Pieces:
    with explained(f"cannot read {backup_id}"):
        for piece in pieces:
            yield piece
            progress(len(piece))
