from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast.errors import DatabaseBusy, DatabaseError, SourceMissing
from holdfast.events import ignore
from holdfast.model import Entry, is_unchanged
from holdfast.sources.base import Method
from holdfast.sources.sqlite import SqliteSource
from sources.sqlite_files import client, make, names


def long_after() -> datetime:
    return datetime(2100, 1, 1, tzinfo=UTC)


def source(path: Path, *, name: str = "main", root: Path | None = None, timeout: float = 5) -> SqliteSource:
    return SqliteSource(name, path, root or path.parent, timeout=timeout, clock=long_after)


def scanned(path: Path) -> Entry:
    (item,) = source(path).scan(ignore)
    return item.entry


def opened(path: Path) -> Entry:
    (item,) = source(path).scan(ignore)
    entry, content = item.open()
    assert content is not None
    assert content.stream is not None
    content.stream.close()
    return entry


def test_its_one_entry_is_the_main_file_under_a_name_of_its_own(tmp_path: Path) -> None:
    path = make(tmp_path / "some.sqlite3")
    path.chmod(0o604)
    entry, status = scanned(path), path.stat()
    assert entry == Entry(
        path="database/main.db",
        kind="file",
        size=status.st_size,
        mode=0o604,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
    )
    assert SqliteSource.method is Method.PHYSICAL_COPY
    assert not source(path).tolerates_change


def test_opened_it_has_the_size_of_the_snapshot(tmp_path: Path) -> None:
    path = make(tmp_path / "live.db", wal=True)
    with client(path) as other:
        other("PRAGMA wal_autocheckpoint=0")
        other("INSERT INTO item (text) SELECT text FROM item")
        before, after = scanned(path), opened(path)
        assert before.size == path.stat().st_size < after.size
        assert after._replace(size=before.size) == before


def test_a_write_that_is_only_in_the_log_is_a_change(tmp_path: Path) -> None:
    path = make(tmp_path / "live.db", wal=True)
    assert scanned(path).token == ""
    with client(path) as other:
        other("INSERT INTO ledger VALUES (1)")
        known = opened(path)
        assert known.token
        assert is_unchanged(known, scanned(path))
        other("INSERT INTO ledger VALUES (2)")
        assert not is_unchanged(known, scanned(path))
        os.truncate(f"{path}-wal", 0)
        assert scanned(path).token == ""
        assert not is_unchanged(known, scanned(path))


def test_a_journal_is_a_change(tmp_path: Path) -> None:
    path = make(tmp_path / "live.db")
    known = opened(path)
    assert is_unchanged(known, scanned(path))
    with client(path) as other:
        other("BEGIN IMMEDIATE")
        other("INSERT INTO ledger VALUES (1)")
        assert Path(f"{path}-journal").stat().st_size
        assert not is_unchanged(known, scanned(path))


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize(("age", "racy"), [(1, True), (3, False), (-5, True)])
def test_what_was_written_within_two_seconds_of_the_reading_is_racy(
    tmp_path: Path, suffix: str, age: int, racy: bool
) -> None:
    path = make(tmp_path / "live.db", wal=True)
    with client(path) as other:
        other("INSERT INTO ledger VALUES (1)")
        newest = max(Path(f"{path}{log}").stat().st_ctime for log in ("", "-wal"))
        changed = Path(f"{path}{suffix}")
        os.utime(changed, (newest + 100, newest + 100))
        moment = datetime.fromtimestamp(newest + 100, UTC) + timedelta(seconds=age)
        (item,) = SqliteSource("main", path, tmp_path, timeout=5, clock=lambda: moment).scan(ignore)
        assert item.entry.racy == racy


def test_record_says_where_it_was_and_which_moment(tmp_path: Path) -> None:
    path = make(tmp_path / "data/live.db", rows=42)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=7")
    read = source(path, root=tmp_path)
    (item,) = read.scan(ignore)
    record = read.record()
    assert (record.component, record.name, record.kind, record.roots, record.moment) == (
        "database",
        "main",
        "sqlite",
        ("files/data/live.db",),
        {},
    )
    _, content = item.open()
    assert content is not None
    assert content.stream is not None
    assert sum(map(len, content.stream)) == path.stat().st_size
    assert json.loads(json.dumps(asdict(read.record())))["moment"] == {
        "page_size": 4096,
        "pages": path.stat().st_size // 4096,
        "user_version": 7,
        "rows": {"account": 2, "item": 42, "ledger": 0},
    }


def test_record_of_a_database_outside_the_service_root(tmp_path: Path) -> None:
    path = make(tmp_path / "elsewhere/live.db")
    assert source(path, root=tmp_path / "service").record().roots == (f"absolute{path}",)


def test_a_link_is_followed_and_the_log_is_found_where_it_leads(tmp_path: Path) -> None:
    path = make(tmp_path / "data/live.db", wal=True)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with client(path) as other:
        other("INSERT INTO ledger VALUES (1)")
        assert scanned(link).token == scanned(path).token != ""
        assert opened(link).size == path.stat().st_size
    assert names(tmp_path) == ["data", "link.db"]


@pytest.mark.parametrize("broken", [False, True])
def test_a_missing_database_is_an_error_that_says_what_to_do(tmp_path: Path, broken: bool) -> None:
    path = tmp_path / "live.db"
    if broken:
        path.symlink_to(tmp_path / "nowhere.db")
    with pytest.raises(SourceMissing, match=r"^Database backup failed: .*live\.db is not there") as caught:
        scanned(path)
    assert "DATABASE_URL" in caught.value.hint


def test_what_is_not_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"^Database backup failed: .* is not a file"):
        scanned(tmp_path)
    os.mkfifo(tmp_path / "live.db")
    with pytest.raises(DatabaseError, match=r"^Database backup failed: .* is not a file"):
        scanned(tmp_path / "live.db")


def test_a_locked_database_can_be_scanned_and_not_read(tmp_path: Path) -> None:
    path = make(tmp_path / "live.db")
    with client(path) as other:
        other("BEGIN EXCLUSIVE")
        (item,) = source(path, timeout=0.1).scan(ignore)
        with pytest.raises(DatabaseBusy, match=r"^Database backup failed"):
            item.open()
        other("COMMIT")
        item.open()[1].stream.close()  # type: ignore[union-attr]
