"""The protocols of a repository: how a run stores a backup, and how one is read back.

Restore, verify, expire, export and the scheduler are written once, over these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from holdfast.model import BackupMetadata, BackupType, Component, Entry, Signature, SourceRecord

Pieces = Iterator["bytes | memoryview"]

SHA256 = "sha256"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run is about to store."""

    type: BackupType
    components: tuple[Component, ...]
    parent: BackupMetadata | None
    tags: tuple[str, ...] = ()
    schedule_id: str | None = None
    max_bytes: int | None = None
    """The run ends with SizeLimitExceeded before it stores more than this."""
    original: BackupMetadata | None = None
    """The run copies this backup: it gets its time and its host, and the id of its `type` and that time. When that is
    taken, `begin` raises RepositoryError. A copy that fails leaves no record: its id is free for the next one."""


class Stored(Protocol):
    """An entry's content as its source gives it (`holdfast.sources.base.Content`)."""

    @property
    def size(self) -> int | None:
        """None when it is known only at the end."""
        ...

    @property
    def data(self) -> bytes | None: ...

    @property
    def stream(self) -> Pieces | None: ...


class Known(Protocol):
    """An entry as the parent has it."""

    @property
    def entry(self) -> Entry: ...


K = TypeVar("K", bound=Known)


class RunAbandoned(Exception):
    """Raised by whoever makes a backup, to take the run back and leave no trace of it: another one follows."""


class Run(Protocol[K]):
    """One backup being made. Leaving the context without `commit` takes everything back. That is recorded as a
    failed run, unless RunAbandoned ends it.

    Sources come in the order of `SourceRecord.key`. For each: `begin_source`; then every entry in order, through
    `known` and one of `keep` and `add`; then `end_source`.
    """

    backup_id: str
    warnings: list[str]
    """What a person should know of how the run began, and how it ended."""

    @property
    def digests(self) -> str:
        """What the digests of its entries are; see `StoredBackup.digests`."""
        ...

    def begin_source(self, component: Component, name: str) -> bool:
        """Starts a source, and tells whether the parent has it."""
        ...

    def known(self, path: str) -> K | None:
        """The entry of that path in the parent. What the parent has before it, and was not asked for, is recorded
        as deleted."""
        ...

    def keep(self, known: K) -> None:
        """The entry is as in the parent."""
        ...

    def add(self, entry: Entry, content: Stored | None, known: K | None) -> Entry:
        """Stores an entry; of a large file only what the parent's version of it lacks.

        Returns it with size and digest as stored. When the content raises SourceChanged, the entry counts as not
        added, and may be added again.
        """
        ...

    def end_source(self, record: SourceRecord) -> None: ...

    def commit(
        self, *, warnings: int, duration_seconds: float, coherent: bool | None = None
    ) -> BackupMetadata:
        """Makes the backup durable and visible. `coherent`: see `BackupMetadata`. A source without a moment was not
        read, and has the parent's. Raises StorageError when what was stored does not read back."""
        ...


class Tensor(NamedTuple):
    """What is known of a tensor in a model file without reading it."""

    name: str
    dtype: str
    """As the format of the file names it; empty where it is part of a shortened name."""
    shape: str
    """``768x3072``; empty for a single number."""
    content: bytes
    """The same where the content is, and only there; among those of one `Tensors.key`."""


class Tensors(NamedTuple):
    """The tensors of a model file."""

    key: bytes
    """Contents that are named under different keys cannot be compared."""
    tensors: list[Tensor]
    """Each name once."""


class StoredBackup(Protocol):
    """A backup opened for reading, whole: what it rests on is already resolved."""

    metadata: BackupMetadata

    @property
    def digests(self) -> str:
        """What the digests of its entries are: they can be compared with those of a backup that says the same.
        `SHA256` is the SHA-256 of the content."""
        ...

    def sources(self) -> Sequence[SourceRecord]: ...

    def entries(self, source: SourceRecord) -> Iterator[Entry]:
        """In order, parents before what is in them."""
        ...

    def read(self, entry: Entry) -> Pieces:
        """An entry's content; CorruptBackup after the last piece when it is not what the manifest says. Entries
        are best read in the order in which `entries` gives them."""
        ...

    def tensors(self, entry: Entry) -> Tensors | None:
        """The tensors of a file that was given out last, told without reading more of it than its header. None for
        what is no model, or where that cannot be told. Raises CorruptBackup."""
        ...


class Repository(Protocol):
    """Where backups live."""

    def backups(self, backup_type: BackupType | None = None) -> list[BackupMetadata]:
        """Every recorded backup, newest first: also those whose `status` is failed, running or damaged."""
        ...

    def find(self, reference: str) -> BackupMetadata:
        """A good backup by ``latest`` (the newest full or incremental one), id, or unique prefix.

        Raises BackupNotFound; UsageError when several ids begin so.
        """
        ...

    def chain(self, metadata: BackupMetadata) -> list[BackupMetadata]:
        """A backup and all that it rests on, itself first. Raises ParentMissing."""
        ...

    def lent(self) -> AbstractContextManager[None]:
        """Holds off `expiring` while backups are being read."""
        ...

    def expiring(self) -> AbstractContextManager[None]:
        """To delete backups in. Raises LockHeld at once while backups are being made or read."""
        ...

    def begin(self, plan: RunPlan) -> AbstractContextManager[Run[Any]]: ...

    def open(self, metadata: BackupMetadata) -> AbstractContextManager[StoredBackup]: ...

    def verify(self, metadata: BackupMetadata, *, deep: bool, progress: Callable[[int], None]) -> None:
        """Raises CorruptBackup when stored data is not what was stored. `deep` reads every entry."""
        ...

    def signature_of(self, metadata: BackupMetadata) -> tuple[Signature | None, bytes]:
        """What a backup is signed with, and the statement that this signs."""
        ...

    def is_present(self, metadata: BackupMetadata) -> bool:
        """Whether what a backup consists of is there, as far as names and sizes tell."""
        ...

    def set_pinned(self, metadata: BackupMetadata, pinned: bool) -> BackupMetadata: ...

    def delete(self, metadata: BackupMetadata) -> None: ...
