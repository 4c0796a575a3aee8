"""The deduplicating repository as one reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache

from holdfast.clock import Clock
from holdfast.crypto import KeyRing, is_age_file
from holdfast.errors import (
    CorruptBackup,
    CredentialError,
)
from holdfast.model import BackupMetadata
from holdfast.repository import _lists as lists
from holdfast.repository import _names as names
from holdfast.repository._catalog import Catalog
from holdfast.repository._manifest import PackRef
from holdfast.repository._parity import verify_parity
from holdfast.repository._parity_storage import ParityStorage, checked, mend_first
from holdfast.repository._seal import Seal
from holdfast.repository.dedup._bases import Locate
from holdfast.repository.dedup._chunk_reader import ChunkReader
from holdfast.repository.dedup._key_file import RunKeys, read_run_keys
from holdfast.repository.dedup._manifest_object import ManifestReader
from holdfast.repository.dedup._moved import Moved, missing_pack
from holdfast.repository.dedup._stored import StoredManifest
from holdfast.repository.dedup._verify import (
    checksum_of,
    objects_of,
    verify_keys,
    verify_manifest,
    verify_packs,
)
from holdfast.repository.dedup._writer import (
    open_repository,
    opened,
)
from holdfast.state import LocalState
from holdfast.storage.base import OpenObject, Storage


class Reading(Catalog):
    """What is there, and what it holds."""

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
        trust_writers: Sequence[str] = (),
    ) -> None:
        """`writer`: this host's public signing key. `locate`: where on this host an entry's file lies, if it does.
        `trust_writers`: fingerprints of the hosts whose chunks are taken for stored."""
        # What is damaged is read as parity mends it, whoever gave us the storage.
        storage = storage if isinstance(storage, ParityStorage) else ParityStorage(storage)
        super().__init__(storage)
        self._plain = storage.plain
        self._gives_parity = storage.writes
        self._state = state
        self._seal = seal
        self._writer = writer
        self._locate = locate
        self._host = host
        self._tool = tool
        self._clock = clock
        self._trust_writers = trust_writers
        self._keys_of = lru_cache(maxsize=None)(self._run_keys)

    @contextmanager
    def open(self, metadata: BackupMetadata) -> Iterator[StoredManifest]:
        with ExitStack() as stack:
            manifest = self._manifest(stack, metadata)
            chunks = ChunkReader(
                self._storage,
                self._keys_of,
                manifest.packs,
                name=metadata.backup_id,
                moved=self._moved(manifest.packs, metadata.backup_id),
            )
            stored = StoredManifest(metadata, manifest, chunks, lambda: self._keys_of(manifest.run).id_key)
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
            verify_parity(self._plain, name)
            if self._checksum(name) != metadata.checksum:
                raise CorruptBackup(
                    f"{name} does not have the checksum {metadata.checksum[:12]}… of its metadata"
                )
            if not deep and not self.can_read():
                self._verify_from_list(metadata)
                return
            with self.open(metadata) as stored:
                packs = self._by_now(stored.manifest.packs, metadata.backup_id)
                if deep:
                    for needed in objects_of(self._storage, metadata, stored.manifest.run, packs):
                        verify_parity(self._plain, needed)
                self._verify_packs(packs, metadata.backup_id)
                if deep:
                    verify_manifest(self._storage, stored, packs, self._keys_of, progress)
            del stack

    def _verify_from_list(self, metadata: BackupMetadata) -> None:
        """What can be told without reading the manifest: where its list is kept here, that names the packs too."""
        found = lists.open_list(self._state, metadata)
        if found is not None:
            with found:
                self._verify_packs(self._by_now(found.packs, metadata.backup_id), metadata.backup_id)

    def _verify_packs(self, packs: Sequence[PackRef], name: str) -> None:
        verify_packs(self._storage, packs, name)
        verify_keys(self._storage, packs, name)

    def _by_now(self, packs: Sequence[PackRef], name: str) -> list[PackRef]:
        """The packs that a backup needs, as they are by now."""
        moved = self._moved(packs, name)
        places = {place.name: place for pack in packs if pack.hash for place in moved.get(pack.name, [pack])}
        return list(places.values())

    def _moved(self, packs: Sequence[PackRef], name: str) -> dict[str, list[PackRef]]:
        """For each pack that is not there any more, where its chunks are. Raises CorruptBackup where nobody says."""
        moved = Moved(self._storage)
        gone = [pack for pack in packs if pack.hash and not moved.is_there(pack.name)]
        for pack in gone:
            if moved.to(pack.name) is None:
                raise missing_pack(pack.name, name)
        return {pack.name: moved.places(pack) for pack in gone}

    def is_present(self, metadata: BackupMetadata) -> bool:
        return self._storage.exists(names.manifest_name(metadata.backup_id))

    def delete(self, metadata: BackupMetadata) -> None:
        # The metadata goes first: without it this is no backup any more.
        self._storage.delete(names.metadata_name(metadata.backup_id))
        self._storage.delete(names.manifest_name(metadata.backup_id))
        self._state.list_file(metadata.backup_id).unlink(missing_ok=True)

    def _manifest(self, stack: ExitStack, metadata: BackupMetadata) -> ManifestReader:
        name = names.manifest_name(metadata.backup_id)
        repository = open_repository(self._storage, create=False)
        file = stack.enter_context(self._open_object(name))
        # What the metadata says of it may be damaged; what lies there tells.
        keys = self._opened_keys() if metadata.encrypted or is_age_file(file.read_at(0, 64)) else None
        reader = checked(file, lambda: ManifestReader(file, metadata, keys, name=name))
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
        with self._open_object(name) as file:
            mend_first(file)
            return checksum_of(file)

    def _packs_there(self, prefixes: set[str]) -> set[str]:
        return {
            name.rpartition("/")[2] for prefix in prefixes for name in self._storage.names(f"packs/{prefix}/")
        }
