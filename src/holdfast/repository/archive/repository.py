"""Backups as archives in a storage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from holdfast.clock import Clock
from holdfast.crypto import KeyRing, OpeningReader, Recipient, is_age_file, rewrap
from holdfast.durable import explained, temp_directory
from holdfast.errors import (
    BackupNotFound,
    CorruptBackup,
    CredentialError,
    KeyWrong,
    RepositoryError,
    StorageError,
)
from holdfast.model import (
    METADATA_VERSION,
    BackupMetadata,
    Entry,
    ManifestLocation,
    make_backup_id,
)
from holdfast.repository import _lists as lists
from holdfast.repository import _names as names
from holdfast.repository._catalog import DAMAGED, RUNNING, Catalog, running, statement
from holdfast.repository._lists import ParentList
from holdfast.repository._manifest import Header
from holdfast.repository._seal import Seal
from holdfast.repository.archive._chain import StoredArchive
from holdfast.repository.archive._open import OpenArchive
from holdfast.repository.archive._rebuild import LARGE, rebuild_list
from holdfast.repository.archive._run import ArchiveRun
from holdfast.repository.archive._verify import verify_content
from holdfast.repository.base import Pieces, RunAbandoned, RunPlan, StoredBackup
from holdfast.state import LocalState
from holdfast.storage.base import OpenObject, Storage, Upload
from holdfast.streams import RandomAccess

_READ = 1 << 20


class ArchiveRepository(Catalog):
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
        super().__init__(storage)
        self._state = state
        self._seal = seal
        self._level = level
        self._host = host
        self._tool = tool
        self._clock = clock

    @contextmanager
    def begin(self, plan: RunPlan) -> Iterator[ArchiveRun]:
        """Raises LockHeld when another run is at work."""
        self._state.make()
        with ExitStack() as stack:
            stack.enter_context(self._storage.lock("backup"))
            self.clean()
            recipients = self._seal.keys().recipients if self._seal.encrypt else ()
            parent = None
            if plan.parent is not None:
                self._check_present(plan.parent)
                parent = self._parent_list(stack, plan.parent)
            started = self.reserve(self.running(plan), self._clock())
            run: ArchiveRun | None = None
            try:
                run = self._run(stack, plan, started, recipients, parent)
                if plan.parent is not None and parent is None:
                    run.warnings.append(
                        f"nothing is known here of what {plan.parent.backup_id} holds, so everything is carried again"
                    )
                # What a source could not read has been told in its own errors: this is about our own files.
                with explained(f"cannot write to {temp_directory()}"):
                    yield run
                if run.committed is None:
                    raise RepositoryError(f"{started.backup_id} was not committed")
            except RunAbandoned:
                self._storage.delete(names.metadata_name(started.backup_id))
                raise
            except BaseException as error:
                if run is None or run.committed is None:
                    self.record_failure(started, error)
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
            _check_size(file, metadata, name)
            if _checksum(file, progress) != metadata.checksum:
                raise CorruptBackup(
                    f"{name} does not have the checksum {metadata.checksum[:12]}… of its metadata"
                )
            if deep:
                levels = self._levels(stack, metadata)
                verify_content(StoredArchive(metadata, levels), levels, progress)

    def is_present(self, metadata: BackupMetadata) -> bool:
        try:
            with self._storage.open(names.archive_of(metadata)) as file:
                return file.size == metadata.size_bytes
        except FileNotFoundError:
            return False

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
            if metadata.status == RUNNING and metadata.format == "archive":
                self._storage.delete(names.archive_of(metadata))
                error = StorageError("the run was cut off: killed, or the machine went down")
                self.record_failure(metadata, error)
                cleaned.append(metadata.backup_id)
        return cleaned

    def rewrap(self, metadata: BackupMetadata, old: KeyRing, new: KeyRing) -> bool:
        """Gives an archive to other recipients, copying what it holds as it is. False when `new` opens it already.

        Raises KeyWrong when `old` does not open it.
        """
        name = names.archive_of(metadata)
        with self._open_file(name) as file:
            if new.can_decrypt and _opens(file, new):
                # A crash may have come between the archive and its metadata.
                checksum, size, changed = _checksum(file, lambda count: None), file.size, False
            else:
                upload = self._storage.create(name, replace=True)
                try:
                    rewrap(file, upload, old.identities, new.recipients, name=name)
                    checksum, size, changed = upload.publish(), upload.size, True
                finally:
                    upload.abort()
        if checksum != metadata.checksum:
            self.save_metadata(replace(metadata, checksum=checksum, size_bytes=size))
        return changed

    def orphans(self) -> list[str]:
        """The names of archives whose metadata is lost, or damaged."""
        return [
            name
            for directory in names.DIRECTORIES.values()
            for name in self._storage.names(directory)
            if (backup_id := names.archive_id(name)) and not self._has_metadata(backup_id)
        ]

    def rebuild_list(self, metadata: BackupMetadata) -> bool:
        """Makes the list of a backup in the local state, by reading all of it. False when it is there already."""
        found = lists.open_list(self._state, metadata)
        if found is not None:
            found.close()
            return False
        with self.open(metadata) as stored:
            rebuild_list(self._state, stored)
        return True

    def export(self, stored: StoredBackup, upload: Upload, progress: Callable[[int, int], None]) -> None:
        """Writes a backup to `upload` as a full, unencrypted archive, whatever it rests on."""
        metadata = stored.metadata
        header = Header(
            id=make_backup_id("full", metadata.moment),
            type="full",
            time=metadata.timestamp,
            host=metadata.host,
            tool=metadata.tool,
            components=metadata.components,
            tags=metadata.tags,
        )
        run = ArchiveRun(header, upload, level=self._level, recipients=(), max_bytes=None, parent=None)
        try:
            for record in stored.sources():
                run.begin_source(record.component, record.name)
                for entry in stored.entries(record):
                    run.add(entry, _content(stored, entry), None)
                    progress(entry.size, 1)
                run.end_source(record)
            run.finish()
            run.store()
        finally:
            run.abort()

    def examine(self, name: str) -> BackupMetadata:
        """The metadata of an archive that has lost its own, unsigned, from its manifest. Reads it to the end."""
        with ExitStack() as stack:
            file = stack.enter_context(self._open_file(name))
            archive = _opened(stack, plaintext(file, self._seal.keys, name), None, name)
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
                schedule_id=header.schedule_id,
                original=header.original,
                coherent=archive.coherent,
                manifest=ManifestLocation(
                    archive.manifest_digest, archive.manifest_size, archive.manifest_offset
                ),
            )

    def path_of(self, backup_id: str) -> str | None:
        """The name of a recorded backup's archive in the storage; None when there is no good record of it."""
        try:
            return names.archive_of(self.find(backup_id))
        except BackupNotFound:
            return None

    def archive_name(self, metadata: BackupMetadata) -> str:
        """The name of a backup's archive in the storage."""
        return names.archive_of(metadata)

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

    def _has_metadata(self, backup_id: str) -> bool:
        name = names.metadata_name(backup_id)
        return self._storage.exists(name) and self._load(name).status != DAMAGED

    def running(self, plan: RunPlan) -> BackupMetadata:
        """What is recorded of a run as long as it is at work; without an id."""
        return running(plan, "archive", encrypted=self._seal.encrypt, host=self._host, tool=self._tool)

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
        header = Header.of(started, parent_manifest=parent_manifest)

        def publish(
            run: ArchiveRun, warnings: int, duration_seconds: float, coherent: bool | None
        ) -> BackupMetadata:
            location = run.finish(coherent=coherent)
            signature = self._seal.sign(statement(started.backup_id, location.digest))
            checksum, size = run.store()
            metadata = replace(
                started,
                size_bytes=size,
                checksum=checksum,
                status="success",
                entries=run.entries,
                source_bytes=run.source_bytes,
                duration_seconds=round(duration_seconds, 3),
                warnings=warnings,
                coherent=coherent,
                manifest=location,
                signature=signature,
            )
            try:
                self.save_metadata(metadata)
            except BaseException:
                self._storage.delete(names.archive_of(metadata))
                raise
            # The backup is made. What goes wrong from here on only makes the next incremental a larger one.
            try:
                lists.save(self._state, metadata, run.resolved())
                lists.forget_old(self._state, self.backups())
            except OSError as error:
                run.warnings.append(f"the list of {metadata.backup_id} could not be kept: {error.strerror}")
            return metadata

        upload = self._storage.create(names.archive_name(started.backup_id, encrypted=self._seal.encrypt))
        stack.callback(upload.abort)
        run = ArchiveRun(
            header,
            upload,
            level=self._level,
            recipients=recipients,
            max_bytes=plan.max_bytes,
            parent=parent,
            publish=publish,
        )
        stack.callback(run.abort)
        return run

    def _parent_list(self, stack: ExitStack, parent: BackupMetadata) -> ParentList | None:
        """What the parent holds: from the local state, else from the archives, where they can be read and believed.

        What this host signs must not stand for what somebody else has put there.
        """
        found = lists.open_list(self._state, parent)
        if found is None and self._seal.believes(*self.signature_of(parent)) and self._readable(parent):
            with self.open(parent) as stored:
                rebuild_list(self._state, stored)
            found = lists.open_list(self._state, parent)
        if found is not None:
            stack.enter_context(found)
        return found

    def _readable(self, metadata: BackupMetadata) -> bool:
        try:
            return not any(level.encrypted for level in self.chain(metadata)) or self._seal.keys().can_decrypt
        except CredentialError:
            return False

    def _check_present(self, parent: BackupMetadata) -> None:
        """What cannot be restored must not be rested on. Whether it is intact as well, only reading would tell."""
        for level in self.chain(parent):
            name = names.archive_of(level)
            with self._open_file(name) as file:
                _check_size(file, level, name)

    def _levels(self, stack: ExitStack, metadata: BackupMetadata) -> list[OpenArchive]:
        levels = []
        for level in reversed(self.chain(metadata)):
            name = names.archive_of(level)
            file = stack.enter_context(self._open_file(name))
            _check_size(file, level, name)
            levels.append(_opened(stack, plaintext(file, self._seal.keys, name), level, name))
        return levels

    def _open_file(self, name: str) -> OpenObject:
        try:
            return self._storage.open(name)
        except FileNotFoundError:
            raise CorruptBackup(f"{name} is missing, though its metadata is there") from None


