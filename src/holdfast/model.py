"""The nouns: what a backup is, what is inside one, and what a run reports."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from holdfast.clock import parse_timestamp
from holdfast.errors import CorruptBackup, UsageError

Component = Literal["database", "models", "config", "logs"]
COMPONENTS: tuple[Component, ...] = get_args(Component)

BackupType = Literal["full", "incremental", "config", "models"]
BACKUP_TYPES: tuple[BackupType, ...] = get_args(BackupType)

BackupFormat = Literal["archive", "dedup"]
FORMATS: tuple[BackupFormat, ...] = get_args(BackupFormat)

ID_PREFIXES: dict[BackupType, str] = {
    "full": "full",
    "incremental": "incr",
    "config": "config",
    "models": "models",
}
_ID = re.compile(r"(full|incr|config|models)_[0-9]{8}_[0-9]{6}")

METADATA_VERSION = "1.0.0"


def is_backup_id(text: str) -> bool:
    """Whether `text` is a whole, well-formed backup id. No path is built from one that is not."""
    return _ID.fullmatch(text) is not None


def type_of_id(backup_id: str) -> BackupType:
    """The type that a well-formed backup id names."""
    prefix = backup_id.partition("_")[0]
    return next(kind for kind, known in ID_PREFIXES.items() if known == prefix)


def make_backup_id(kind: BackupType, moment: datetime) -> str:
    """``full_20240101_020000``: the type and the moment, UTC, to the second."""
    return f"{ID_PREFIXES[kind]}_{moment:%Y%m%d_%H%M%S}"


def parse_components(names: object) -> tuple[Component, ...]:
    """Component names from a caller, in canonical order, without repetition.

    Raises UsageError for an unknown or missing name.
    """
    if isinstance(names, str) or not isinstance(names, (list, tuple, set, frozenset)):
        raise UsageError(
            f"components must be a list of names, not {names!r}", hint=f"Known: {', '.join(COMPONENTS)}."
        )
    unknown = sorted(str(name) for name in names if name not in COMPONENTS)
    if unknown:
        raise UsageError(
            f"unknown component: {', '.join(unknown)}", hint=f"The components are {', '.join(COMPONENTS)}."
        )
    if not names:
        raise UsageError("no component was named", hint=f"Name at least one of {', '.join(COMPONENTS)}.")
    return tuple(component for component in COMPONENTS if component in names)


EntryKind = Literal["file", "directory", "symlink", "hardlink", "deleted"]
ENTRY_KINDS: tuple[EntryKind, ...] = get_args(EntryKind)


class Entry(NamedTuple):
    """One file, directory, link or dump inside a backup.

    A named tuple, not a dataclass: a backup of 100,000 files makes 200,000 of them, and a frozen dataclass
    costs five times as much to make.
    """

    path: str
    """Its name inside the backup: ``files/models/a.bin``, ``absolute/srv/x``, ``database/main.db``.
    Bytes that are not UTF-8 are surrogate escapes, as Python's file names have them."""
    kind: EntryKind
    size: int = 0
    """Bytes of content."""
    mode: int = 0
    """Permission bits, with set-uid, set-gid and sticky: at most 0o7777."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    digest: str = ""
    """SHA-256 of the content, in hex; files only."""
    target: str = ""
    """What a symlink says, or the entry path that a hard link shares."""
    xattrs: dict[str, bytes] | None = None
    sparse: bool = False
    """The file had holes; zeros are written back as holes."""
    token: str = ""
    """For a SQLite file: the state of its ``-wal`` and ``-journal`` as well. Empty when it has neither."""
    racy: bool = False
    """It was modified so shortly before it was read that a later change could leave its times as they are."""


def order_key(path: str) -> str:
    """Entries of a source are ordered by this: a directory, then what is in it, names by code point."""
    return path.replace("/", "\0")


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What a backup remembers of a source: never a secret, and never trusted as a place to write to."""

    component: Component
    name: str
    kind: str
    """``files``, ``sqlite``, and later ``postgresql`` and so on."""
    roots: tuple[str, ...] = ()
    """Entry paths of what was configured: ``files/models``; for a database, where its file was."""
    moment: dict[str, Any] = field(default_factory=dict)
    """Which moment of a database this is: a change counter, row counts, a log position."""
    entries: int = 0
    bytes: int = 0
    """Of content. This and `entries` are filled in by the run that stores the source."""

    @property
    def key(self) -> tuple[int, str]:
        """Sources stand in a backup in this order."""
        return COMPONENTS.index(self.component), self.name


