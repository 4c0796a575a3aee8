from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from conformance.places import Places
from holdfast.errors import CorruptBackup, HoldfastError, RestoreError
from holdfast.events import ignore
from holdfast.model import Entry
from holdfast.sources.sqlite import SqliteTarget
from sources.sqlite_files import dump, make, names, stage


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (b"x" * 8192, 8192),
        (b"", 0),
        (None, -1),
        (None, +1),
    ],
    ids=["no-database", "empty", "longer", "shorter"],
)
def test_what_is_not_one_sound_database_is_refused(
    tmp_path: Path, content: bytes | None, declared: int
) -> None:
    live = make(tmp_path / "live.db")
    before = dump(live)
    if content is None:
        content = make(tmp_path / "backup.db").read_bytes()
        declared += len(content)
    entry = Entry("database/main.db", "file", size=declared)
    target = SqliteTarget(live, timeout=1, create_parents=False)
    with pytest.raises(CorruptBackup, match=r"database/main\.db"):
        target.stage(iter([entry]), lambda _: iter([content]), Places(), ignore)
    assert dump(live) == before


def test_an_index_that_does_not_agree_with_its_table_is_refused(tmp_path: Path) -> None:
    backup = make(tmp_path / "backup.db")
    with closing(sqlite3.connect(backup, isolation_level=None)) as database:
        database.execute("PRAGMA writable_schema=ON")
        database.execute("DELETE FROM sqlite_schema WHERE name = 'item_text'")
        database.execute("PRAGMA writable_schema=RESET")
        database.execute("UPDATE item SET text = 'other' WHERE id = 5")
        database.execute("PRAGMA writable_schema=ON")
        database.execute(
            "INSERT INTO sqlite_schema VALUES ('index', 'item_text', 'item', 3, "
            "'CREATE INDEX item_text ON item (text)')"
        )
    with pytest.raises(CorruptBackup, match="damaged database"):
        stage(backup, make(tmp_path / "live.db"))


@pytest.mark.parametrize("kinds", [[], ["file", "file"], ["directory"]])
def test_other_than_one_file_is_refused(tmp_path: Path, kinds: list[str]) -> None:
    target = SqliteTarget(make(tmp_path / "live.db"), timeout=1, create_parents=False)
    entries = [Entry(f"database/{number}.db", kind) for number, kind in enumerate(kinds)]  # type: ignore[arg-type]
    with pytest.raises(CorruptBackup):
        target.stage(iter(entries), lambda _: iter([]), Places(), ignore)
    assert names(tmp_path) == ["live.db"]


def test_missing_directories_are_made_only_when_asked_for(tmp_path: Path) -> None:
    backup = make(tmp_path / "backup.db")
    live = tmp_path / "a/b/live.db"
    with pytest.raises(RestoreError) as caught:
        stage(backup, live)
    assert "--create-db" in caught.value.hint
    assert not live.parent.parent.exists()
    stage(backup, live, create_parents=True).apply()
    assert dump(live) == dump(backup)


def test_a_directory_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "live.db").mkdir()
    with pytest.raises(HoldfastError, match=r"live\.db is not a file"):
        stage(make(tmp_path / "backup.db"), tmp_path / "live.db")


def test_needs_room_for_what_is_staged_and_kept_in_an_existing_directory(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db")
    size = live.stat().st_size
    ((directory, needed),) = SqliteTarget(live, timeout=1, create_parents=False).needs(1_000_000).items()
    assert directory == tmp_path
    assert needed >= 1_000_000 + size
    absent = SqliteTarget(tmp_path / "a/b/live.db", timeout=1, create_parents=True).needs(1_000_000)
    assert list(absent) == [tmp_path]
    assert 2_000_000 <= absent[tmp_path] <= 3_000_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_owner_is_given_back_where_the_file_is_new(tmp_path: Path) -> None:
    backup = make(tmp_path / "backup.db")
    content = backup.read_bytes()
    entry = Entry("database/main.db", "file", size=len(content), mode=0o4640, uid=12345, gid=54321)
    target = SqliteTarget(tmp_path / "live.db", timeout=1, create_parents=False)
    (swap,) = target.stage(iter([entry]), lambda _: iter([content]), Places(), ignore)
    swap.apply()
    status = (tmp_path / "live.db").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 54321, 0o640)
