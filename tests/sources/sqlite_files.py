"""What the tests of SQLite share: databases, other processes that use them, and a swap ready to be applied."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from conformance.places import Places
from holdfast.events import ignore
from holdfast.model import Entry
from holdfast.sources.sqlite import SqliteSwap, SqliteTarget

PLACE = ".holdfast-0123456789abcdef-"

_CLIENT = """
import json, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=float(sys.argv[2]), isolation_level=None)
for line in sys.stdin:
    try:
        answer = database.execute(json.loads(line)).fetchall()
    except sqlite3.Error as error:
        answer = f"{error.sqlite_errorname}: {error}"
    print(json.dumps(answer), flush=True)
"""

_WRITER = """
import os, sqlite3, sys, time
path, first, log = sys.argv[1], int(sys.argv[2]), os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
database = None
while True:
    try:
        if database is None:
            database = sqlite3.connect(path, timeout=0.05, isolation_level=None)
            database.execute("PRAGMA synchronous=OFF")
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE account SET amount = amount - 1 WHERE id = 1")
        database.execute("INSERT INTO ledger VALUES (?)", (first,))
        database.execute("UPDATE account SET amount = amount + 1 WHERE id = 2")
        database.execute("COMMIT")
    except sqlite3.Error as error:
        if database is not None:
            database.close()
            database = None
    else:
        os.write(log, f"{first}\\n".encode())
        first += 1
    time.sleep(0.0005)
"""


def make(path: Path, rows: int = 200, *, wal: bool = False, page_size: int = 4096, text: str = "old") -> Path:
    """A database with `rows` rows of some hundred bytes and two accounts with 1000 in all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA page_size={page_size}")
        database.execute(f"PRAGMA journal_mode={'wal' if wal else 'delete'}").fetchall()
        database.execute("PRAGMA synchronous=OFF")
        database.execute("BEGIN")
        database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        database.execute("CREATE INDEX item_text ON item (text)")
        database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL)")
        database.execute("CREATE TABLE ledger (number INTEGER PRIMARY KEY)")
        database.execute("INSERT INTO account VALUES (1, 1000), (2, 0)")
        database.executemany(
            "INSERT INTO item (text) VALUES (?)",
            ((f"{text} {number} " + "x" * 150,) for number in range(rows)),
        )
        database.execute("COMMIT")
    return path


def dump(path: Path) -> list[str]:
    """All that is in a database, which must be sound and must exist."""
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=10)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return list(database.iterdump())


def one(path: Path, statement: str) -> Any:
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=10)) as database:
        return database.execute(statement).fetchone()[0]


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


class Client:
    """Another process with a connection of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, statement: str) -> Any:
        """The rows, as lists; or SQLite's error, as text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(statement) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def client(path: Path, *, timeout: float = 0.1) -> Iterator[Client]:
    with subprocess.Popen(
        [sys.executable, "-c", _CLIENT, str(path), str(timeout)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


@contextmanager
def writer(path: Path, log: Path, *, first: int = 1) -> Iterator[None]:
    """Another process that moves money and counts up in the ledger, without end. What it has committed is in `log`,
    which has something in it when the block begins."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(first), str(log)]) as process:
        try:
            wait_for_more(log)
            yield
        finally:
            process.kill()


def committed(log: Path) -> set[int]:
    return {int(line) for line in log.read_text().splitlines()} if log.exists() else set()


def wait_for_more(log: Path) -> None:
    """Until a writer has committed ten times more."""
    wanted = len(committed(log)) + 10
    deadline = time.monotonic() + 30
    while len(committed(log)) < wanted:
        assert time.monotonic() < deadline, "the writer does not come through"
        time.sleep(0.005)


def stage(
    backup: Path, live: Path, *, timeout: float = 10.0, mode: int = 0o640, create_parents: bool = False
) -> SqliteSwap:
    """A swap that puts the database in the file `backup` in place of `live`."""
    content = backup.read_bytes()
    entry = Entry("database/main.db", "file", size=len(content), mode=mode, uid=os.getuid(), gid=os.getgid())
    target = SqliteTarget(live, timeout=timeout, create_parents=create_parents)
    (swap,) = target.stage(iter([entry]), lambda _: iter([content]), Places(), ignore)
    assert isinstance(swap, SqliteSwap)
    return swap


def revive(swap: SqliteSwap) -> SqliteSwap:
    """The swap as a process to come has it from the journal."""
    return SqliteSwap.from_journal(json.loads(json.dumps(swap.to_journal())))
