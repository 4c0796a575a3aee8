"""What differs between two backups, of whichever format."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.errors import BackupNotFound
from holdfast.jobs.diff import Difference, RowDifference, diff
from installed import Service


@pytest.fixture(params=["archive", "dedup"])
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Service:
    return Service.make(tmp_path, BACKUP_FORMAT=request.param)


def told(service: Service, one: str, other: str) -> list[tuple[str, ...]]:
    found = []
    for item in diff(service.installation(), one, other):
        if isinstance(item, RowDifference):
            found.append(("rows", item.table, str(item.before), str(item.after)))
        else:
            assert isinstance(item, Difference)
            found.append((item.change, item.path))
    return found


def test_a_backup_does_not_differ_from_itself(service: Service) -> None:
    full = service.back_up()
    assert told(service, full.backup_id, "latest") == []


@pytest.mark.parametrize("incremental", [False, True])
def test_what_was_added_removed_and_changed_is_told_in_order(service: Service, incremental: bool) -> None:
    full = service.back_up()
    models = service.root / "models"
    (models / "a.bin").write_bytes(b"retrained")
    (models / "d/x").unlink()
    (models / "new").write_bytes(b"new")
    (service.root / ".env").chmod(0o600 if (service.root / ".env").stat().st_mode & 0o077 else 0o640)
    with closing(sqlite3.connect(service.root / "service.db")) as database:
        database.execute("DELETE FROM sample WHERE id < 11")
        database.execute("CREATE TABLE other (id INTEGER)")
        database.commit()
    second = service.back_up(incremental=incremental)
    assert told(service, full.backup_id, second.backup_id) == [
        ("rows", "other", "None", "0"),
        ("rows", "sample", "500", "490"),
        ("changed", "database/main.db"),
        ("changed", "files/models/a.bin"),
        ("removed", "files/models/d/x"),
        ("added", "files/models/new"),
        ("attributes", "files/.env"),
    ]
    assert ("added", "files/models/d/x") in told(service, second.backup_id, full.backup_id)


def test_a_component_that_only_one_holds_is_added_or_removed(service: Service) -> None:
    full = service.back_up(components=["models", "config"])
    models = service.back_up(components=["models"])
    assert told(service, models.backup_id, full.backup_id) == [("added", "files/.env")]
    assert told(service, full.backup_id, models.backup_id) == [("removed", "files/.env")]


def test_a_file_that_was_only_touched_has_other_attributes(service: Service) -> None:
    full = service.back_up()
    os.utime(service.root / "models/a.bin", (1, 1))
    second = service.back_up()
    assert told(service, full.backup_id, second.backup_id) == [("attributes", "files/models/a.bin")]


def test_an_unknown_backup_is_an_error(service: Service) -> None:
    service.back_up()
    with pytest.raises(BackupNotFound):
        told(service, "latest", "full_20200101_000000")
