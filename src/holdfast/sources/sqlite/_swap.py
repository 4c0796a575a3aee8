"""Putting a restored SQLite database in place of the live one, and taking that back.

There are two roads. *Through*: SQLite's backup API writes the staged pages into the live database in one
transaction of SQLite's own, so that every open connection, in whatever process, sees the restored rows next. The
write lock is taken before the copy of the previous state is made, and is not let go until the swap is committed:
no write falls between the two. *As files*: where that is not possible (the live file is damaged, or a reader does
not let go of it) the live files are moved aside and the staged one is moved in; while that lasts writers are kept
out as well. Whoever has the old files open goes on with them, and must be restarted: `SqliteSwap.note` says so.

A foreign transaction that is not over by the deadline leaves no road: its journal would be found beside the new
file, and be rolled back into it (https://www.sqlite.org/howtocorrupt.html, section 4). That is DatabaseBusy, and
nothing was touched.

Which step was reached shows in the private place alone::

    0/copy.db    staged         1/copy.db  a whole copy of what was live, or
                                1/moved/   the live files themselves, or
                                1/absent   there was none
    1/applied    the way through was committed
    1/replacing  what was live is kept, and the staged file is on its way
    1/returning  a revert has the restored files in 0/undone/, and the kept ones are on their way

A revert ends by deleting what was kept, or by having moved it back.

The swap that takes this one back goes from ``1`` to ``2`` in the same manner.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

from holdfast.durable import sync_directory
from holdfast.errors import DatabaseBusy, DatabaseError, NothingToUndo, SourceMissing
from holdfast.sources.sqlite._connection import (
    BUSY,
    DAMAGED,
    begin_writing,
    code_of,
    connect,
    copy_over,
    explained_database,
    is_damaged,
    make_scratch,
    pages_per_step,
    pragma,
)
from holdfast.sources.sqlite._format import SIDE_FILES
from holdfast.sources.sqlite._snapshot import Snapshot, take_snapshot
from holdfast.text import shown
from holdfast.transaction import is_place_name, remove_place, restoring

DOING = "Database restore"

_ABSENT, _APPLIED, _REPLACING, _RETURNING = "absent", "applied", "replacing", "returning"
_HEADER_BYTES = 100
"""Of the first page; SQLite counts changes there, so copies of one state differ in it."""
_BLOCK_BYTES = 4096

Attributes = tuple[int, int, int]
"""Mode, user id, group id."""


class _NoWayThrough(Exception):
    """The live database cannot be written to in place. The message says why: "it is …"."""


class _State:
    """One state of the database, in a directory of its own in the private place."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.copy = directory / "copy.db"
        """Whole, in one file, used by nobody else."""
        self.moved = directory / "moved" / "database.db"
        """As it was, with what belongs to it beside it; perhaps still open in some process."""
        self.undone = directory / "undone" / "database.db"
        """`copy` or `moved` after it was live, on its way back here."""

    def make_anew(self) -> None:
        """Empties it of what an attempt that was reverted has left."""
        old = self.directory.with_suffix(".old")
        if self.directory.exists():
            self.directory.rename(old)
        if old.exists():
            shutil.rmtree(old)
        self.directory.mkdir(mode=0o700)
        sync_directory(self.directory.parent)

    @property
    def main(self) -> Path | None:
        """The file that can be moved to where the live one is."""
        return next((path for path in (self.copy, self.moved) if path.exists()), None)

    def has(self, mark: str) -> bool:
        return (self.directory / mark).exists()

    def mark(self, mark: str) -> None:
        """Durable when it returns."""
        os.close(os.open(self.directory / mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(self.directory)

    def keep(self, source: sqlite3.Connection, attributes: os.stat_result) -> None:
        """Makes `copy` from an open database. It exists only when it is whole and durable."""
        part = self.copy.with_suffix(".part")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with closing(connect(part, "rw")) as target:
                make_scratch(target)
                copy_over(source, target, pages_per_step(source))
            _take_on(part, (attributes.st_mode, attributes.st_uid, attributes.st_gid))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.rename(self.copy)
        sync_directory(self.directory)


class SqliteSwap:
    """A staged SQLite database for a live one. Implements `holdfast.transaction.Swap`.

    `place` is a private directory on the file system of `live`, with the staged database in ``0/copy.db``.
    `timeout` is in seconds: so long each lock that others hold is waited for. `attributes` are for a staged file
    that is moved in; None: it has them already.
    Raises DatabaseBusy, DatabaseError, RestoreError, NoSpace; whatever was raised, `revert` puts right.
    """

    kind: ClassVar[str] = "sqlite"

    def __init__(
        self, live: Path, place: Path, *, timeout: float, attributes: Attributes | None = None, step: int = 0
    ) -> None:
        self._live = live
        self._place = place
        self._timeout = timeout
        self._attributes = attributes
        self._step = step
        self._coming = _State(place / str(step))
        self._kept = _State(place / str(step + 1))
        self.note = ""
        """What a person should know of how it was done. Empty when open connections see the new state."""

    def to_journal(self) -> dict[str, Any]:
        return {
            "live": str(self._live),
            "place": str(self._place),
            "timeout": self._timeout,
            "attributes": list(self._attributes) if self._attributes else None,
            "step": self._step,
        }

    @classmethod
    def from_journal(cls, state: dict[str, Any]) -> SqliteSwap:
        """The inverse of `to_journal`. Raises KeyError, TypeError, ValueError."""
        live, place, step = Path(state["live"]), Path(state["place"]), int(state["step"])
        if not live.is_absolute() or place.parent != live.parent or not is_place_name(place.name) or step < 0:
            raise ValueError(f"{place} is not a private place beside {live}")
        attributes = None
        if state["attributes"] is not None:
            mode, uid, gid = map(int, state["attributes"])
            attributes = (mode, uid, gid)
        return cls(live, place, timeout=float(state["timeout"]), attributes=attributes, step=step)

    def apply(self) -> None:
        """See `Swap.apply`. The previous state is whole and durable before the first byte of it is replaced."""
        with self._explained():
            self._kept.make_anew()
            staged = self._staged_copy()
            if staged is not None and os.path.lexists(self._live):
                try:
                    self._write_through(staged, self._kept)
                except (_NoWayThrough, sqlite3.Error) as reason:
                    _unlink(self._kept.copy)  # SQLite has rolled back, so there is nothing to revert
                    if not isinstance(reason, _NoWayThrough):
                        raise
                    self._note(reason)
                else:
                    self._kept.mark(_APPLIED)
                    return
            with self._writers_kept_out() as at_rest:
                if not os.path.lexists(self._live):
                    self._kept.mark(_ABSENT)
                if self._attributes is not None:
                    _take_on(self._coming.copy, self._attributes)
                main = self._coming.main or self._coming.moved
                self._exchange(main, self._kept.moved, _REPLACING, at_rest=at_rest)

    def revert(self) -> None:
        """See `Swap.revert`. What others wrote after `apply` goes with the restored state."""
        kept, coming = self._kept, self._coming
        with self._explained():
            if kept.has(_REPLACING) and kept.moved.exists():
                if _same(self._live, kept.moved):
                    kept.moved.unlink()
                else:
                    self._put_back(kept.moved)
            elif kept.has(_REPLACING) and kept.has(_ABSENT):
                placed = coming.main is None and not kept.has(_RETURNING)
                if placed or _same(self._live, coming.undone):
                    self._put_back(kept.moved)
            elif kept.copy.exists():
                if kept.has(_RETURNING) or self._is_applied():
                    self._restore_copy()
                _unlink(kept.copy)
            if coming.main is None and coming.undone.exists():
                shutil.rmtree(coming.moved.parent, ignore_errors=True)
                os.rename(coming.undone.parent, coming.moved.parent)
            for state in (kept, coming):
                if state.directory.exists():
                    sync_directory(state.directory)

    def reversed(self) -> SqliteSwap:
        return SqliteSwap(self._live, self._place, timeout=self._timeout, step=self._step + 1)

    def settle(self) -> None:
        with self._explained():
            if self._coming.directory.exists():
                shutil.rmtree(self._coming.directory)

    def discard(self) -> None:
        with self._explained():
            remove_place(self._place)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        doing = f"{DOING} failed: cannot replace {shown(str(self._live))}"
        with restoring(doing), explained_database(DOING, self._live, self._timeout):
            yield

    def _note(self, reason: Exception) -> None:
        self.note = (
            f"{shown(str(self._live))} was replaced as a file, because {reason}: restart what has it open"
        )

    def _staged_copy(self) -> Path | None:
        """What is to come, as one whole file; None where that is no readable database, or none at all."""
        coming = self._coming
        if not coming.copy.exists() and coming.moved.exists() and not is_damaged(coming.moved):
            with closing(connect(coming.moved, "rw", timeout=self._timeout)) as moved:
                coming.keep(moved, os.stat(coming.moved))
        if coming.main is None and not coming.has(_ABSENT):
            raise NothingToUndo(f"nothing is kept that could take the place of {shown(str(self._live))}")
        return coming.copy if coming.copy.exists() else None

    # Through SQLite

    def _write_through(self, source: Path, kept: _State | None) -> None:
        """Makes the live database what `source` is, and `kept` a copy of what it was. Raises _NoWayThrough."""
        if is_damaged(self._live):
            raise _NoWayThrough("it is damaged")
        try:
            with (
                closing(connect(source, "ro", immutable=True)) as staged,
                closing(connect(self._live, "rw", timeout=self._timeout)) as live,
            ):
                pragma(live, "synchronous=EXTRA")
                if pragma(live, "journal_mode") == "wal":
                    self._write_to_log(staged, live, kept)
                else:
                    self._write_exclusively(staged, live, kept)
        except sqlite3.DatabaseError as error:
            if code_of(error) in DAMAGED:
                raise _NoWayThrough("it is damaged") from error
            if code_of(error) in BUSY:
                raise _NoWayThrough("another process does not let go of it") from error
            raise

    def _write_exclusively(
        self, staged: sqlite3.Connection, live: sqlite3.Connection, kept: _State | None
    ) -> None:
        """With a rollback journal: an exclusive lock outlasts the transaction that took it, until the connection
        is closed (https://www.sqlite.org/pragma.html#pragma_locking_mode)."""
        pragma(live, "locking_mode=EXCLUSIVE")
        begin_writing(live, self._timeout)
        live.execute("COMMIT")  # no writer is left; this waits for the readers
        live.execute("BEGIN EXCLUSIVE")
        live.execute("COMMIT")
        if pragma(live, "journal_mode") != "wal":
            pragma(live, "journal_mode=TRUNCATE")  # under such a lock the journal is not deleted
        if kept is not None:
            kept.keep(live, os.stat(self._live))
        copy_over(staged, live, pages_per_step(staged))
        _unlink(f"{self._live}-journal")  # it is empty, and ours as long as the lock is

    def _write_to_log(
        self, staged: sqlite3.Connection, live: sqlite3.Connection, kept: _State | None
    ) -> None:
        """In WAL mode: after its first step a backup holds the write lock, and has written nothing that a reader
        sees. One reader more makes the copy then."""
        pages = int(pragma(staged, "page_count"))
        if pragma(staged, "page_size") != pragma(live, "page_size"):
            raise _NoWayThrough("its pages are of another size")
        if pages < 2:
            raise _NoWayThrough("the backup has it empty")  # the first step would be the last
        with closing(connect(self._live, "ro", timeout=self._timeout)) as reader:

            def keep_once() -> None:
                nonlocal kept
                if kept is not None:
                    kept.keep(reader, os.stat(self._live))
                    kept = None

            pragma(live, "busy_timeout=0")
            copy_over(staged, live, min(pages - 1, pages_per_step(staged)), keep_once, patience=self._timeout)

    # As files

    def _restore_copy(self) -> None:
        if os.path.lexists(self._live) and not self._kept.has(_RETURNING):
            try:
                self._write_through(self._kept.copy, None)
            except _NoWayThrough as reason:
                self._note(reason)
            else:
                return
        self._put_back(self._kept.copy)

    def _put_back(self, main: Path) -> None:
        with self._writers_kept_out() as at_rest:
            self._exchange(main, self._coming.undone, _RETURNING, at_rest=at_rest)

    def _exchange(self, main: Path, aside: Path, mark: str, *, at_rest: bool) -> None:
        """Puts the files of the database `main` (which may be none) where the live ones are, and those to `aside`.

        `at_rest`: all of the live database is in its main file. Then there is a database at every moment. Else for
        an instant there is none, lest one be found beside a log that is not its own.
        """
        if not self._kept.has(mark) or (os.path.lexists(self._live) and not _same(self._live, aside)):
            aside.parent.mkdir(mode=0o700, exist_ok=True)
            for suffix in ("", *SIDE_FILES):
                _link(f"{self._live}{suffix}", f"{aside}{suffix}")
            sync_directory(aside.parent)
            sync_directory(aside.parent.parent)
            self._kept.mark(mark)
        # From here on nothing waits for the disk until all is in place.
        logs = [suffix for suffix in SIDE_FILES if os.path.lexists(f"{main}{suffix}")]
        if logs or not at_rest or not main.exists():
            _unlink(self._live)
            for suffix in SIDE_FILES:
                if _same(f"{self._live}{suffix}", f"{aside}{suffix}"):
                    os.unlink(f"{self._live}{suffix}")
            if main.exists() and os.path.lexists(self._live):
                raise DatabaseBusy(f"{DOING} failed: somebody made a new {shown(str(self._live))} meanwhile")
            for suffix in logs:
                _link(f"{main}{suffix}", f"{self._live}{suffix}")
        if main.exists():
            os.rename(main, self._live)
        for directory in (self._coming.directory, self._kept.directory, self._live.parent):
            sync_directory(directory)

    @contextmanager
    def _writers_kept_out(self) -> Iterator[bool]:
        """Holds the write lock of the live database, where it is one. Gives whether all of it is in the main file.
        Raises sqlite3.OperationalError when others do not let go of the lock."""
        if not os.path.lexists(self._live) or is_damaged(self._live):
            yield False
            return
        with closing(connect(self._live, "rw", timeout=self._timeout)) as live:
            begin_writing(live, self._timeout)
            yield pragma(live, "journal_mode") != "wal"

    # After a crash

    def _is_applied(self) -> bool:
        """Whether the live database is the restored one. Without a mark, its content tells: the process may have
        ended just before or just after SQLite's commit, and others may have written since to whichever it is."""
        if self._kept.has(_APPLIED):
            return True
        try:
            with take_snapshot(self._live, timeout=self._timeout) as snapshot:
                return _differences(snapshot, self._coming.copy) < _differences(snapshot, self._kept.copy)
        except DatabaseBusy:
            raise
        except (DatabaseError, SourceMissing):
            return True


def _link(path: str, to: str) -> None:
    """Gives a file a second name, or a missing one none; what had that name loses it."""
    _unlink(to)
    with suppress(FileNotFoundError):
        os.link(path, to)


def _unlink(path: str | Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _same(one: str | Path, other: str | Path) -> bool:
    """Whether both are there, and are the same file under two names."""
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False


def _take_on(path: Path, attributes: Attributes) -> None:
    mode, uid, gid = attributes
    if os.geteuid() == 0:
        os.chown(path, uid, gid)
    os.chmod(path, mode & 0o777)


def _differences(snapshot: Snapshot, copy: Path) -> int:
    """Blocks in which two copies of databases differ."""
    different = 0
    skipped = _HEADER_BYTES
    with copy.open("rb") as file:
        for piece in snapshot.pieces():
            other = file.read(len(piece))
            if piece[skipped:] != other[skipped:]:
                blocks = (range(0, len(piece), _BLOCK_BYTES), range(0, len(other), _BLOCK_BYTES))
                different += sum(
                    one is None
                    or two is None
                    or piece[max(one, skipped) : one + _BLOCK_BYTES]
                    != other[max(two, skipped) : two + _BLOCK_BYTES]
                    for one, two in zip_longest(*blocks)
                )
            skipped = 0
        rest = os.fstat(file.fileno()).st_size - file.tell()
    return different + -(-rest // _BLOCK_BYTES)
