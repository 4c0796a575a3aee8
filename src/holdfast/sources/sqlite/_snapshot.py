"""A SQLite database as of one moment, while others write to it.

The copy is made by SQLite's backup API (https://www.sqlite.org/backup.html) over a connection that only reads.
Neither the main file nor its log is ever opened by us: a process that closes any descriptor of a file loses all
its POSIX locks on that file, so a service that calls us would lose its own
(https://www.sqlite.org/howtocorrupt.html, section 2.2).
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

from holdfast.durable import explained, free_bytes, temp_directory
from holdfast.errors import NoSpace, SourceChanged
from holdfast.sources.sqlite._connection import (
    code_of,
    connect,
    damaged,
    explained_database,
    find_damage,
    give_up_when_busy,
    make_scratch,
    pages_per_step,
    pragma,
)
from holdfast.text import shown

DOING = "Database backup"
PIECE_BYTES = 1024 * 1024
HELD_BYTES = 256 * 1024 * 1024
"""Up to this size, copying is so short that writers can wait for the end of it."""
NEW_STARTS = 2
"""So often a larger copy begins afresh, because somebody wrote, before writers have to wait."""
TABLES = 1000
"""Tables whose rows are counted, at most; and characters of a name."""
NAME_LENGTH = 200
_PATIENCE = 0.05
"""Seconds from one interrupt to the next."""

_VERSIONS_OFFSET = 18
"""Where the header says how the file is written and read: 1 for a rollback journal, 2 for a write-ahead log:
https://www.sqlite.org/fileformat2.html, section 1.3.3."""
_ROLLBACK, _WRITE_AHEAD = b"\1\1", b"\2\2"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a snapshot is known by."""

    page_size: int
    """Bytes."""
    pages: int
    user_version: int
    """The service's own number: ``PRAGMA user_version``."""
    rows: dict[str, int]
    """For each table, by name. The first thousand tables; virtual tables are left out."""


class Snapshot:
    """A copy in a file without a name, 0600: it is gone with this process, however that ends. A thread checks it,
    while it is read."""

    def __init__(self, path: Path, file: FileIO, reader: sqlite3.Connection, timeout: float) -> None:
        """`path`: of what it is a copy. `reader`: a connection to the copy, for the thread."""
        self._path = path
        self._file = file
        self._reader = reader
        self._timeout = timeout
        self._versions = os.pread(file.fileno(), len(_WRITE_AHEAD), _VERSIONS_OFFSET)
        if self._versions == _WRITE_AHEAD:
            # A database in WAL mode is read with a log beside it, and beside a file without a name there can be none.
            os.pwrite(file.fileno(), _ROLLBACK, _VERSIONS_OFFSET)
        pragma(reader, "schema_version")  # until it is read, the page size is any
        self.size = int(pragma(reader, "page_size")) * int(pragma(reader, "page_count"))
        """Bytes."""
        checker = ThreadPoolExecutor(1, thread_name_prefix="check")
        self._facts = checker.submit(_inspect, path, reader)
        checker.shutdown(wait=False)

    @property
    def facts(self) -> Facts:
        """Waits for the check. Raises DatabaseError for a database that is damaged."""
        with explained_database(DOING, self._path, self._timeout):
            return self._facts.result()

    def pieces(self) -> Generator[memoryview, memoryview | None, None]:
        """Its content, from the start; see `holdfast.sources.base.Pieces`. Raises DatabaseError after the last piece
        when the database is damaged."""
        own = memoryview(bytearray(PIECE_BYTES))
        self._file.seek(0)
        left = self.size
        given: memoryview | None = None
        while left:
            buffer = own if given is None else given
            if not (count := self._file.readinto(buffer[:left])):
                break
            if left == self.size:
                buffer[_VERSIONS_OFFSET : _VERSIONS_OFFSET + len(self._versions)] = self._versions
            left -= count
            given = yield buffer[:count]
        _ = self.facts
        if left:
            raise SourceChanged("a snapshot of a database was cut short while it was read")

    def close(self) -> None:
        # Again and again: an interrupt ends the statement that runs, and not the one that comes next.
        while not self._facts.done():
            self._reader.interrupt()
            wait([self._facts], timeout=_PATIENCE)
        self._reader.close()
        self._file.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def take_snapshot(path: Path, *, timeout: float) -> Snapshot:
    """Copies a database into a private temporary file (see `holdfast.durable.temp_directory`), which is then checked.

    What is locked is waited for, `timeout` seconds at most. Raises SourceMissing, SourceUnreadable, DatabaseBusy,
    DatabaseError for what is no database, NoSpace, and SourceChanged where it should be tried again.
    """
    path = Path(os.path.realpath(path))
    with ExitStack() as stack, explained_database(DOING, path, timeout):
        file, writer, reader = _scratch(path, stack)
        try:
            _fill(path, writer, timeout)
        except sqlite3.OperationalError as error:
            if code_of(error) == sqlite3.SQLITE_FULL:
                raise _no_room(path) from error
            raise
        writer.close()
        snapshot = Snapshot(path, file, reader, timeout)
        stack.pop_all()
        return snapshot


