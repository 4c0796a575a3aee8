"""SQLite databases: read through a snapshot, restored through SQLite itself."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from holdfast.clock import Clock
from holdfast.durable import free_bytes, sync_directory, temp_directory
from holdfast.errors import CorruptBackup, DatabaseError, RestoreError, SourceMissing
from holdfast.events import Emit
from holdfast.model import Component, Entry, Finding, SourceRecord
from holdfast.sources.base import RACY_NS, Content, Method, Pieces, Read, Staging
from holdfast.sources.sqlite._connection import connect, find_damage
from holdfast.sources.sqlite._format import LOGS, MAGIC
from holdfast.sources.sqlite._snapshot import DOING, Facts, Snapshot, take_snapshot
from holdfast.sources.sqlite._swap import SqliteSwap
from holdfast.text import shown
from holdfast.transaction import Swap, restoring

__all__ = ["SqliteSource", "SqliteSwap", "SqliteTarget"]


class SqliteSource:
    """One database file. Implements `holdfast.sources.base.Source`.

    `path` may be a link; what it leads to is backed up. `root` is the service root. `timeout` is in seconds.
    """

    method: ClassVar[Method] = Method.PHYSICAL_COPY

    def __init__(self, name: str, path: Path, root: Path, *, timeout: float, clock: Clock) -> None:
        self.component: Component = "database"
        self.name = name
        self.tolerates_change = False
        self._path = Path(os.path.abspath(path))
        self._root = Path(os.path.abspath(root))
        self._timeout = timeout
        self._clock = clock
        self._facts: Facts | None = None

    def record(self) -> SourceRecord:
        """Its moment is known once the item was opened: page size in bytes, pages, ``PRAGMA user_version``, and the
        rows of each table. A database that was not read has none: the parent's is still true of it."""
        facts = self._facts
        if self._path.is_relative_to(self._root):
            root = f"files/{self._path.relative_to(self._root)}"
        else:
            root = f"absolute{self._path}"
        moment = {} if facts is None else {
            "page_size": facts.page_size,
            "pages": facts.pages,
            "user_version": facts.user_version,
            "rows": facts.rows,
        }  # fmt: skip
        return SourceRecord(self.component, self.name, "sqlite", roots=(root,), moment=moment)

    def check(self) -> Iterator[Finding]:
        """See `Source.check`. Makes a snapshot, and throws it away."""
        subject = f"{self.component} {self.name}"
        entry = self._observe()
        with take_snapshot(self._path, timeout=self._timeout) as snapshot:
            _ = snapshot.facts
        entry = entry._replace(size=snapshot.size)
        room = free_bytes(temp_directory())
        if room < entry.size:
            yield Finding(subject, "FAILED", f"{temp_directory()} has no room for its snapshot")
        else:
            yield Finding(subject, "ok", f"SQLite {sqlite3.sqlite_version}, {entry.size / 1e6:,.1f} MB")

    def scan(self, emit: Emit) -> Iterator[SqliteItem]:
        """See `Source.scan`. Also raises DatabaseError for what is not a file. Opens nothing."""
        self._facts = None
        yield SqliteItem(self._observe(), self)

    def _observe(self) -> Entry:
        path = os.path.realpath(self._path)
        start = f"{DOING} failed: {shown(str(self._path))}"
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise SourceMissing(
                f"{start} is not there",
                hint="Is a disk unmounted? Else correct DATABASE_URL or holdfast.toml.",
            ) from None
        except OSError as error:
            raise DatabaseError(f"{start}: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise DatabaseError(f"{start} is not a file")
        token, logged_ns = _state_of_logs(path, status.st_size)
        now_ns = int(self._clock().timestamp() * 1_000_000_000)
        return Entry(
            path=f"database/{self.name}.db",
            kind="file",
            size=status.st_size,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            inode=status.st_ino,
            token=token,
            racy=max(status.st_mtime_ns, status.st_ctime_ns, logged_ns) > now_ns - RACY_NS,
        )

    def _open(self) -> tuple[Entry, Content]:
        # The state comes first: what is written after it is seen as a change by the next backup, at worst in vain.
        entry = self._observe()
        snapshot = take_snapshot(self._path, timeout=self._timeout)
        stream = self._pieces(snapshot)
        next(stream)  # closing a generator that has not begun would not close the snapshot
        return entry._replace(size=snapshot.size), Content(snapshot.size, stream=stream)

    def _pieces(self, snapshot: Snapshot) -> Pieces:
        with snapshot:
            yield b""
            yield from snapshot.pieces()
            self._facts = snapshot.facts


def _state_of_logs(path: str, size: int) -> tuple[str, int]:
    """The token for the logs beside a database of `size` bytes, and when they last changed, in nanoseconds.

    Their ctime is not part of the token: SQLite run by root changes it whenever it opens one, our own reading
    included, because it gives the log to the owner of the database.
    """
    parts = []
    changed_ns = 0
    for suffix in LOGS:
        try:
            log = os.stat(f"{path}{suffix}")
        except FileNotFoundError:
            continue
        if log.st_size:
            parts.append(f"{suffix[1:]}:{log.st_size}:{log.st_mtime_ns}:{log.st_ino}")
            changed_ns = max(changed_ns, log.st_mtime_ns, log.st_ctime_ns)
    return ";".join([*parts, f"size:{size}"]) if parts else "", changed_ns


class SqliteItem:
    """The one entry of a database."""

    def __init__(self, entry: Entry, source: SqliteSource) -> None:
        self.entry = entry
        self._source = source

    def open(self, *, settle: bool = False) -> tuple[Entry, Content | None]:
        """See `Item.open`. The size is the snapshot's. There is nothing to settle for: a snapshot is one moment."""
        return self._source._open()


class SqliteTarget:
    """The file that a database goes back to. Implements `holdfast.sources.base.Restorable`.

    `path` may be a link; what it leads to is replaced. `timeout` is in seconds. `create_parents`: its directory is
    made where it is missing.
    """

    def __init__(self, path: Path, *, timeout: float, create_parents: bool) -> None:
        self._live = Path(os.path.realpath(path))
        self._timeout = timeout
        self._create_parents = create_parents

    def needs(self, total_bytes: int) -> dict[Path, int]:
        """The staged file, the copy of the live one, what either SQLite log takes at most while the one is written
        over the other, and what the live one grows by."""
        live = sum(_size(f"{self._live}{suffix}") for suffix in ("", "-wal"))
        directory = self._live.parent
        while not directory.exists():
            directory = directory.parent
        return {directory: total_bytes + live + max(total_bytes, live) + max(0, total_bytes - live)}

    def stage(self, entries: Iterator[Entry], read: Read, staging: Staging, emit: Emit) -> list[Swap]:
        """See `Restorable.stage`. Raises CorruptBackup when what the backup has is not one sound database,
        RestoreError when there is no directory to put it in or it cannot be written to, NoSpace."""
        entry = next(entries, None)
        if entry is None or entry.kind != "file" or next(entries, None) is not None:
            raise CorruptBackup("a SQLite database in a backup is one file, and here it is not")
        with restoring(f"cannot stage a restore of {shown(str(self._live))}"):
            directory = self._directory()
            private = staging.place(directory)
            staged = private / "0" / "copy.db"
            staged.parent.mkdir(mode=0o700)
            _write(staged, entry, read)
            _check(staged, entry)
            for made in (staged.parent, private, directory):
                sync_directory(made)
        attributes = (entry.mode, entry.uid, entry.gid)
        return [SqliteSwap(self._live, private, timeout=self._timeout, attributes=attributes)]

    def _directory(self) -> Path:
        directory = self._live.parent
        if self._create_parents:
            directory.mkdir(parents=True, exist_ok=True)
        if not directory.is_dir():
            raise RestoreError(
                f"{shown(str(directory))} is not there, so no database can be restored into it",
                hint="Add --create-db to have it made.",
            )
        if os.path.lexists(self._live) and not self._live.is_file():
            raise RestoreError(f"{shown(str(self._live))} is not a file, and a database would replace it")
        return directory


def _write(staged: Path, entry: Entry, read: Read) -> None:
    written = 0
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        for piece in read(entry):
            written += len(piece)
            if written > entry.size:
                raise CorruptBackup(f"{entry.path} is longer than the {entry.size} bytes it declares")
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(descriptor)
    if written != entry.size:
        raise CorruptBackup(f"{entry.path} ends after {written} of {entry.size} bytes")


def _check(staged: Path, entry: Entry) -> None:
    """Raises CorruptBackup for what is not a sound database."""
    with staged.open("rb") as file:
        is_database = file.read(len(MAGIC)) == MAGIC
    if not is_database:
        raise CorruptBackup(f"{entry.path} is not a SQLite database")
    try:
        # Nobody else has it, and a log beside it would be moved to the live one's.
        with closing(connect(staged, "ro", immutable=True)) as database:
            damage = find_damage(database, deep=True)
    except sqlite3.Error as error:
        raise CorruptBackup(f"{entry.path} is a damaged database: {error}") from error
    if damage is not None:
        raise CorruptBackup(f"{entry.path} is a damaged database: {damage}")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