@dataclass(frozen=True, slots=True)
class Signature:
    """A host's word that it made this backup."""

    key: str
    """The Ed25519 public key, base64."""
    value: str
    """The signature, base64."""


@dataclass(frozen=True, slots=True)
class ManifestLocation:
    """Where the manifest is in an archive, and what it hashes to."""

    digest: str
    """SHA-256 of the manifest, hex."""
    size: int
    """Bytes of the manifest."""
    compressed_offset: int
    """Where the gzip block begins that holds the manifest's tar header, in bytes of the (decrypted) archive."""


@dataclass(frozen=True, slots=True)
class BackupMetadata:
    """What ``<id>.metadata.json`` says. The contract's eight fields come first."""

    backup_id: str
    timestamp: str
    version: str
    type: BackupType
    size_bytes: int
    checksum: str
    components: tuple[Component, ...]
    status: str

    format: BackupFormat = "archive"
    """How it is stored: as one file, or in chunks that it shares with others."""
    parent: str | None = None
    encrypted: bool = False
    entries: int = 0
    source_bytes: int = 0
    """Bytes of content that the backup stands for, before compression."""
    duration_seconds: float = 0.0
    host: str = ""
    tool: str = ""
    tags: tuple[str, ...] = ()
    schedule_id: str | None = None
    """The schedule that made it; None for what was made by hand."""
    pinned: bool = False
    warnings: int = 0
    coherent: bool | None = None
    """Whether the models stayed as they were from the start of the first dump until the last of them was read; None
    where it does not hold both."""
    original: str | None = None
    """Of a copy: the `identity` of what it was made from."""
    manifest: ManifestLocation | None = None
    signature: Signature | None = None
    error_message: str | None = None

    @property
    def is_good(self) -> bool:
        return self.status == "success"

    @property
    def rests_on(self) -> str | None:
        """The backup without which this one cannot be restored. In the deduplicating format every one is whole."""
        return self.parent if self.format == "archive" else None

    @property
    def identity(self) -> str:
        """What a backup and all copies of it share: the SHA-256 of the manifest of the first. Empty for none."""
        return self.original or (self.manifest.digest if self.manifest is not None else "")

    @property
    def moment(self) -> datetime:
        """`timestamp` as an aware datetime."""
        return parse_timestamp(self.timestamp)

    def to_json(self) -> dict[str, Any]:
        """A JSON object, the contract's eight fields first; what is empty is left out."""
        plain = asdict(self)
        contract = list(plain)[:8]
        return {
            name: value for name, value in plain.items() if name in contract or value not in (None, (), "")
        }

    @classmethod
    def from_json(cls, data: object, *, what: str) -> BackupMetadata:
        """Reads what `to_json` wrote; unknown fields are passed over. Raises CorruptBackup, naming `what`."""
        if not isinstance(data, dict):
            raise CorruptBackup(f"{what} is not a JSON object")
        try:
            known = {item.name: data[item.name] for item in fields(cls) if item.name in data}
            known["components"] = parse_components(known["components"])
            known["tags"] = tuple(_of(str, tag) for tag in known.get("tags", ()))
            if known.get("manifest") is not None:
                known["manifest"] = _location(known["manifest"])
            if known.get("signature") is not None:
                signature = known["signature"]
                known["signature"] = Signature(_of(str, signature["key"]), _of(str, signature["value"]))
            metadata = cls(**known)
            _check(metadata)
        except (KeyError, TypeError, ValueError, OverflowError, UsageError) as error:
            raise CorruptBackup(f"{what} is not a backup's metadata: {error!s:.200}") from error
        return metadata


