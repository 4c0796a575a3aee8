"""Which backups there are: their metadata files."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from holdfast.clock import timestamp
from holdfast.errors import (
    BackupNotFound,
    CorruptBackup,
    HoldfastError,
    ParentMissing,
    RepositoryError,
    StorageError,
    UsageError,
)
from holdfast.model import (
    BACKUP_TYPES,
    METADATA_VERSION,
    BackupFormat,
    BackupMetadata,
    BackupType,
    Signature,
    is_backup_id,
    make_backup_id,
    type_of_id,
)
from holdfast.repository import _names as names
from holdfast.repository.base import RunPlan
from holdfast.storage.base import Storage

RUNNING = "running"
"""The status of a backup while it is made; left behind by a run that was killed."""

DAMAGED = "damaged"
"""The status that stands for a metadata file that cannot be read."""

METADATA_LIMIT = 1 << 20


class Catalog:
    """The metadata of the backups in a storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def backups(self, backup_type: BackupType | None = None) -> list[BackupMetadata]:
        found = []
        for kind in [backup_type] if backup_type else BACKUP_TYPES:
            for name in self._storage.names(names.DIRECTORIES[kind]):
                if is_backup_id(names.id_of_metadata(name) or ""):
                    with suppress(FileNotFoundError):  # deleted since it was listed
                        found.append(self._load(name))
        return sorted(found, key=lambda metadata: (metadata.timestamp, metadata.backup_id), reverse=True)

    def find(self, reference: str) -> BackupMetadata:
        if is_backup_id(reference) and self._storage.exists(names.metadata_name(reference)):
            metadata = self._load(names.metadata_name(reference))
            if metadata.status == DAMAGED:
                raise CorruptBackup(
                    metadata.error_message or reference, hint="`holdfast repair` can make it again."
                )
            if not metadata.is_good:
                raise BackupNotFound(
                    f"{reference} is the record of a backup that failed: {metadata.error_message or metadata.status}"
                )
            return metadata
        good = [metadata for metadata in self.backups() if metadata.is_good]
        if reference == "latest":
            if not good:
                raise BackupNotFound("there is no backup yet", hint="`holdfast backup` makes one.")
            # Of the whole service, where there is such a backup: not of a configuration that was saved since.
            return next((known for known in good if known.type in ("full", "incremental")), good[0])
        matching = [metadata for metadata in good if metadata.backup_id.startswith(reference)]
        if not reference or not matching:
            raise BackupNotFound(f"there is no backup {reference!r}")
        if len(matching) > 1:
            few = ", ".join(metadata.backup_id for metadata in matching[:4])
            raise UsageError(f"{reference!r} begins {len(matching)} ids: {few}…", hint="Give more of the id.")
        return matching[0]

    def chain(self, metadata: BackupMetadata) -> list[BackupMetadata]:
        found = [metadata]
        while (parent := found[-1].rests_on) is not None:
            if parent in {known.backup_id for known in found}:
                raise CorruptBackup(f"{parent} is said to rest on itself")
            try:
                found.append(self.find(parent))
            except BackupNotFound:
                raise ParentMissing(
                    f"{metadata.backup_id} rests on {parent}, which is not here",
                    hint=f"Bring {parent} back into the backup directory, or restore another backup.",
                ) from None
        return found

    def set_pinned(self, metadata: BackupMetadata, pinned: bool) -> BackupMetadata:
        name = names.metadata_name(metadata.backup_id)
        changed = replace(self._parse(name), pinned=pinned)
        # What a later version has written there, and this one does not know, stays.
        known = json.loads(self._storage.get(name, limit=METADATA_LIMIT))
        self._storage.put(name, _as_file({**known, "pinned": pinned}))
        return changed

    def save_metadata(self, metadata: BackupMetadata) -> None:
        self._storage.put(names.metadata_name(metadata.backup_id), _encode(metadata))

    def signature_of(self, metadata: BackupMetadata) -> tuple[Signature | None, bytes]:
        """What a backup is signed with, and the statement that it signs."""
        digest = metadata.manifest.digest if metadata.manifest else ""
        return metadata.signature, statement(metadata.backup_id, digest)

    def record_failure(self, started: BackupMetadata, error: BaseException) -> None:
        """Turns the record of a run that was begun into that of one that failed. Of a copy none is left."""
        message = str(error) if isinstance(error, HoldfastError) else f"{type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            message = "interrupted"
        try:
            if started.original is not None:
                # The backup is where it was, and its id must be free for the next copy.
                self._storage.delete(names.metadata_name(started.backup_id))
                return
            self.save_metadata(
                replace(
                    started, status="failed", error_message=message, size_bytes=0, checksum="", manifest=None
                )
            )
        except StorageError as second:
            error.add_note(f"The failure could not be recorded either: {second}")

    def reserve(self, metadata: BackupMetadata, moment: datetime) -> BackupMetadata:
        """Takes the next free second from `moment` for an id, by making its metadata file; or the id of a copy.

        Raises RepositoryError when that is taken.
        """
        while True:
            backup_id = metadata.backup_id or make_backup_id(metadata.type, moment)
            taken = (
                names.metadata_name(backup_id),
                names.archive_name(backup_id, encrypted=True),
                names.archive_name(backup_id, encrypted=False),
                names.manifest_name(backup_id),
            )
            if not any(self._storage.exists(name) for name in taken):
                if not metadata.backup_id:
                    metadata = replace(metadata, backup_id=backup_id, timestamp=timestamp(moment))
                upload = self._storage.create(taken[0])
                try:
                    upload.write(_encode(metadata))
                    upload.publish()
                finally:
                    upload.abort()
                return metadata
            if metadata.backup_id:
                raise self._taken(backup_id)
            moment += timedelta(seconds=1)

    def _taken(self, backup_id: str) -> RepositoryError:
        name = names.metadata_name(backup_id)
        status = self._load(name).status if self._storage.exists(name) else "without metadata"
        if status == RUNNING:
            return RepositoryError(
                f"{backup_id} is being made there, or was until its process was killed",
                hint="`holdfast gc`, with that directory as BACKUP_DIR, takes back what killed runs have left.",
            )
        told = "another backup" if status == "success" else f"something else ({status})"
        return RepositoryError(
            f"{told} has the id {backup_id} there, and a copy keeps its id",
            hint="Copy it to another directory.",
        )

    def _load(self, name: str) -> BackupMetadata:
        """A metadata file that cannot be read stands in the list as damaged, and hides no other."""
        try:
            return self._parse(name)
        except (CorruptBackup, StorageError) as error:
            backup_id = names.id_of_metadata(name) or ""
            return BackupMetadata(
                backup_id=backup_id,
                timestamp=timestamp(_moment_of(backup_id)),
                version=METADATA_VERSION,
                type=type_of_id(backup_id),
                size_bytes=0,
                checksum="",
                components=(),
                status=DAMAGED,
                error_message=str(error),
            )

    def _parse(self, name: str) -> BackupMetadata:
        return parse_metadata(self._storage.get(name, limit=METADATA_LIMIT), name)