def _check_size(file: RandomAccess, metadata: BackupMetadata, name: str) -> None:
    if file.size != metadata.size_bytes:
        raise CorruptBackup(f"{name} has {file.size} bytes instead of {metadata.size_bytes}")


def _checksum(file: RandomAccess, progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    for offset in range(0, file.size, _READ):
        piece = file.read_at(offset, _READ)
        digest.update(piece)
        progress(len(piece))
    return digest.hexdigest()


def _content(stored: StoredBackup, entry: Entry) -> _Content | None:
    if entry.kind != "file":
        return None
    pieces = stored.read(entry)
    if entry.size <= LARGE:
        return _Content(size=entry.size, data=b"".join(bytes(piece) for piece in pieces), stream=None)
    return _Content(size=entry.size, data=None, stream=pieces)


@dataclass(frozen=True, slots=True)
class _Content:
    """An entry's content out of another backup."""

    size: int
    data: bytes | None
    stream: Pieces | None


def _opens(file: RandomAccess, keys: KeyRing) -> bool:
    try:
        OpeningReader(file, keys.identities)
    except KeyWrong:
        return False
    return True


def plaintext(file: RandomAccess, keys: Callable[[], KeyRing], name: str) -> RandomAccess:
    """The gzip file in an archive, whether it is encrypted or not."""
    if not is_age_file(file.read_at(0, 64)):
        return file
    return OpeningReader(file, keys().identities, name=name)


def _opened(
    stack: ExitStack, source: RandomAccess, metadata: BackupMetadata | None, name: str
) -> OpenArchive:
    archive = OpenArchive(source, metadata, name=name)
    stack.callback(archive.close)
    return archive
