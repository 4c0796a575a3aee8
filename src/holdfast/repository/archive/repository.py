"""Backups as archives in a storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from holdfast.clock import Clock, timestamp
from holdfast.crypto import KeyRing, OpeningReader, Recipient, is_age_file
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
    BackupMetadata,
    BackupType,
    ManifestLocation,
    Signature,
    is_backup_id,
    make_backup_id,
    type_of_id,
)
from holdfast.repository.archive import _lists as lists
from holdfast.repository.archive import _names as names
from holdfast.repository.archive._chain import StoredArchive
from holdfast.repository.archive._manifest import Header
from holdfast.repository.archive._open import OpenArchive
from holdfast.repository.archive._parent import ParentList
from holdfast.repository.archive._run import ArchiveRun
from holdfast.repository.archive._verify import verify_content
from holdfast.repository.base import RunPlan
from holdfast.state import LocalState
from holdfast.storage.base import RandomAccess, Storage

_METADATA_LIMIT = 1 << 20
_RUNNING = "running"
_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Seal:
    """How this installation encrypts and signs what it writes."""

    encrypt: bool
    keys: Callable[[], KeyRing]
    """Asked when a key is needed. Raises KeyMissing when none is configured."""
    sign: Callable[[bytes], Signature]


def statement(backup_id: str, manifest_digest: str) -> bytes:
    """What a signature signs."""
    return f"holdfast backup\n{backup_id}\n{manifest_digest}\n".encode()


class ArchiveRepository:
    """Implements `holdfast.repository.base.Repository`."""

    def __init__(
        self,
        storage: Storage,
        state: LocalState,
        seal: Seal,
        *,
        level: int,
        host: str,
        tool: str,
        clock: Clock,
    ) -> None:
        self._storage = storage
        self._state = state
        self._seal = seal
        self._level = level
        self._host = host
        self._tool = tool
        self._clock = clock

    def backups(self, backup_type: BackupType | None = None) -> list[BackupMetadata]:
        found = [
            self._load(name)
            for kind in ([backup_type] if backup_type else BACKUP_TYPES)
            for name in self._storage.names(names.DIRECTORIES[kind])
            if is_backup_id(names.id_of_metadata(name) or "")
        ]
        return sorted(found, key=lambda metadata: (metadata.timestamp, metadata.backup_id), reverse=True)

    def find(self, reference: str) -> BackupMetadata:
        if is_backup_id(reference) and self._storage.exists(names.metadata_name(reference)):
            metadata = self._load(names.metadata_name(reference))
            if not metadata.is_good:
                raise BackupNotFound(
                    f"{reference} is the record of a backup that failed: {metadata.error_message or metadata.status}"
                )
            return metadata
        good = [metadata for metadata in self.backups() if metadata.is_good]
        if reference == "latest":
            if not good:
                raise BackupNotFound("there is no backup yet", hint="`holdfast backup` makes one.")
            return good[0]
        matching = [metadata for metadata in good if metadata.backup_id.startswith(reference)]
        if not reference or not matching:
            raise BackupNotFound(f"there is no backup {reference!r}")
        if len(matching) > 1:
            few = ", ".join(metadata.backup_id for metadata in matching[:4])
            raise UsageError(f"{reference!r} begins {len(matching)} ids: {few}…", hint="Give more of the id.")
        return matching[0]

    def chain(self, metadata: BackupMetadata) -> list[BackupMetadata]:
        found = [metadata]
        while (parent := found[-1].parent) is not None:
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

    @contextmanager
    def begin(self, plan: RunPlan) -> Iterator[ArchiveRun]:
        """Raises LockHeld when another run is at work."""
        self._state.make()
        with ExitStack() as stack:
            stack.enter_context(self._storage.lock("backup"))
            self.clean()
            recipients = self._seal.keys().recipients if self._seal.encrypt else ()
            parent = self._parent_list(stack, plan.parent) if plan.parent is not None else None
            started = self._reserve(plan)
            run: ArchiveRun | None = None
            try:
                run = self._run(stack, plan, started, recipients, parent)
                if plan.parent is not None and parent is None:
                    run.warnings.append(
                        f"nothing is known here of what {plan.parent.backup_id} holds, so everything is carried again"
                    )
                yield run
                if run.committed is None:
                    raise RepositoryError(f"{started.backup_id} was not committed")
            except BaseException as error:
                if run is None or run.committed is None:
                    self._record_failure(started, error)
                raise

    @contextmanager
    def open(self, metadata: BackupMetadata) -> Iterator[StoredArchive]:
        with ExitStack() as stack:
            yield StoredArchive(metadata, self._levels(stack, metadata))

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Holds off `expire` while backups are being read."""
        with self._storage.lock("expire", shared=True):
            yield

    @contextmanager
    def expiring(self) -> Iterator[None]:
        """Waits for nobody: raises LockHeld while backups are being read, or made."""
        with self._storage.lock("backup"), self._storage.lock("expire"):
            yield

    def verify(self, metadata: BackupMetadata, *, deep: bool, progress: Callable[[int], None]) -> None:
        name = names.archive_of(metadata)
        with ExitStack() as stack:
            file = stack.enter_context(self._open_file(name))
            if file.size != metadata.size_bytes:
                raise CorruptBackup(f"{name} has {file.size} bytes instead of {metadata.size_bytes}")
            if _checksum(file, progress) != metadata.checksum:
                raise CorruptBackup(
                    f"{name} does not have the checksum {metadata.checksum[:12]}… of its metadata"
                )
            if deep:
                levels = self._levels(stack, metadata)
                verify_content(StoredArchive(metadata, levels), levels, progress)

    def signature_of(self, metadata: BackupMetadata) -> tuple[Signature | None, bytes]:
        """What a backup is signed with, and the statement that it signs."""
        digest = metadata.manifest.digest if metadata.manifest else ""
        return metadata.signature, statement(metadata.backup_id, digest)

    def set_pinned(self, metadata: BackupMetadata, pinned: bool) -> BackupMetadata:
        changed = replace(metadata, pinned=pinned)
        self.save_metadata(changed)
        return changed

    def delete(self, metadata: BackupMetadata) -> None:
        # The metadata goes first: an archive without it is no backup any more, metadata without an archive is a
        # broken promise.
        self._storage.delete(names.metadata_name(metadata.backup_id))
        self._storage.delete(names.archive_of(metadata))
        self._state.list_file(metadata.backup_id).unlink(missing_ok=True)

    def clean(self) -> list[str]:
        """Takes back what runs that were killed have left. Only while the backup lock is held."""
        cleaned = self._storage.sweep()
        for metadata in self.backups():
            if metadata.status == _RUNNING:
                self._storage.delete(names.archive_of(metadata))
                error = StorageError("the run was cut off: killed, or the machine went down")
                self._record_failure(metadata, error)
                cleaned.append(metadata.backup_id)
        return cleaned

    def save_metadata(self, metadata: BackupMetadata) -> None:
        data = json.dumps(metadata.to_json(), indent=2).encode() + b"\n"
        self._storage.put(names.metadata_name(metadata.backup_id), data)

    def examine(self, name: str) -> BackupMetadata:
        """The metadata of an archive that has lost its own, unsigned, from its manifest. Reads it to the end."""
        with ExitStack() as stack:
            file = stack.enter_context(self._open_file(name))
            archive = _opened(stack, plaintext(file, self._seal.keys), None, name)
            header = archive.header
            return BackupMetadata(
                backup_id=header.id,
                timestamp=header.time,
                version=METADATA_VERSION,
                type=header.type,
                size_bytes=file.size,
                checksum=_checksum(file, lambda count: None),
                components=header.components,
                status="success",
                parent=header.parent,
                encrypted=is_age_file(file.read_at(0, 64)),
                entries=archive.entries,
                source_bytes=archive.source_bytes,
                host=header.host,
                tool=header.tool,
                tags=header.tags,
                manifest=ManifestLocation(
                    archive.manifest_digest, archive.manifest_size, archive.manifest_offset
                ),
            )

    def over(self, storage: Storage) -> ArchiveRepository:
        """The same keys and the same local state over another storage."""
        return ArchiveRepository(
            storage,
            self._state,
            self._seal,
            level=self._level,
            host=self._host,
            tool=self._tool,
            clock=self._clock,
        )

    def _run(
        self,
        stack: ExitStack,
        plan: RunPlan,
        started: BackupMetadata,
        recipients: tuple[Recipient, ...],
        parent: ParentList | None,
    ) -> ArchiveRun:
        parent_manifest = None
        if parent is not None:
            parent_manifest = parent.manifest_digest
        elif plan.parent is not None and plan.parent.manifest is not None:
            parent_manifest = plan.parent.manifest.digest
        header = Header(
            id=started.backup_id,
            type=started.type,
            time=started.timestamp,
            host=started.host,
            tool=started.tool,
            components=started.components,
            parent=started.parent,
            parent_manifest=parent_manifest,
            tags=started.tags,
        )

        def publish(run: ArchiveRun, warnings: int, duration_seconds: float) -> BackupMetadata:
            location, checksum, size = run.finish()
            metadata = replace(
                started,
                size_bytes=size,
                checksum=checksum,
                status="success",
                entries=run.entries,
                source_bytes=run.source_bytes,
                duration_seconds=round(duration_seconds, 3),
                warnings=warnings,
                manifest=location,
                signature=self._seal.sign(statement(started.backup_id, location.digest)),
            )
            self.save_metadata(metadata)
            lists.save(self._state, metadata, run.resolved())
            lists.forget_old(self._state, self.backups())
            return metadata

        run = ArchiveRun(
            header,
            self._storage.create(names.archive_name(started.backup_id, encrypted=self._seal.encrypt)),
            level=self._level,
            recipients=recipients,
            max_bytes=plan.max_bytes,
            parent=parent,
            publish=publish,
        )
        stack.callback(run.abort)
        return run

    def _parent_list(self, stack: ExitStack, parent: BackupMetadata) -> ParentList | None:
        """What the parent holds: from the local state, else from the archives, where they can be read."""
        found = lists.open_list(self._state, parent)
        if found is None and self._readable(parent):
            with self.open(parent) as stored:
                lists.rebuild(self._state, stored)
            found = lists.open_list(self._state, parent)
        if found is not None:
            stack.enter_context(found)
        return found

    def _readable(self, metadata: BackupMetadata) -> bool:
        return not any(level.encrypted for level in self.chain(metadata)) or self._seal.keys().can_decrypt

    def _levels(self, stack: ExitStack, metadata: BackupMetadata) -> list[OpenArchive]:
        levels = []
        for level in reversed(self.chain(metadata)):
            name = names.archive_of(level)
            levels.append(_opened(stack, self._source(stack, name), level, name))
        return levels

    def _load(self, name: str) -> BackupMetadata:
        """A metadata file that cannot be read stands in the list as damaged, and hides no other."""
        try:
            return self._parse(name)
        except CorruptBackup as error:
            backup_id = names.id_of_metadata(name) or ""
            moment = datetime.strptime(backup_id.partition("_")[2], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
            return BackupMetadata(
                backup_id=backup_id,
                timestamp=timestamp(moment),
                version=METADATA_VERSION,
                type=type_of_id(backup_id),
                size_bytes=0,
                checksum="",
                components=(),
                status="damaged",
                error_message=str(error),
            )

    def _parse(self, name: str) -> BackupMetadata:
        try:
            data = json.loads(self._storage.get(name, limit=_METADATA_LIMIT))
        except (ValueError, RecursionError) as error:
            raise CorruptBackup(f"{name} is not JSON") from error
        metadata = BackupMetadata.from_json(data, what=name)
        if names.metadata_name(metadata.backup_id) != name:
            raise CorruptBackup(f"{name} is the metadata of {metadata.backup_id}")
        return metadata

    def _reserve(self, plan: RunPlan) -> BackupMetadata:
        """Takes the next free second as the id, and marks the run as running."""
        moment = self._clock()
        while True:
            metadata = BackupMetadata(
                backup_id=make_backup_id(plan.type, moment),
                timestamp=timestamp(moment),
                version=METADATA_VERSION,
                type=plan.type,
                size_bytes=0,
                checksum="",
                components=plan.components,
                status=_RUNNING,
                parent=plan.parent.backup_id if plan.parent else None,
                encrypted=self._seal.encrypt,
                host=self._host,
                tool=self._tool,
                tags=plan.tags,
            )
            name = names.metadata_name(metadata.backup_id)
            if not self._storage.exists(name) and not any(
                self._storage.exists(names.archive_name(metadata.backup_id, encrypted=encrypted))
                for encrypted in (True, False)
            ):
                upload = self._storage.create(name)
                try:
                    upload.write(json.dumps(metadata.to_json(), indent=2).encode() + b"\n")
                    upload.publish()
                finally:
                    upload.abort()
                return metadata
            moment += timedelta(seconds=1)

    def _record_failure(self, started: BackupMetadata, error: BaseException) -> None:
        message = str(error) if isinstance(error, HoldfastError) else f"{type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            message = "interrupted"
        try:
            self.save_metadata(
                replace(
                    started, status="failed", error_message=message, size_bytes=0, checksum="", manifest=None
                )
            )
        except StorageError as second:
            error.add_note(f"The failure could not be recorded either: {second}")

    def _open_file(self, name: str) -> RandomAccess:
        try:
            return self._storage.open(name)
        except FileNotFoundError:
            raise CorruptBackup(f"{name} is missing, though its metadata is there") from None

    def _source(self, stack: ExitStack, name: str) -> RandomAccess:
        return plaintext(stack.enter_context(self._open_file(name)), self._seal.keys)


def _checksum(file: RandomAccess, progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    for offset in range(0, file.size, _READ):
        piece = file.read_at(offset, _READ)
        digest.update(piece)
        progress(len(piece))
    return digest.hexdigest()


def plaintext(file: RandomAccess, keys: Callable[[], KeyRing]) -> RandomAccess:
    """The gzip file in an archive, whether it is encrypted or not."""
    if not is_age_file(file.read_at(0, 64)):
        return file
    return OpeningReader(file, keys().identities)


def _opened(
    stack: ExitStack, source: RandomAccess, metadata: BackupMetadata | None, name: str
) -> OpenArchive:
    archive = OpenArchive(source, metadata, name=name)
    stack.callback(archive.close)
    return archive