def parse_metadata(content: bytes, name: str) -> BackupMetadata:
    """What a metadata file of that name says. Raises CorruptBackup."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptBackup(f"{name} is not JSON") from error
    metadata = BackupMetadata.from_json(data, what=name)
    if names.metadata_name(metadata.backup_id) != name:
        raise CorruptBackup(f"{name} is the metadata of {metadata.backup_id}")
    return metadata


def running(plan: RunPlan, format_: BackupFormat, *, encrypted: bool, host: str, tool: str) -> BackupMetadata:
    """What is recorded of a run as long as it is at work; without an id, but for a copy."""
    metadata = BackupMetadata(
        backup_id="",
        timestamp="",
        version=METADATA_VERSION,
        type=plan.type,
        size_bytes=0,
        checksum="",
        components=plan.components,
        status=RUNNING,
        format=format_,
        parent=plan.parent.backup_id if plan.parent else None,
        encrypted=encrypted,
        host=host,
        tool=tool,
        tags=plan.tags,
        schedule_id=plan.schedule_id,
    )
    if plan.original is None:
        return metadata
    return replace(
        metadata,
        backup_id=make_backup_id(plan.type, plan.original.moment),
        timestamp=plan.original.timestamp,
        host=plan.original.host,
        parent=metadata.parent or (plan.original.parent if plan.type == "incremental" else None),
        pinned=plan.original.pinned,
        original=plan.original.identity,
    )


def statement(backup_id: str, manifest_digest: str) -> bytes:
    """What a signature signs."""
    return f"holdfast backup\n{backup_id}\n{manifest_digest}\n".encode()


def _moment_of(backup_id: str) -> datetime:
    try:
        return datetime.strptime(backup_id.partition("_")[2], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime(1970, 1, 1, tzinfo=UTC)  # An id of no day that there is: somebody made it up.


def _encode(metadata: BackupMetadata) -> bytes:
    return _as_file(metadata.to_json())


def _as_file(data: dict[str, Any]) -> bytes:
    return json.dumps(data, indent=2).encode() + b"\n"
