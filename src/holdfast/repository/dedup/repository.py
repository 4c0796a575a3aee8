"""Backups that share what they have in common: the deduplicating repository, over a storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial

from holdfast.crypto import X25519Recipient, fingerprint
from holdfast.durable import explained, temp_directory
from holdfast.errors import (
    CorruptBackup,
    CredentialError,
    LockHeld,
    RepositoryError,
    SizeLimitExceeded,
    StorageError,
)
from holdfast.model import BackupMetadata, ManifestLocation
from holdfast.repository import _lists as lists
from holdfast.repository import _names as names
from holdfast.repository._catalog import RUNNING, running, statement
from holdfast.repository._lists import ParentList
from holdfast.repository._manifest import Header, PackRef
from holdfast.repository.base import RunAbandoned, RunPlan
from holdfast.repository.dedup._bases import BaseFinder, Places, find_places
from holdfast.repository.dedup._chunk_reader import ChunkReader
from holdfast.repository.dedup._chunk_store import ChunkStore
from holdfast.repository.dedup._garbage import CONDEMNED
from holdfast.repository.dedup._index_object import IndexWriter
from holdfast.repository.dedup._key_file import RunKeys, key_file_digest, write_run_keys
from holdfast.repository.dedup._manifest_object import ManifestWriter
from holdfast.repository.dedup._memories import Memories, learn
from holdfast.repository.dedup._names import pack_path
from holdfast.repository.dedup._relocate import is_worn, relocate
from holdfast.repository.dedup._run import DedupRun
from holdfast.repository.dedup._tensor_bases import TensorBases
from holdfast.repository.dedup._upkeep import Upkeep
from holdfast.repository.dedup._verify import indexes_of
from holdfast.repository.dedup._writer import audience, open_repository


class DedupRepository(Upkeep):
    """Implements `holdfast.repository.base.Repository`."""

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
            started = self._reserve(stack, plan)
            known: Memories | None = None
            run: DedupRun | None = None
            try:
                known, warnings = self._known(run_keys, recipients)
                parent = self._parent_list(stack, plan, known)
                key_file = write_run_keys(self._storage, run_keys, recipients)
                run = self._run(stack, plan, started, run_keys, recipients, known, key_file, parent)
                run.warnings += warnings
                with explained(f"cannot write to {temp_directory()}"):
                    yield run
                if run.committed is None:
                    raise RepositoryError(f"{started.backup_id} was not committed")
            except BaseException as error:
                if run is None or run.committed is None:
                    self._take_back(started, run, run_keys, known, error)
                raise

    def _run(
        self,
        stack: ExitStack,
        plan: RunPlan,
        started: BackupMetadata,
        keys: RunKeys,
        recipients: tuple[X25519Recipient, ...] | None,
        known: Memories,
        key_file: str,
        parent: ParentList | None,
    ) -> DedupRun:
        header = Header.of(started, parent_manifest=_digest_of(plan.parent))
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
            index=IndexWriter(
                self._storage, keys, sign=self._seal.sign, key_file=key_file, audience=audience(recipients)
            ),
            key_file=key_file,
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
            publish=partial(self._publish, started, keys, recipients, known),
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
        recipients: Sequence[X25519Recipient] | None,
        known: Memories,
        run: DedupRun,
        packs: Sequence[PackRef],
        warnings: int,
        duration_seconds: float,
        coherent: bool | None,
    ) -> BackupMetadata:
        self._check_there([pack.name for pack in packs if pack.hash], keys.run, known)
        name = names.manifest_name(started.backup_id)
        upload = self._storage.create(name)
        try:
            digest, size = run.lines.finish(upload, recipients or (), packs, run.records, coherent=coherent)
            run.store.check_size(upload.size)
            checksum = upload.publish()
        except BaseException:
            self._storage.delete(name)  # It may be there, and only its parity not.
            raise
        finally:
            upload.abort()
        metadata = replace(
            started,
            size_bytes=run.store.stored_bytes + upload.size,
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
        except BaseException as error:
            # It may be there, and only its parity not.
            found = self._metadata_of(started.backup_id)
            if found is None or found.status != metadata.status:
                self._storage.delete(name)
                raise
            run.committed = metadata
            if not isinstance(error, StorageError):
                raise
            run.warnings.append(f"the metadata of {metadata.backup_id} has no parity: {error}")
        # The backup is made. What goes wrong from here on only makes the next one read more.
        run.committed = metadata
        try:
            lists.save(self._state, metadata, run.lines.as_list())
            lists.forget_old(self._state, self.backups())
            known.own.note(dict.fromkeys(run.store.index.names, fingerprint(keys.writer)))
        except (OSError, StorageError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            run.warnings.append(f"the list of {metadata.backup_id} could not be kept: {why}")
        return metadata

    def _take_back(
        self,
        started: BackupMetadata,
        run: DedupRun | None,
        keys: RunKeys,
        known: Memories | None,
        error: BaseException,
    ) -> None:
        if run is not None:
            run.abort()
        alone = True
        if isinstance(error, SizeLimitExceeded) and run is not None and known is not None:
            known.forget_packs(run.store.finished)
            # Another run that began before they were forgotten may need them. What it leaves of them, `gc` frees.
            alone = all(
                other.status != RUNNING or other.backup_id == started.backup_id for other in self.backups()
            )
            for pack in run.store.finished if alone else ():
                self._storage.delete(pack_path(pack))
        if run is None or not run.store.finished or (isinstance(error, SizeLimitExceeded) and alone):
            for suffix in ("age", "json"):
                self._storage.delete(f"keys/{keys.run}.{suffix}")
        for path in indexes_of(self._storage, keys.run):
            self._storage.delete(path)
        if isinstance(error, RunAbandoned):
            self._storage.delete(names.metadata_name(started.backup_id))
        else:
            self.record_failure(started, error)

    def running(self, plan: RunPlan) -> BackupMetadata:
        """What is recorded of a run as long as it is at work; without an id."""
        return running(plan, "dedup", encrypted=self._seal.encrypt, host=self._host, tool=self._tool)

    def _reserve(self, stack: ExitStack, plan: RunPlan) -> BackupMetadata:
        """Takes an id, and its lock, for as long as `stack` is open."""
        if plan.original is not None:
            running = self.running(plan)
            stack.enter_context(self._storage.lock(f"run-{running.backup_id}"))
            return self.reserve(running, self._clock())
        while True:
            started = self.reserve(self.running(plan), self._clock())
            try:
                stack.enter_context(self._storage.lock(f"run-{started.backup_id}"))
            except LockHeld:
                continue  # `clean` has found the id without a lock, and is calling the run dead.
            if self._load(names.metadata_name(started.backup_id)).status != RUNNING:
                self.save_metadata(started)  # It has done so already.
            return started

    def _known(
        self, keys: RunKeys, recipients: Sequence[X25519Recipient] | None
    ) -> tuple[Memories, list[str]]:
        """What is stored and may be relied on, and what a person should know of it."""
        known = self._memories(keys.repository, keys.id_key, recipients)
        _, warnings = learn(
            self._storage,
            known,
            repository=keys.repository,
            id_key=keys.id_key,
            audience=audience(recipients),
        )
        # Marks first: a pack goes before its mark does.
        condemned = {name.removeprefix(CONDEMNED) for name in self._storage.names(CONDEMNED)}
        there = self._packs_there({pack[:2] for pack in known.packs()})
        opened = self._with_keys(known)
        known.forget_packs(
            [
                pack
                for pack in known.packs()
                if pack not in there or pack in condemned or pack.partition("-")[0] not in opened
            ]
        )
        return known, warnings

    def _with_keys(self, known: Memories) -> set[str]:
        """The runs whose key files are as they were: not lost, damaged, replaced, or given to others."""
        return {
            run
            for run, digest in known.key_files().items()
            if key_file_digest(self._storage, run, encrypted=self._seal.encrypt) == digest
        }

    def _check_there(self, packs: Sequence[str], run: str, known: Memories) -> None:
        """What was stored before this run must still be there, and its keys, when it commits."""
        older = [pack for pack in packs if not pack.startswith(run)]
        missing = set(older) - self._packs_there({pack[:2] for pack in older})
        if older:
            opened = self._with_keys(known)
            missing |= {pack for pack in older if pack.partition("-")[0] not in opened}
        if missing:
            raise RepositoryError(
                f"{len(missing)} packs that the backup needs, or their keys, were deleted while it was made",
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
            return plan.parent if plan.parent.format == "dedup" else None
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

    def _parent_list(self, stack: ExitStack, plan: RunPlan, known: Memories) -> ParentList | None:
        reference = self._reference(plan)
        if reference is None:
            return None
        found = lists.open_list(self._state, reference)
        if found is None and self._seal.believes(*self.signature_of(reference)) and self.can_read():
            # One that is damaged, or that another key opens, keeps no new one from being made.
            with suppress(CorruptBackup, CredentialError):
                self.rebuild_list(reference)
                found = lists.open_list(self._state, reference)
        if found is None:
            return None
        stack.enter_context(found)
        mine = known.packs()
        if all(pack.name in mine for pack in found.packs if pack.hash) and not is_worn(found.packs):
            return found
        # What it names may be in other packs by now. If that cannot be written down, everything is read again.
        moved = None
        with suppress(OSError, StorageError, CorruptBackup):
            if relocate(self._state, reference, found, known):
                moved = lists.open_list(self._state, reference)
        return stack.enter_context(moved) if moved is not None else None

    def _places(self, plan: RunPlan) -> Places:
        """Where the files of the last backup hold which chunks."""
        reference = self._reference(plan)
        found = lists.open_list(self._state, reference) if reference is not None else None
        if found is None:
            return {}
        with found:
            return find_places(found)

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
        try:
            if self._reader is None:
                stored = self._stack.enter_context(self._repository.open(self._reference))
                self._reader = stored.reader
            return self._reader.chunk(name)
        except (CorruptBackup, CredentialError):
            if self._reader is None:
                self._reference = None
            return None


def _digest_of(parent: BackupMetadata | None) -> str | None:
    return parent.manifest.digest if parent is not None and parent.manifest is not None else None
