"""Connections to SQLite databases: opening, copying and checking them, and SQLite's refusals in our own words."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from holdfast.errors import (
    DatabaseBusy,
    DatabaseError,
    HoldfastError,
    NoSpace,
    SourceMissing,
    SourceUnreadable,
)
from holdfast.text import shown

STEP_BYTES = 16 * 1024 * 1024
"""Copied between two looks at what else there is to do."""
POLL_SECONDS = 0.001

DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_ROW_COMPLAINT = re.compile(r"(NULL value|CHECK constraint failed|(NUMERIC|TEXT|non-\w+) value) in ")
"""What the checks say of rows that break a rule of their table: data as the service left it, not damage."""
_MISSING_COLLATION = re.compile(r"no such collation sequence: (.+)", re.DOTALL)
_MISSING_FUNCTION = re.compile(r"(?:unknown|no such) function: (.+?)(?:\(\))?", re.DOTALL)
_COMPLAINTS = 100
_STAND_INS = 64


def connect(
    path: Path,
    mode: Literal["ro", "rw"],
    *,
    timeout: float = 0.0,
    immutable: bool = False,
    one_thread: bool = True,
) -> sqlite3.Connection:
    """Opens a database that exists: neither mode creates one. `timeout` is in seconds.

    `immutable` takes no locks and no notice of a log: only for a file that nobody writes to.
    `one_thread`: whether it is for the calling thread alone. https://www.sqlite.org/uri.html
    """
    location = f"file://{quote(os.fsencode(os.path.abspath(path)))}?mode={mode}"
    if immutable:
        location += "&immutable=1"
    return sqlite3.connect(
        location, uri=True, timeout=timeout, isolation_level=None, check_same_thread=one_thread
    )


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code: https://www.sqlite.org/rescode.html."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def pragma(connection: sqlite3.Connection, statement: str) -> str:
    """The one value that a PRAGMA answers with, as text."""
    row = connection.execute(f"PRAGMA {statement}").fetchone()
    return "" if row is None else str(row[0])


def pages_per_step(connection: sqlite3.Connection) -> int:
    return max(1, STEP_BYTES // int(pragma(connection, "page_size")))


def make_scratch(connection: sqlite3.Connection) -> None:
    """For a database that is thrown away when anything goes wrong: no journal beside it, no waiting for the disk."""
    for setting in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE"):
        pragma(connection, setting)


def give_up_when_busy(status: int) -> None:
    """For the progress of `Connection.backup`, which would else try for ever. A step that reports busy has
    waited for the connection's timeout."""
    if status & 0xFF in BUSY:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = status
        raise error


def begin_writing(database: sqlite3.Connection, timeout: float) -> None:
    """Begins a transaction with the write lock. Asks for it often: a busy writer lets go of it for an instant only,
    and SQLite's own waiting, which comes to sleep for a tenth of a second, would miss that again and again."""
    deadline = time.monotonic() + timeout
    patience = pragma(database, "busy_timeout")
    pragma(database, "busy_timeout=0")
    while True:
        try:
            database.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as error:
            if code_of(error) not in BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(POLL_SECONDS)
    pragma(database, f"busy_timeout={patience}")


def copy_over(
    source: sqlite3.Connection,
    target: sqlite3.Connection,
    pages: int,
    between: Callable[[], None] = lambda: None,
    *,
    patience: float = 0.0,
) -> None:
    """Makes one database what the other is, so many pages a step, and does something after each step but the last.

    A lock that others hold is asked for again and again, for `patience` seconds. Raises sqlite3.Error; the target
    is then as it was.
    """
    deadline = time.monotonic() + patience

    def progress(status: int, remaining: int, total: int) -> None:
        if time.monotonic() >= deadline:
            give_up_when_busy(status)
        if status == sqlite3.SQLITE_OK:
            between()

    source.backup(target, pages=pages, progress=progress, sleep=POLL_SECONDS)


def is_damaged(path: Path) -> bool:
    """Whether SQLite cannot even begin to read a database. A connection that may write would apply the log to such
    a file, or delete it; one that only reads leaves all as it is."""
    try:
        with closing(connect(path, "ro")) as database:
            pragma(database, "schema_version")
    except sqlite3.DatabaseError as error:
        return code_of(error) in DAMAGED
    return False


