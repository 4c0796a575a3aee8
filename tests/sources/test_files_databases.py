"""The files source: SQLite databases among the files."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DatabaseError
from holdfast.model import Entry, is_unchanged
from holdfast.sources.sqlite._snapshot import Snapshot
from sources.files_source import (
    content_of,
    files_source,
    item_at,
    open_descriptors,
    paths_of,
    read_all,
    scan,
    snapshot,
)

DATABASE = "files/models/vectors.bin"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "vectors.bin"


@pytest.fixture
def live(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that has written to the log, and not to the main file."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma wal_autocheckpoint = 0")
    connection.execute("create table t (x)")
    connection.execute("insert into t values ('in the log')")
    yield connection
    connection.close()


def listed(tmp_path: Path) -> Entry:
    return item_at(files_source(tmp_path), DATABASE).entry


def rows(content: bytes, tmp_path: Path) -> list[Any]:
    (tmp_path / "copy.db").write_bytes(content)
    with sqlite3.connect(tmp_path / "copy.db") as connection:
        found = connection.execute("select x from t").fetchall()
    connection.close()
    return found


def test_a_live_database_is_read_through_a_snapshot(tmp_path: Path, live: sqlite3.Connection) -> None:
    found = read_all(files_source(tmp_path))
    entry, content = found[DATABASE]
    assert list(found) == ["files/models", DATABASE]
    assert content is not None
    assert (entry.kind, entry.size) == ("file", len(content))
    assert rows(content, tmp_path) == [("in the log",)]


@pytest.mark.parametrize("rows_written", [1, 20_000])
def test_a_database_of_any_size_is_recognized_by_how_it_begins(
    tmp_path: Path, path: Path, rows_written: int
) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
        connection.executemany("insert into t values (?)", (("x" * 20,) for _ in range(rows_written)))
    connection.close()
    taken = []

    def noted(database: Path) -> Snapshot:
        taken.append(database)
        return snapshot(database)

    before = open_descriptors()
    item = item_at(files_source(tmp_path, snapshot=noted), DATABASE)
    entry, opened = item.open()
    assert opened is not None
    assert opened.size == entry.size == path.stat().st_size
    assert len(rows(content_of(opened), tmp_path)) == rows_written
    assert taken == [path]
    del item
    assert open_descriptors() <= before


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + bytes(495), b"SQLite format 4\0" + bytes(5000)])
def test_what_is_too_short_or_begins_otherwise_is_no_database(
    tmp_path: Path, path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    assert read_all(files_source(tmp_path))[DATABASE][1] == content


@pytest.mark.parametrize("begun", [False, True])
def test_closing_the_content_closes_the_snapshot(
    tmp_path: Path, live: sqlite3.Connection, begun: bool
) -> None:
    opened = item_at(files_source(tmp_path), DATABASE).open()[1]
    assert opened is not None
    assert opened.stream is not None
    if begun:
        next(opened.stream)
    held = open_descriptors()
    opened.stream.close()
    assert open_descriptors() == held - 2, "the copy, and the connection that checks it"


def test_an_error_of_the_snapshot_passes_on(tmp_path: Path, live: sqlite3.Connection) -> None:
    def refuse(database: Path) -> Snapshot:
        raise DatabaseError(f"{database} is broken")

    with pytest.raises(DatabaseError, match=r"vectors\.bin is broken"):
        item_at(files_source(tmp_path, snapshot=refuse), DATABASE).open()


def test_side_files_of_a_database_are_left_out_and_those_of_anything_else_are_kept(
    tmp_path: Path, live: sqlite3.Connection, path: Path
) -> None:
    path.with_name("vectors.bin-journal").write_bytes(b"x")
    for name in (
        "notes",
        "notes-wal",
        "notes-shm",
        "notes-journal",
        "alone-wal",
        "-wal",
        "vectors.bin-walnut",
    ):
        path.with_name(name).write_bytes(b"x")
    path.with_name("directory").mkdir()
    path.with_name("directory-wal").touch()
    path.with_name("linked").symlink_to(path.name)
    path.with_name("linked-wal").touch()
    kept = [
        "-wal",
        "alone-wal",
        "directory",
        "directory-wal",
        "linked",
        "linked-wal",
        "notes",
        "notes-journal",
        "notes-shm",
        "notes-wal",
        "vectors.bin",
        "vectors.bin-walnut",
    ]
    assert paths_of(files_source(tmp_path)) == ["files/models", *(f"files/models/{name}" for name in kept)]


def test_side_files_are_left_out_among_roots_too(tmp_path: Path, live: sqlite3.Connection) -> None:
    found = scan(files_source(tmp_path, ["models/*"]))
    assert [entry.path for entry in found] == [DATABASE]
    assert found[0].token


def test_side_files_of_an_excluded_database_are_left_out_as_well(
    tmp_path: Path, live: sqlite3.Connection
) -> None:
    assert paths_of(files_source(tmp_path, exclude=["vectors.bin"])) == ["files/models"]


def test_the_token_says_what_is_beside_the_database(
    tmp_path: Path, live: sqlite3.Connection, path: Path
) -> None:
    log = path.with_name("vectors.bin-wal").stat()
    assert listed(tmp_path).token == (
        f"wal:{log.st_size}:{log.st_mtime_ns}:{log.st_ctime_ns}:{log.st_ino};size:{path.stat().st_size}"
    )


def test_the_token_is_empty_where_no_log_holds_anything(tmp_path: Path, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
    connection.close()
    path.with_name("vectors.bin-wal").touch()
    path.with_name("vectors.bin-shm").write_bytes(b"x")
    path.with_name("notes").write_bytes(b"x")
    path.with_name("notes-wal").write_bytes(b"x")
    found = {entry.path: entry.token for entry in scan(files_source(tmp_path))}
    assert found[DATABASE] == found["files/models/notes"] == ""


def test_a_rollback_journal_counts(tmp_path: Path, path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("create table t (x)")
    connection.execute("pragma cache_size = 1")
    connection.execute("begin")
    connection.executemany("insert into t values (?)", (("x" * 500,) for _ in range(500)))
    token = listed(tmp_path).token
    connection.execute("rollback")
    connection.close()
    assert token.startswith("journal:")


def test_a_database_is_unchanged_until_its_log_is_written(
    tmp_path: Path, live: sqlite3.Connection, path: Path
) -> None:
    known = item_at(files_source(tmp_path), DATABASE).open()[0]
    assert known.token
    assert known.size != path.stat().st_size
    assert is_unchanged(known, listed(tmp_path))
    os.utime(path.with_name("vectors.bin-shm"))
    assert is_unchanged(known, listed(tmp_path))
    live.execute("insert into t values ('more')")
    assert not is_unchanged(known, listed(tmp_path))


def test_what_is_written_while_a_snapshot_is_taken_is_a_change(
    tmp_path: Path, live: sqlite3.Connection
) -> None:
    def with_a_write(database: Path) -> Snapshot:
        taken = snapshot(database)
        live.execute("insert into t values ('too late')")
        return taken

    entry, content = item_at(files_source(tmp_path, snapshot=with_a_write), DATABASE).open()
    assert rows(content_of(content), tmp_path) == [("in the log",)]
    assert not is_unchanged(entry, listed(tmp_path))


def test_a_database_without_a_log_is_unchanged_until_it_is_written(tmp_path: Path, path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("create table t (x)")
    known = item_at(files_source(tmp_path), DATABASE).open()[0]
    assert is_unchanged(known, listed(tmp_path))
    connection.execute("insert into t values (1)")
    connection.close()
    assert not is_unchanged(known, listed(tmp_path))


def test_a_log_that_was_just_written_makes_the_database_racy(
    tmp_path: Path, live: sqlite3.Connection, path: Path
) -> None:
    written = max(path.stat().st_mtime, path.stat().st_ctime) + 3600
    os.utime(path.with_name("vectors.bin-wal"), (written, written))

    def opened_after(seconds: float) -> Entry:
        moment = datetime.fromtimestamp(written + seconds, UTC)
        return item_at(files_source(tmp_path, clock=lambda: moment), DATABASE).open()[0]

    assert opened_after(1).racy
    assert not opened_after(3).racy


TRY_TO_WRITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
connection.execute("begin immediate")
"""


def may_write(path: Path) -> bool:
    """Whether another process gets the write lock."""
    done = subprocess.run(
        [sys.executable, "-c", TRY_TO_WRITE, path], capture_output=True, check=False, text=True
    )
    assert done.returncode == 0 or "locked" in done.stderr
    return done.returncode == 0


def test_locks_that_this_process_holds_on_a_database_outlive_its_backup(tmp_path: Path, path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("create table t (x)")
    path.with_name("vectors.bin-shm").write_bytes(b"x")  # has the database looked at for its sake
    connection.execute("begin immediate")
    kept = set()
    for _ in range(3):
        read_all(files_source(tmp_path))
        assert not may_write(path)
        kept.add(open_descriptors())
    connection.execute("rollback")
    connection.close()
    read_all(files_source(tmp_path))
    assert may_write(path)
    assert len(kept) == 1
    assert open_descriptors() < kept.pop()