T = TypeVar("T")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_STATUSES = ("success", "failed", "running")
_TEXT_LIMIT = 10_000


def _of(kind: type[T], value: object) -> T:
    if type(value) is not kind or (isinstance(value, str) and len(value) > _TEXT_LIMIT):
        raise TypeError(f"{value!r:.80} is not of type {kind.__name__}")
    return value


def _size(value: object) -> int:
    number = _of(int, value)
    if not 0 <= number < 1 << 60:
        raise ValueError(f"{number} is not a sensible number")
    return number


def _location(data: dict[str, Any]) -> ManifestLocation:
    location = ManifestLocation(
        _of(str, data["digest"]), _size(data["size"]), _size(data["compressed_offset"])
    )
    if not _DIGEST.fullmatch(location.digest):
        raise ValueError("the manifest's digest is no SHA-256")
    return location


def _check(metadata: BackupMetadata) -> None:
    for text in (metadata.version, metadata.checksum, metadata.status, metadata.host, metadata.tool):
        _of(str, text)
    for flag in (metadata.encrypted, metadata.pinned):
        _of(bool, flag)
    for number in (metadata.size_bytes, metadata.entries, metadata.source_bytes, metadata.warnings):
        _size(number)
    seconds = metadata.duration_seconds
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e12:
        raise ValueError("the duration is no sensible number")
    for optional in (metadata.error_message, metadata.schedule_id):
        if optional is not None:
            _of(str, optional)
    if metadata.coherent is not None:
        _of(bool, metadata.coherent)
    if not is_backup_id(_of(str, metadata.backup_id)):
        raise ValueError(f"{metadata.backup_id!r} is not a backup id")
    if metadata.type != type_of_id(metadata.backup_id):
        raise ValueError(f"type {metadata.type!r} does not fit id {metadata.backup_id}")
    if make_backup_id(metadata.type, parse_timestamp(_of(str, metadata.timestamp))) != metadata.backup_id:
        raise ValueError(f"timestamp {metadata.timestamp!r} does not fit id {metadata.backup_id}")
    if metadata.parent is not None and not is_backup_id(_of(str, metadata.parent)):
        raise ValueError(f"parent {metadata.parent!r} is not a backup id")
    if metadata.original is not None and not _DIGEST.fullmatch(_of(str, metadata.original)):
        raise ValueError("the original's digest is no SHA-256")
    if metadata.format not in FORMATS:
        raise ValueError(f"{metadata.format!r:.80} is no format of ours")
    if metadata.status not in _STATUSES:
        raise ValueError(f"{metadata.status!r} is no status")
    if metadata.is_good and not (_DIGEST.fullmatch(metadata.checksum) and metadata.manifest):
        raise ValueError("a good backup has a checksum, and a manifest")


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    metadata: BackupMetadata
    warnings: tuple[str, ...] = ()
    """The first hundred; `metadata.warnings` counts them all."""
    bytes_read: int = 0
    skipped: int = 0
    """Sockets, fifos and devices."""
    notes: tuple[str, ...] = ()
    """Worth a line in a summary, and no reason for concern."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `holdfast check` looked at."""

    subject: str
    state: Literal["ok", "warning", "FAILED"]
    detail: str


def is_unchanged(known: Entry, now: Entry) -> bool:
    """Whether an entry is as the parent has it, judged without reading it.

    Where a SQLite file has a log beside it, `token` stands for the sizes.
    """
    return (
        known.mtime_ns == now.mtime_ns
        and known.ctime_ns == now.ctime_ns
        and known.inode == now.inode
        and known.token == now.token
        and (known.size == now.size or bool(now.token))
        and known.kind == now.kind
        and known.mode == now.mode
        and known.uid == now.uid
        and known.gid == now.gid
        and known.target == now.target
        and not known.racy
    )