def _scratch(path: Path, stack: ExitStack) -> tuple[FileIO, sqlite3.Connection, sqlite3.Connection]:
    """A private file without a name, and two connections to it. SQLite opens only what has a name, so both are made
    in the instant when there is one and the file is empty."""
    directory = temp_directory()
    if free_bytes(directory) < _needed(path):
        raise _no_room(path)
    with explained(f"{DOING} failed: cannot write to {directory}"):
        descriptor, name = tempfile.mkstemp(prefix="holdfast-", dir=directory)
    try:
        file = stack.enter_context(FileIO(descriptor, "r+"))
        writer = stack.enter_context(closing(connect(Path(name), "rw")))
        reader = stack.enter_context(closing(connect(Path(name), "rw", one_thread=False)))
    finally:
        os.unlink(name)
    make_scratch(writer)
    return file, writer, reader


def _no_room(path: Path) -> NoSpace:
    directory = temp_directory()
    return NoSpace(
        f"{DOING} failed: a snapshot of {shown(str(path))} takes up to {_needed(path)} bytes, and {directory} has "
        f"{free_bytes(directory)} left",
        hint=f"Free some space in {directory}, or set TMPDIR to a directory with room.",
    )


def _needed(path: Path) -> int:
    return _size_of(path, "") + _size_of(path, "-wal")


def _size_of(path: Path, suffix: str) -> int:
    try:
        return os.stat(f"{path}{suffix}").st_size
    except OSError:
        return 0  # SQLite will say what is wrong


def _fill(path: Path, writer: sqlite3.Connection, timeout: float) -> None:
    had_log = os.path.lexists(f"{path}-wal")
    live = connect(path, "ro", timeout=timeout)
    with ExitStack() as stack:
        stack.callback(live.close)
        try:
            pragma(live, "schema_version")
        except sqlite3.OperationalError as error:
            live.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
                # A crash left a transaction half done. Whoever reads next takes it back, and has to write for that.
                live = stack.enter_context(closing(connect(path, "rw", timeout=timeout)))
            elif error.sqlite_errorcode == sqlite3.SQLITE_READONLY_DIRECTORY:
                # In WAL mode, used by nobody (there is no log), and we may not create the log that reading takes.
                _copy_at_rest(path, writer)
                return
            else:
                raise
        _copy(live, writer)
    if not had_log:
        _remove_own_log(path)


def _copy(live: sqlite3.Connection, writer: sqlite3.Connection) -> None:
    """Copies one state, in steps, so that it can be interrupted.

    In WAL mode an open read transaction holds the state still and stops nobody. With a rollback journal the same
    makes writers wait. A large database is therefore copied first with the lock let go after every step: a writer
    waits for one step, and SQLite begins afresh after it. When that happens too often, writers do wait.
    """
    page_size = int(pragma(live, "page_size"))
    held = pragma(live, "journal_mode") == "wal" or page_size * int(pragma(live, "page_count")) <= HELD_BYTES
    if held:
        _hold(live)
    starts = 0
    left = 1 << 32

    def progress(status: int, remaining: int, total: int) -> None:
        nonlocal starts, left
        give_up_when_busy(status)
        starts += remaining > left
        left = remaining
        if starts > NEW_STARTS and not live.in_transaction:
            _hold(live)

    live.backup(writer, pages=pages_per_step(live), progress=progress)


def _hold(live: sqlite3.Connection) -> None:
    live.execute("BEGIN")
    pragma(live, "schema_version")  # BEGIN alone takes no lock


def _copy_at_rest(path: Path, writer: sqlite3.Connection) -> None:
    """Copies a database in WAL mode that nobody has open. SourceChanged when that was no longer so at the end."""
    before = os.stat(path)
    with closing(connect(path, "ro", immutable=True)) as live:
        _copy(live, writer)
    after = os.stat(path)
    if os.path.lexists(f"{path}-wal") or (before.st_mtime_ns, before.st_ctime_ns, before.st_size) != (
        after.st_mtime_ns,
        after.st_ctime_ns,
        after.st_size,
    ):
        raise SourceChanged(f"{shown(str(path))} came into use while it was read")


def _remove_own_log(path: Path) -> None:
    """In WAL mode a reader who comes first creates the log, and one that may not write cannot remove it.

    Left behind it would be ours, perhaps not writable to the service. A connection that may write removes it when
    it is the last to close, and decides that under SQLite's own locks.
    """
    if os.path.lexists(f"{path}-wal") and not _size_of(path, "-wal"):
        # An error means that it is in use by now, so not ours any more.
        with suppress(sqlite3.Error), closing(connect(path, "rw")) as live:
            pragma(live, "schema_version")


def _inspect(path: Path, reader: sqlite3.Connection) -> Facts:
    if damage := find_damage(reader, deep=False):
        raise damaged(f"{DOING} failed: {shown(str(path))}", damage)
    return Facts(
        page_size=int(pragma(reader, "page_size")),
        pages=int(pragma(reader, "page_count")),
        user_version=int(pragma(reader, "user_version")),
        rows=count_rows(reader),
    )


def count_rows(reader: sqlite3.Connection) -> dict[str, int]:
    """The rows of each table, by name. SQLite counts the entries of the smallest tree that has them all: a few
    percent of what the check takes."""
    names = reader.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 AND substr(name, 1, 7) <> 'sqlite_' "
        "AND length(name) <= ? ORDER BY name LIMIT ?",
        (NAME_LENGTH, TABLES),
    )
    rows = {}
    for (name,) in names.fetchall():
        quoted = name.replace('"', '""')
        try:
            rows[name] = reader.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()[0]  # noqa: S608
        except sqlite3.OperationalError as error:
            if code_of(error) != sqlite3.SQLITE_ERROR:
                raise
            # Its definition needs a function that only the service has.
    return rows
