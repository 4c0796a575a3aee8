"""One directory with backups in either format: each is read as what it is, and new ones are made in one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from holdfast.crypto import KeyRing
from holdfast.errors import HoldfastError, LockHeld
from holdfast.model import BackupFormat, BackupMetadata, Signature
from holdfast.repository import _names as names
from holdfast.repository._catalog import Catalog
from holdfast.repository.archive import ArchiveRepository
from holdfast.repository.base import Run, RunPlan, StoredBackup
from holdfast.storage.base import Storage, Upload

if TYPE_CHECKING:
    from holdfast.repository.dedup import Collected, DedupRepository
    from holdfast.repository.dedup._mender import Mending


class EitherRepository(Catalog):
    """Implements `holdfast.repository.base.Repository`."""

    def __init__(
        self,
        storage: Storage,
        archive: ArchiveRepository,
        dedup: Callable[[], DedupRepository],
        *,
        writes: BackupFormat,
    ) -> None:
        """`archive` and `dedup` are over the same `storage`. `dedup` is asked for when it is needed: it takes long to
        load. `writes`: the format of new backups."""
        super().__init__(storage)
        self.archive = archive
        self.writes = writes
        self._make_dedup = dedup

    @cached_property
    def dedup(self) -> DedupRepository:
        return self._make_dedup()

    def begin(self, plan: RunPlan) -> AbstractContextManager[Run[Any]]:
        return self._named(self.writes).begin(plan)

    def record_unbegun(self, plan: RunPlan, error: HoldfastError, moment: datetime) -> str:
        """Records that a run failed before it stored anything, and returns the id that it is recorded under."""
        started = self.reserve(self._named(self.writes).running(plan), moment)
        self.record_failure(started, error)
        return started.backup_id

    def open(self, metadata: BackupMetadata) -> AbstractContextManager[StoredBackup]:
        return self._of(metadata).open(metadata)

    def verify(self, metadata: BackupMetadata, *, deep: bool, progress: Callable[[int], None]) -> None:
        self._of(metadata).verify(metadata, deep=deep, progress=progress)

    def is_present(self, metadata: BackupMetadata) -> bool:
        return self._of(metadata).is_present(metadata)

    def signature_of(self, metadata: BackupMetadata) -> tuple[Signature | None, bytes]:
        return self._of(metadata).signature_of(metadata)

    def delete(self, metadata: BackupMetadata) -> None:
        self._of(metadata).delete(metadata)

    def lent(self) -> AbstractContextManager[None]:
        return self.archive.lent()

    @contextmanager
    def expiring(self) -> Iterator[None]:
        with self._named(self.writes).expiring():
            yield

    def clean(self) -> list[str]:
        """Takes back what runs that were killed have left. While `expiring` is held."""
        if self.writes == "archive":
            return self.archive.clean() + self.dedup.clean()
        # Runs may be at work: uploads that died are told from theirs only while there are none.
        try:
            with self._storage.lock("backup"):
                cleaned = self.archive.clean()
        except LockHeld:
            cleaned = []
        return cleaned + self.dedup.clean()

    def collect(self) -> Collected:
        """Frees what no backup needs any more in packs. While `expiring` is held."""
        if self.writes == "archive":
            return self.dedup.collect()
        # Runs that begin meanwhile must not take what is being written for what the dead have left.
        with self._storage.lock("backup", shared=True):
            return self.dedup.collect()

    def mend(self) -> Iterator[Mending]:
        """Mends what has parity; see `Upkeep.mend`."""
        if self.writes == "dedup" or self._storage.exists("repository.json"):
            yield from self.dedup.mend()

    def rebuild_list(self, metadata: BackupMetadata) -> bool:
        """Makes the list of a backup in the local state again. False when it is there already."""
        return self._of(metadata).rebuild_list(metadata)

    def orphans(self) -> list[str]:
        """The names of archives and manifests whose metadata is lost, or damaged."""
        return self.archive.orphans() + self.dedup.orphans()

    def examine(self, name: str) -> BackupMetadata:
        """The metadata of one of these, unsigned."""
        return self._named("dedup" if names.manifest_id(name) else "archive").examine(name)

    def name_of(self, metadata: BackupMetadata) -> str:
        """Where a backup's archive, or its manifest, lies in the storage."""
        return (
            names.manifest_name(metadata.backup_id)
            if metadata.format == "dedup"
            else names.archive_of(metadata)
        )

    def export(self, stored: StoredBackup, upload: Upload, progress: Callable[[int, int], None]) -> None:
        """Writes a backup to `upload` as a full, unencrypted archive, whatever it is stored as."""
        self.archive.export(stored, upload, progress)

    def rewrap(self, metadata: BackupMetadata, old: KeyRing, new: KeyRing) -> bool:
        """Gives a backup to other recipients. False when `new` opens it already."""
        return self._of(metadata).rewrap(metadata, old, new)

    def _of(self, metadata: BackupMetadata) -> ArchiveRepository | DedupRepository:
        return self._named(metadata.format)

    def _named(self, format_: BackupFormat) -> ArchiveRepository | DedupRepository:
        return self.dedup if format_ == "dedup" else self.archive
