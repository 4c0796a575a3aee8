"""Backups that share what they have in common: the deduplicating repository, over a storage."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from holdfast.clock import Clock
from holdfast.crypto import KeyRing, X25519Recipient
from holdfast.durable import explained, make_private, temp_directory
from holdfast.errors import (
    CorruptBackup,
    CredentialError,
    LockHeld,
    RepositoryError,
    SizeLimitExceeded,
    StorageError,
)
from holdfast.model import METADATA_VERSION, BackupMetadata, ManifestLocation
from holdfast.repository import _lists as lists
from holdfast.repository import _names as names
from holdfast.repository._catalog import DAMAGED, RUNNING, Catalog, statement
from holdfast.repository._lists import ParentList
from holdfast.repository._manifest import Header, PackRef
from holdfast.repository._seal import Seal
from holdfast.repository.base import RunAbandoned, RunPlan
from holdfast.repository.dedup._bases import BaseFinder, Locate, Places, find_places
from holdfast.repository.dedup._chunk_reader import ChunkReader, missing_pack
from holdfast.repository.dedup._chunk_store import ChunkStore
from holdfast.repository.dedup._garbage import CONDEMNED, Garbage
from holdfast.repository.dedup._ids import KEY_LENGTH
from holdfast.repository.dedup._index_object import IndexWriter
from holdfast.repository.dedup._key_file import RunKeys, read_run_keys, rewrap_run_keys, write_run_keys
from holdfast.repository.dedup._known import Known
from holdfast.repository.dedup._manifest_object import ManifestReader, ManifestWriter
from holdfast.repository.dedup._names import pack_path
from holdfast.repository.dedup._rewrap import is_opened_by, recipients_of, rewrap_identity, rewrap_object
from holdfast.repository.dedup._run import DedupRun
from holdfast.repository.dedup._stored import StoredManifest
from holdfast.repository.dedup._tensor_bases import TensorBases
from holdfast.repository.dedup._verify import indexes_of, verify_manifest, verify_packs
from holdfast.repository.dedup._writer import (
    WriterState,
    open_repository,
    opened,
    passphrases,
    recipients_for,
)
from holdfast.state import LocalState
from holdfast.storage.base import OpenObject, Storage

_PINNED = "writer.json"


class DedupRepository(Catalog):
    """Implements `holdfast.repository.base.Repository`."""

    def __init__(
        self,
        storage: Storage,
        state: LocalState,
        seal: Seal,
        *,
        writer: Callable[[], str],
        locate: Locate,
        host: str,
        tool: str,
        clock: Clock,
    ) -> None:
        """`writer`: this host's public signing key. `locate`: where on this host an entry's file lies, if it does."""
        super().__init__(storage)
        self._state = state
        self._seal = seal
        self._writer = writer
        self._locate = locate
        self._host = host
        self._tool = tool
        self._clock = clock
        self._keys_of = lru_cache(maxsize=None)(self._run_keys)

    @contextmanager
    def begin(self, plan: RunPlan) -> Iterator[DedupRun]:
        """Other hosts, and other processes, may write at the same time."""
        self._state.make()
        with ExitStack() as stack:
            self._clean_if_alone()
            stack.enter_context(self._storage.lock("backup", shared=True))
            repository = open_repository(self._storage, create=True)
            keys = self._seal.keys() if self._seal.encrypt else None
            pinned, recipients = self._pinned(repository, keys)
            run_keys = RunKeys.generate(
                repository=repository, id_key=pinned.id_key, writer=self._writer(), clock=self._clock
            )
            if plan.parent is not None:
                self._check_present(plan.parent)
            # From here on `gc` sees that a run is at work, and deletes no pack that it condemns later.
            started = self.reserve(self._running(plan), self._clock())
            stack.enter_context(self._storage.lock(f"run-{started.backup_id}"))
            known: Known | None = None
            run: DedupRun | None = None
            try:
                known = self._known(run_keys)
                parent = self._parent_list(stack, plan, known)
                write_run_keys(self._storage, run_keys, recipients)
                run = self._run(stack, plan, started, run_keys, recipients, known, parent)
                with explained(f"cannot write to {temp_directory()}"):
                    yield run
                if run.committed is None:
                    raise RepositoryError(f"{started.backup_id} was not committed")
            except BaseException as error:
                if run is None or run.committed is None:
                    self._take_back(started, run, run_keys, known, error)
                raise

    @contextmanager
    def open(self, metadata: BackupMetadata) -> Iterator[StoredManifest]:
        with ExitStack() as stack:
            manifest = self._manifest(stack, metadata)
            needed = {pack.name for pack in manifest.packs if pack.hash}
            if missing := needed - self._packs_there({pack[:2] for pack in needed}):
                raise missing_pack(min(missing), metadata.backup_id)
            chunks = ChunkReader(self._storage, self._keys_of, manifest.packs, name=metadata.backup_id)
            stored = StoredManifest(metadata, manifest, chunks)
            stack.callback(stored.close)
            yield stored

    def chain(self, metadata: BackupMetadata) -> list[BackupMetadata]:
        """Every backup is whole, and rests on no other."""
        return [metadata]

    @contextmanager
    def lent(self) -> Iterator[None]:
        with self._storage.lock("expire", shared=True):
            yield

    @contextmanager
    def expiring(self) -> Iterator[None]:
        """Backups may be made meanwhile: what they need is not deleted. Raises LockHeld while some are being read."""
        with self._storage.lock("expire"):
            yield

    def verify(self, metadata: BackupMetadata, *, deep: bool, progress: Callable[[int], None]) -> None:
        name = names.manifest_name(metadata.backup_id)
        with ExitStack() as stack:
            if self._checksum(name) != metadata.checksum:
                raise CorruptBackup(
                    f"{name} does not have the checksum {metadata.checksum[:12]}… of its metadata"
                )
            if not deep and not self.can_read():
                return
            with self.open(metadata) as stored:
                verify_packs(self._storage, stored.manifest.packs, metadata.backup_id, deep=deep)
                if deep:
                    verify_manifest(self._storage, stored, self._keys_of, progress)
            del stack

    def is_present(self, metadata: BackupMetadata) -> bool:
        return self._storage.exists(names.manifest_name(metadata.backup_id))

    def rewrap(self, metadata: BackupMetadata, old: KeyRing, new: KeyRing) -> bool:
        """Gives a backup to other recipients, with the keys of the runs whose packs it needs; no pack is written.
        False when `new` opens it already. Raises KeyWrong when `old` does not open it."""
        if passphrases(old) and passphrases(new):
            return rewrap_identity(self._storage, old, new)
        recipients = recipients_of(self._storage, new)
        old, new = opened(self._storage, old), opened(self._storage, new)
        name = names.manifest_name(metadata.backup_id)
        if new.can_decrypt and is_opened_by(self._storage, name, new.identities):
            # A crash may have come between the manifest and its metadata.
            checksum, changed = self._checksum(name), False
        else:
            with (
                self._open_object(name) as file,
                closing(ManifestReader(file, metadata, old, name=name)) as lines,
            ):
                runs = {lines.run, *(pack.name.partition("-")[0] for pack in lines.packs if pack.hash)}
            for run in sorted(runs):
                if not is_opened_by(self._storage, f"keys/{run}.age", new.identities):
                    rewrap_run_keys(self._storage, run, old.identities, recipients)
            checksum, changed = rewrap_object(self._storage, name, old.identities, recipients), True
        if checksum != metadata.checksum:
            self.save_metadata(replace(metadata, checksum=checksum))
        return changed

    def delete(self, metadata: BackupMetadata) -> None:
        # The metadata goes first: without it this is no backup any more.
        self._storage.delete(names.metadata_name(metadata.backup_id))
        self._storage.delete(names.manifest_name(metadata.backup_id))
        self._state.list_file(metadata.backup_id).unlink(missing_ok=True)

    def clean(self) -> list[str]:
        """Takes back what runs that were killed have left, but for finished packs: the next run finds those."""
        cleaned = []
        for metadata in self.backups():
            if metadata.status != RUNNING or metadata.format != "dedup":
                continue
            try:
                with self._storage.lock(f"run-{metadata.backup_id}"):
                    self._storage.delete(names.manifest_name(metadata.backup_id))
                    error = StorageError("the run was cut off: killed, or the machine went down")
                    self.record_failure(metadata, error)
                    cleaned.append(metadata.backup_id)
            except LockHeld:
                continue  # it is at work
        return cleaned

    def rebuild_list(self, metadata: BackupMetadata) -> bool:
        """Makes the list of a backup in the local state again. False when it is there already."""
        found = lists.open_list(self._state, metadata)
        if found is not None:
            found.close()
            return False
        with ExitStack() as stack:
            self._state.make()
            lists.save(self._state, metadata, self._manifest(stack, metadata).as_list())
        return True

    def free(self) -> list[str]:
        """Deletes what no backup needs, in two phases: what is condemned now is deleted by a later call. Returns the
        names of what was deleted. Needs the identity. Safe beside runs at work; see `Garbage`."""
        needed: set[str] = set()
        runs: set[str] = set()
        at_work = []
        backups = self.backups()
        self._refuse_orphans(backups)
        for metadata in backups:
            if metadata.format != "dedup":
                continue
            if metadata.status == RUNNING:
                at_work.append(metadata.moment)
            elif metadata.is_good:
                with ExitStack() as stack:
                    manifest = self._manifest(stack, metadata)
                    needed |= {pack.name for pack in manifest.packs if pack.hash}
                    runs.add(manifest.run)
        return Garbage(self._storage, self._clock()).free(needed, runs, at_work)

    def _refuse_orphans(self, backups: Sequence[BackupMetadata]) -> None:
        """What lost its metadata can be repaired, as long as its packs are there."""
        recorded = {known.backup_id for known in backups if known.status != DAMAGED}
        for directory in names.DIRECTORIES.values():
            for name in self._storage.names(directory):
                backup_id = names.manifest_id(name)
                if backup_id is not None and backup_id not in recorded:
                    raise CorruptBackup(
                        f"{name} has no metadata, or it is damaged: so what nothing needs cannot be told",
                        hint="Run `holdfast repair`, or delete the manifest if the backup is not wanted.",
                    )

    # A run

    def _run(
        self,
        stack: ExitStack,
        plan: RunPlan,
        started: BackupMetadata,
        keys: RunKeys,
        recipients: tuple[X25519Recipient, ...] | None,
        known: Known,
        parent: ParentList | None,
    ) -> DedupRun:
        header = Header(
            id=started.backup_id,
            type=started.type,
            time=started.timestamp,
            host=started.host,
            tool=started.tool,
            components=started.components,
            parent=started.parent,
            parent_manifest=_digest_of(plan.parent),
            tags=started.tags,
            schedule_id=started.schedule_id,
        )
        bases = TensorBases(
            self._directory, repository=keys.repository, writer=keys.writer, id_key=keys.id_key
        )
        finder = BaseFinder(
            self._locate, partial(self._places, plan), _Stored(self, stack, self._reference(plan)).chunk
        )
        store = ChunkStore(
            self._storage,
            keys,
            known,
            bases,
            finder.find,
            packs=parent.packs if parent is not None else [],
            max_bytes=plan.max_bytes,
        )
        lines = ManifestWriter(header, repository=keys.repository, run=keys.run)
        run = DedupRun(
            started.backup_id,
            lines,
            store,
            id_key=keys.id_key,
            parent=parent,
            publish=partial(self._publish, started, keys, recipients or ()),
        )
        stack.callback(run.abort)
        if plan.parent is not None and parent is None:
            run.warnings.append(
                f"nothing is known here of what {plan.parent.backup_id} holds, so everything is read again"
            )
        return run

    def _publish(
        self,
        started: BackupMetadata,
        keys: RunKeys,
        recipients: Sequence[X25519Recipient],
        run: DedupRun,
        packs: Sequence[PackRef],
        warnings: int,
        duration_seconds: float,
        coherent: bool | None,
    ) -> BackupMetadata:
        self._check_there([pack.name for pack in packs if pack.hash], keys.run)
        added = run.store.stored_bytes
        index = IndexWriter(self._storage, keys)
        for table in run.store.tables:
            index.add(table)
        index.flush()
        added += index.size
        name = names.manifest_name(started.backup_id)
        upload = self._storage.create(name)
        try:
            digest, size = run.lines.finish(upload, recipients, packs, run.records, coherent=coherent)
            added += upload.size
            run.store.check_size(added - run.store.stored_bytes)
            checksum = upload.publish()
        finally:
            upload.abort()
        metadata = replace(
            started,
            size_bytes=added,
            checksum=checksum,
            status="success",
            entries=sum(record.entries for record in run.records),
            source_bytes=sum(record.bytes for record in run.records),
            duration_seconds=round(duration_seconds, 3),
            warnings=warnings,
            coherent=coherent,
            manifest=ManifestLocation(digest, size, 0),
            signature=self._seal.sign(statement(started.backup_id, digest)),
        )
        try:
            self.save_metadata(metadata)
        except BaseException:
            self._storage.delete(name)
            raise
        # The backup is made. What goes wrong from here on only makes the next one read more.
        try:
            lists.save(self._state, metadata, run.lines.as_list())
            lists.forget_old(self._state, self.backups())
        except OSError as error:
            run.warnings.append(f"the list of {metadata.backup_id} could not be kept: {error.strerror}")
        return metadata

    def _take_back(
        self,
        started: BackupMetadata,
        run: DedupRun | None,
        keys: RunKeys,
        known: Known | None,
        error: BaseException,
    ) -> None:
        if run is not None:
            run.abort()
        if isinstance(error, SizeLimitExceeded) and run is not None and known is not None:
            gone = [table.name for table in run.store.tables]
            known.forget_packs(gone)
            for pack in gone:
                self._storage.delete(pack_path(pack))
        if run is None or not run.store.tables or isinstance(error, SizeLimitExceeded):
            for suffix in ("age", "json"):
                self._storage.delete(f"keys/{keys.run}.{suffix}")
        for path in indexes_of(self._storage, keys.run):
            self._storage.delete(path)
        if isinstance(error, RunAbandoned):
            self._storage.delete(names.metadata_name(started.backup_id))
        else:
            self.record_failure(started, error)

    def _running(self, plan: RunPlan) -> BackupMetadata:
        return BackupMetadata(
            backup_id="",
            timestamp="",
            version=METADATA_VERSION,
            type=plan.type,
            size_bytes=0,
            checksum="",
            components=plan.components,
            status=RUNNING,
            format="dedup",
            parent=plan.parent.backup_id if plan.parent else None,
            encrypted=self._seal.encrypt,
            host=self._host,
            tool=self._tool,
            tags=plan.tags,
            schedule_id=plan.schedule_id,
        )

    # What this host remembers

    @property
    def _directory(self) -> Path:
        directory = self._state.repository / "dedup"
        make_private(directory, directory)
        return directory

    def _pinned(
        self, repository: str, keys: KeyRing | None
    ) -> tuple[WriterState, tuple[X25519Recipient, ...] | None]:
        path = self._directory / _PINNED
        pinned = WriterState.load(path, repository)
        before = None if pinned is None else pinned.recipient
        if pinned is None:
            pinned = WriterState(repository, self._shared_id_key() or secrets.token_bytes(KEY_LENGTH))
        recipients = recipients_for(self._storage, keys, pinned) if keys is not None else None
        if before != pinned.recipient or before is None:
            pinned.save(path)
        return pinned, recipients

    def _shared_id_key(self) -> bytes | None:
        """That of the newest backup that is believed here and can be read: then what it has stored is found again."""
        for metadata in self.backups():
            if (
                metadata.is_good
                and metadata.format == "dedup"
                and self._seal.believes(*self.signature_of(metadata))
            ):
                try:
                    with ExitStack() as stack:
                        return self._keys_of(self._manifest(stack, metadata).run).id_key
                except (CorruptBackup, CredentialError):
                    return None
        return None

    def _known(self, keys: RunKeys) -> Known:
        known = Known(self._directory, repository=keys.repository, writer=keys.writer, id_key=keys.id_key)
        there = self._packs_there({pack[:2] for pack in known.packs()})
        condemned = {name.removeprefix(CONDEMNED) for name in self._storage.names(CONDEMNED)}
        known.forget_packs([pack for pack in known.packs() if pack not in there or pack in condemned])
        return known

    def _packs_there(self, prefixes: set[str]) -> set[str]:
        return {
            name.rpartition("/")[2] for prefix in prefixes for name in self._storage.names(f"packs/{prefix}/")
        }

    def _check_there(self, packs: Sequence[str], run: str) -> None:
        """What was stored before this run must still be there when it commits."""
        older = [pack for pack in packs if not pack.startswith(run)]
        missing = set(older) - self._packs_there({pack[:2] for pack in older})
        if missing:
            raise RepositoryError(
                f"{len(missing)} packs that the backup needs were deleted while it was made",
                hint="Make it again: what was deleted is then stored anew.",
            )

    def _check_present(self, parent: BackupMetadata) -> None:
        if not self._storage.exists(self._names_of(parent)):
            raise CorruptBackup(f"{self._names_of(parent)} is missing, though its metadata is there")

    @staticmethod
    def _names_of(metadata: BackupMetadata) -> str:
        return (
            names.manifest_name(metadata.backup_id)
            if metadata.format == "dedup"
            else names.archive_of(metadata)
        )

    def _reference(self, plan: RunPlan) -> BackupMetadata | None:
        """The backup that a run compares with: the parent, or the last of the whole service."""
        if plan.parent is not None:
            return plan.parent
        held = set(self._state.lists())
        return next(
            (
                known
                for known in self.backups()
                if known.is_good
                and known.format == "dedup"
                and known.backup_id in held
                and known.type != "config"
            ),
            None,
        )

    def _parent_list(self, stack: ExitStack, plan: RunPlan, known: Known) -> ParentList | None:
        reference = self._reference(plan)
        if reference is None or reference.format != "dedup":
            return None
        found = lists.open_list(self._state, reference)
        if found is None and self._seal.believes(*self.signature_of(reference)) and self.can_read():
            self.rebuild_list(reference)
            found = lists.open_list(self._state, reference)
        if found is None:
            return None
        stack.enter_context(found)
        mine = known.packs()
        return found if all(pack.name in mine for pack in found.packs if pack.hash) else None

    def _places(self, plan: RunPlan) -> Places:
        """Where the files of the last backup hold which chunks."""
        reference = self._reference(plan)
        found = lists.open_list(self._state, reference) if reference is not None else None
        if found is None:
            return {}
        with found:
            return find_places(found)

    # Reading

    def _manifest(self, stack: ExitStack, metadata: BackupMetadata) -> ManifestReader:
        name = names.manifest_name(metadata.backup_id)
        repository = open_repository(self._storage, create=False)
        file = stack.enter_context(self._open_object(name))
        keys = self._opened_keys() if metadata.encrypted else None
        reader = ManifestReader(file, metadata, keys, name=name)
        stack.callback(reader.close)
        if reader.repository != repository:
            raise CorruptBackup(
                f"{name} belongs to repository {reader.repository}, and this is {repository}",
                hint="Two repositories have been mixed. Take what belongs to the other out of this one.",
            )
        return reader

    def _opened_keys(self) -> KeyRing:
        if self._ring is None:
            self._ring = opened(self._storage, self._seal.keys())
        return self._ring

    _ring: KeyRing | None = None

    def _run_keys(self, run: str) -> RunKeys:
        repository = open_repository(self._storage, create=False)
        encrypted = self._storage.exists(f"keys/{run}.age")
        identities = self._opened_keys().identities if encrypted else ()
        return read_run_keys(self._storage, run, identities, repository=repository)

    def can_read(self) -> bool:
        """Whether this host can read what is stored, and not only write."""
        try:
            return not self._seal.encrypt or self._seal.keys().can_decrypt
        except CredentialError:
            return False

    def _open_object(self, name: str) -> OpenObject:
        try:
            return self._storage.open(name)
        except FileNotFoundError:
            raise CorruptBackup(f"{name} is missing, though its metadata is there") from None

    def _checksum(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._open_object(name) as file:
            for offset in range(0, file.size, 1 << 20):
                digest.update(file.read_at(offset, 1 << 20))
        return digest.hexdigest()

    def _clean_if_alone(self) -> None:
        """Uploads that died are told from those at work only while nobody is."""
        try:
            with self._storage.lock("backup"):
                self._storage.sweep()
        except LockHeld:
            pass
        self.clean()


class _Stored:
    """Chunks out of the repository, where this host can read it."""

    def __init__(
        self, repository: DedupRepository, stack: ExitStack, reference: BackupMetadata | None
    ) -> None:
        self._repository = repository
        self._stack = stack
        self._reference = reference
        self._reader: ChunkReader | None = None

    def chunk(self, name: bytes) -> bytes | None:
        """None for one that is not in the backup that the run compares with, or cannot be read."""
        if self._reference is None or not self._repository.can_read():
            return None
        if self._reader is None:
            stored = self._stack.enter_context(self._repository.open(self._reference))
            self._reader = stored.reader
        try:
            return self._reader.chunk(name)
        except CorruptBackup:
            return None


def _digest_of(parent: BackupMetadata | None) -> str | None:
    return parent.manifest.digest if parent is not None and parent.manifest is not None else None
