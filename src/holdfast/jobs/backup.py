"""Make a backup."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from holdfast.clock import timestamp
from holdfast.errors import (
    HoldfastError,
    ParentMissing,
    SourceChanged,
    SourceError,
    SourceMissing,
    StorageError,
)
from holdfast.events import (
    Emit,
    Event,
    Noted,
    RunFailed,
    RunFinished,
    RunStarted,
    Skipped,
    StageStarted,
    Warned,
)
from holdfast.installation import Installation
from holdfast.jobs._hooks import hooks
from holdfast.jobs._model_watch import ModelWatch
from holdfast.jobs._progress import Progress
from holdfast.model import (
    COMPONENTS,
    BackupMetadata,
    BackupType,
    Component,
    Report,
    is_unchanged,
    parse_components,
)
from holdfast.repository.base import Run, RunAbandoned, RunPlan
from holdfast.sources.base import Item, Pieces, Source

_TRIES = 3
_WARNINGS_KEPT = 100


def backup(
    installation: Installation,
    emit: Emit,
    *,
    components: Sequence[str] | None = None,
    incremental: bool = False,
    since: str | None = None,
    rehash: bool = False,
    schedule_id: str | None = None,
) -> Report:
    """Makes a full backup of `components`, by default of what the settings include; or an incremental one since the
    last good full backup, or since another.

    `rehash` reads also what looks unchanged. `schedule_id`: the schedule that has it made. Raises HoldfastError of
    every kind: what is raised was recorded in the history, and has left no archive.
    """
    started = time.monotonic()
    tally = _Tally(emit)
    settings = installation.settings
    order = _Order(components, incremental or since is not None, since, rehash, schedule_id, started)
    try:
        settings.check_paths()
        with hooks(settings.hooks_before, settings.hooks_after, settings.root):
            metadata = _backup(installation, tally, order)
    except BaseException as error:
        _record(installation, "failed", order, error=error, backup_id=tally.backup_id)
        # What another library says in an exception may hold a URL, with its password.
        said = str(error) if isinstance(error, HoldfastError) else type(error).__name__
        emit(RunFailed("backup", tally.backup_id, said))
        raise
    _record(installation, "success", order, metadata=metadata)
    emit(RunFinished("backup", metadata.backup_id))
    return Report(metadata, tuple(tally.warnings), tally.bytes_read, tally.skipped, tuple(tally.notes))


class _StartAnew(RunAbandoned):
    """What was stored cannot become a good backup; another run may."""


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for."""

    components: Sequence[str] | None
    incremental: bool
    since: str | None
    rehash: bool
    schedule_id: str | None
    started: float
    """By `time.monotonic`."""


def _backup(installation: Installation, tally: _Tally, order: _Order) -> BackupMetadata:
    for attempt in range(1, _TRIES + 1):
        try:
            return _take(installation, tally, order, settle=attempt == _TRIES)
        except _StartAnew as reason:
            if attempt == _TRIES:
                raise SourceChanged(f"{reason}, {_TRIES} times over") from None
            tally.start_anew()
            tally(Noted(f"{reason}: everything is read again"))
    raise AssertionError("unreachable")