def find_damage(connection: sqlite3.Connection, *, deep: bool) -> str | None:
    """What is wrong with a database that nobody writes to; None when nothing is.

    Both depths read every page and catch whatever breaks the structure: page and cell layout, overflow chains,
    the free list, pages used twice or never, rows out of order. `deep` compares each index with its table as
    well, and takes three to four times as long. Neither sees a value that was altered within a sound page, for
    SQLite keeps no checksums: https://www.sqlite.org/pragma.html#pragma_integrity_check. Where the schema needs
    functions of the service's own, `deep` is not possible and the other is done.
    """
    for setting in ("trusted_schema=OFF", "cell_size_check=ON", "ignore_check_constraints=ON"):
        pragma(connection, setting)
    stood_in = False
    for _ in range(_STAND_INS):
        check = "integrity_check" if deep else "quick_check"
        try:
            found = [str(row[0]) for row in connection.execute(f"PRAGMA {check}({_COMPLAINTS})")]
        except sqlite3.OperationalError as error:
            if code_of(error) != sqlite3.SQLITE_ERROR:
                raise
            if not deep:
                _stand_in(connection, error)
                stood_in = True
            deep = False
        else:
            return next((complaint for complaint in found if _is_damage(complaint, stood_in)), None)
    return None


def _stand_in(connection: sqlite3.Connection, error: sqlite3.OperationalError) -> None:
    """Gives the schema a collation or function that only the service has: the structure does not depend on it."""
    if missing := _MISSING_COLLATION.fullmatch(str(error)):
        connection.create_collation(missing[1], lambda one, other: (one > other) - (one < other))
    elif missing := _MISSING_FUNCTION.fullmatch(str(error)):
        connection.create_function(missing[1], -1, lambda *_: None, deterministic=True)
    else:
        raise error


def _is_damage(complaint: str, stood_in: bool) -> bool:
    if complaint == "ok" or _ROW_COMPLAINT.match(complaint):
        return False
    return not (stood_in and complaint.startswith("row not in PRIMARY KEY order"))


@contextmanager
def explained_database(doing: str, path: Path, timeout: float) -> Iterator[None]:
    """Turns SQLite's refusals into ours. `doing`: ``Database backup``, ``Database restore``."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(f"{doing} failed: {shown(str(path))}", path, timeout, error) from error


def _explain(start: str, path: Path, timeout: float, error: sqlite3.Error) -> HoldfastError:
    code = code_of(error)
    if code in BUSY:
        return DatabaseBusy(f"{start} is locked by another process, for more than {timeout:g} seconds")
    if code == sqlite3.SQLITE_NOTADB:
        return DatabaseError(
            f"{start} is not a SQLite database, or it is encrypted",
            hint="Check the path. A database encrypted by SQLCipher or its like can be read by its service alone: "
            "let that export it, and back up the export.",
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return damaged(start, str(error))
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"{start}: the disk is full")
    if code == sqlite3.SQLITE_READONLY:
        return DatabaseError(f"{start} may not be written to", hint="Run as a user that may write to it.")
    if not os.path.lexists(path):
        return SourceMissing(f"{start} is not there", hint="Check the path in DATABASE_URL or holdfast.toml.")
    if not os.access(path, os.R_OK):
        return SourceUnreadable(f"{start} may not be read")
    return DatabaseError(
        f"{start}: {error}",
        hint=f"SQLite's own word ({getattr(error, 'sqlite_errorname', type(error).__name__)}). Check the file, its "
        "directory and their permissions.",
    )


def damaged(start: str, what: str) -> DatabaseError:
    """A database that is not sound. `start`: a message up to the name of the database."""
    first_line = next((line for line in what.splitlines() if line and not line.startswith("*** in")), what)
    return DatabaseError(
        f"{start} is damaged: {first_line}",
        hint="Restore it from a backup, or salvage what can be read: `sqlite3 old.db .recover | sqlite3 new.db`. "
        f"A schema that only a SQLite newer than {sqlite3.sqlite_version} knows looks the same.",
    )