def _take(installation: Installation, tally: _Tally, order: _Order, *, settle: bool) -> BackupMetadata:
    """One run. Raises _StartAnew when databases and models are not of one moment, unless it is to `settle`."""
    repository = installation.repository
    parent = _parent(installation, order.since) if order.incremental else None
    wanted = parse_components(list(order.components)) if order.components is not None else None
    selected = wanted or _selected_by_default(installation, parent)
    required = set(wanted or (parent.components if parent else ()))
    plan = RunPlan(
        type=_type_of(wanted, parent),
        components=selected,
        parent=parent,
        tags=installation.settings.tags,
        schedule_id=order.schedule_id,
        max_bytes=installation.settings.max_bytes,
    )
    try:
        scans = _begin_scans(installation, selected, required, tally)
    except SourceError as error:
        try:
            tally.backup_id = repository.record_unbegun(plan, error, installation.clock())
        except StorageError as second:
            error.add_note(f"The failure could not be recorded beside the backups either: {second}")
        raise
    present = tuple(name for name in selected if any(scan.source.component == name for scan in scans))
    _compare_with_last(installation, present, selected, tally)
    with repository.begin(replace(plan, components=present)) as run:
        tally.backup_id = run.backup_id
        tally(RunStarted("backup", run.backup_id))
        told = len(run.warnings)
        for warning in run.warnings:
            tally(Warned(warning))
        watch = ModelWatch([scan.source for scan in scans])
        for scan in scans:
            watch.before(scan.source)
            _store(scan, run, tally, rehash=order.rehash)
            watch.after(scan.source)
            if watch.coherent is False and not settle:
                raise _StartAnew("models changed after the databases were read")
        if watch.coherent is False:
            tally(
                Warned(
                    f"models kept changing: they may not belong to the rows in the databases, after {_TRIES} tries"
                )
            )
        tally(StageStarted("seal", run.backup_id))
        metadata = run.commit(
            warnings=tally.count,
            duration_seconds=time.monotonic() - order.started,
            coherent=watch.coherent,
        )
        for warning in run.warnings[told:]:
            tally(Warned(warning))
        return metadata


def _parent(installation: Installation, since: str | None) -> BackupMetadata:
    if since is not None:
        return installation.repository.find(since)
    repository = installation.repository
    full = _last(
        installation,
        [
            metadata
            for metadata in repository.backups("full")
            if metadata.is_good and metadata.format == repository.writes
        ],
    )
    if full is None:
        raise ParentMissing("there is no full backup for an incremental one to rest on")
    return full


def _last(installation: Installation, backups: Sequence[BackupMetadata]) -> BackupMetadata | None:
    """The newest that this host has made; of several that share the directory each has a service of its own. Where it
    has made none, or has lost its signing key, the newest."""
    key = installation.signing_key().public
    own = (known for known in backups if known.signature is not None and known.signature.key == key)
    return next(own, backups[0] if backups else None)


def _selected_by_default(installation: Installation, parent: BackupMetadata | None) -> tuple[Component, ...]:
    """The database, found or not, what the settings include, and whatever the parent has."""
    included = {
        "database",
        *installation.settings.default_components(),
        *(parent.components if parent else ()),
    }
    return tuple(component for component in COMPONENTS if component in included)


def _type_of(wanted: tuple[Component, ...] | None, parent: BackupMetadata | None) -> BackupType:
    if parent is not None:
        return "incremental"
    # Only what was asked for alone: a service that has nothing but a configuration still gets full backups.
    if wanted == ("config",):
        return "config"
    return "models" if wanted == ("models",) else "full"


@dataclass
class _Scan:
    """A source that is there, and its items."""

    source: Source
    items: Iterator[Item]


def _begin_scans(
    installation: Installation, selected: Sequence[Component], required: set[Component], tally: _Tally
) -> list[_Scan]:
    """Opens every source before anything is written. Raises SourceMissing for one that must be there."""
    scans = []
    for source in installation.sources(selected):
        items = source.scan(tally)
        first = next(items, None)
        if first is not None:
            scans.append(_Scan(source, chain([first], items)))
    for component in selected:
        if any(scan.source.component == component for scan in scans):
            continue
        if component in required:
            raise SourceMissing(
                f"{component}: there is nothing to back up in {installation.settings.root}, though it was asked for, "
                "or the parent backup has it",
                hint="Is a disk unmounted? Else name the paths in holdfast.toml, or take a full backup without it.",
            )
        tally(Noted(f"{component}: none found"))
    if not scans:
        raise SourceMissing(
            f"there is nothing to back up in {installation.settings.root}",
            hint="Run it in the service's directory, set DATABASE_URL, or name the paths in holdfast.toml.",
        )
    return scans


def _compare_with_last(
    installation: Installation, present: tuple[Component, ...], selected: Sequence[Component], tally: _Tally
) -> None:
    """A component that was in the last full backup and is gone is worth a warning, even where nothing needs it."""
    last = _last(installation, [known for known in installation.repository.backups("full") if known.is_good])
    for component in last.components if last is not None else ():
        if component in selected and component not in present:
            tally(Warned(f"{component} was in the last full backup, and is not there any more"))


def _store(scan: _Scan, run: Run[Any], tally: _Tally, *, rehash: bool) -> None:
    source = scan.source
    run.begin_source(source.component, source.name)
    tally(StageStarted("read", f"{source.component} {source.name}".removesuffix(f" {source.component}")))
    progress = Progress(tally)
    for item in scan.items:
        known = run.known(item.entry.path)
        if known is not None and not rehash and is_unchanged(known.entry, item.entry):
            run.keep(known)
            progress(0, 1)
            continue
        tally.bytes_read += _add(item, run, known, source, tally, progress)
    progress.flush()
    run.end_source(source.record())


def _add(item: Item, run: Run[Any], known: Any, source: Source, tally: _Tally, progress: Progress) -> int:
    """Stores an item, read again when it changes meanwhile. Returns its size in bytes."""
    for attempt in range(1, _TRIES + 1):
        try:
            entry, content = item.open(settle=source.tolerates_change and attempt == _TRIES)
            if content is None or content.stream is None:
                size = run.add(entry, content, known).size
                progress(size, 1)
            else:
                with closing(content.stream) as stream:
                    content.stream = _told(stream, progress)
                    size = run.add(entry, content, known).size
        except SourceMissing:
            if source.component == "database":
                raise
            if attempt > 1:  # What was read of it cannot be taken out of the archive any more.
                raise _StartAnew(f"{item.entry.path} was deleted while it was read") from None
            return 0  # It was deleted after it was listed: as if a moment earlier.
        except SourceChanged:
            if attempt == _TRIES:
                raise
        else:
            if content is not None and content.changed:
                tally(Warned(f"{entry.path} kept changing while it was read: the copy may mix two moments"))
            return size if entry.kind == "file" else 0
    raise AssertionError("unreachable")


def _told(stream: Pieces, progress: Progress) -> Pieces:
    memory: memoryview | None = None
    with suppress(StopIteration):
        while True:
            piece = stream.send(memory)
            memory = yield piece
            progress(len(piece))
    progress(0, 1)


@dataclass
class _Tally:
    """Passes events on, and counts what the report tells."""

    emit: Emit
    backup_id: str = ""
    count: int = 0
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bytes_read: int = 0
    skipped: int = 0

    def start_anew(self) -> None:
        """Forgets what the report would tell of a run that is taken back."""
        self.count = self.bytes_read = self.skipped = 0
        self.warnings.clear()
        self.notes.clear()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.count += 1
            if len(self.warnings) < _WARNINGS_KEPT:
                self.warnings.append(event.message)
            self.skipped += isinstance(event, Skipped)
        elif isinstance(event, Noted):
            self.notes.append(event.message)
        self.emit(event)


def _record(
    installation: Installation,
    status: str,
    order: _Order,
    *,
    metadata: BackupMetadata | None = None,
    error: BaseException | None = None,
    backup_id: str = "",
) -> None:
    record: dict[str, Any] = {
        "time": timestamp(installation.clock()),
        "verb": "backup",
        "backup_id": metadata.backup_id if metadata else backup_id,
        "type": metadata.type if metadata else ("incremental" if order.incremental else "full"),
        "status": status,
        "duration_seconds": round(time.monotonic() - order.started, 3),
    }
    if order.schedule_id is not None:
        record["schedule_id"] = order.schedule_id
    if metadata is not None:
        record |= {
            "size_bytes": metadata.size_bytes,
            "source_bytes": metadata.source_bytes,
            "components": metadata.components,
            "warnings": metadata.warnings,
        }
    if error is not None:
        record |= {
            "error": type(error).__name__,
            "message": str(error) if isinstance(error, HoldfastError) else "",
        }
    installation.state.record(record)
