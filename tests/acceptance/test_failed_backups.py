"""A backup that fails is recorded, leaves no archive, and is never taken for a good one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from acceptance.running import holdfast
from acceptance.service_state import ARCHIVE, DATABASE, MODEL, BackUpAt, damage
from app.utils.backup import backup_manager
from holdfast.errors import (
    BackupNotFound,
    CorruptBackup,
    DatabaseError,
    ParentMissing,
    SourceError,
    SourceMissing,
)


def history(state_home: Path) -> list[dict[str, Any]]:
    [path] = state_home.glob("holdfast/repositories/*/history.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def failed(plain: Path) -> str:
    """The id of a backup that has failed, because the database is none."""
    DATABASE.write_bytes(b"this is no database" * 1000)
    with pytest.raises(DatabaseError, match=r"^Database backup failed: .*iit_ml_service\.db"):
        backup_manager.create_full_backup()
    [path] = Path("backups/full").iterdir()
    return path.name.removesuffix(".metadata.json")


def test_a_failed_backup_is_recorded_and_leaves_no_archive(failed: str, state_home: Path) -> None:
    metadata = json.loads(Path("backups/full", f"{failed}.metadata.json").read_text())
    assert metadata["status"] == "failed"
    assert metadata["error_message"].startswith("Database backup failed")
    assert (metadata["backup_id"], metadata["size_bytes"], metadata["checksum"]) == (failed, 0, "")
    assert not [
        path for path in Path("backups").rglob("*") if path.name.endswith((".gz", ".enc", ".partial"))
    ]
    [record] = history(state_home)
    assert (record["verb"], record["backup_id"], record["status"]) == ("backup", failed, "failed")
    assert record["message"] == metadata["error_message"]


def test_a_failed_backup_is_neither_listed_nor_restored_nor_rested_on(failed: str) -> None:
    assert backup_manager.list_backups() == []
    assert backup_manager.verify_backup_integrity(failed) is False
    with pytest.raises(BackupNotFound, match="failed"):
        backup_manager.restore_from_backup(failed)
    with pytest.raises(ParentMissing):
        backup_manager.create_incremental_backup()
    with pytest.raises(BackupNotFound):
        backup_manager.create_incremental_backup(since_backup_id=failed)
    [known] = holdfast("list", "--all", "--json").json
    assert (known["backup_id"], known["status"]) == (failed, "failed")
    assert holdfast("restore", "latest", "--confirm").status == 10


def test_the_last_good_backup_stays_the_latest(plain: Path, back_up_at: BackUpAt) -> None:
    good = back_up_at("2024-01-01T02:00:00")
    damage(DATABASE)
    DATABASE.write_bytes(b"\0" * 100 + DATABASE.read_bytes()[100:])
    with pytest.raises(DatabaseError):
        backup_manager.create_full_backup()
    assert backup_manager.restore_from_backup("latest") is True
    assert backup_manager.create_incremental_backup().parent == good.backup_id


def test_a_database_that_is_configured_and_missing_is_an_error_and_is_not_created(
    plain: Path, state_home: Path
) -> None:
    for path in Path().glob(f"{DATABASE}*"):
        path.unlink()
    with pytest.raises(SourceMissing, match=r"^Database backup failed"):
        backup_manager.create_full_backup()
    assert not DATABASE.exists()
    assert not list(Path("backups").rglob("*.tar.gz"))
    [record] = history(state_home)
    assert record["status"] == "failed"
    assert record["message"].startswith("Database backup failed")
    # It failed before it had anything to store, and is recorded beside the others all the same.
    written = json.loads(Path(f"backups/full/{record['backup_id']}.metadata.json").read_text())
    assert (written["status"], written["error_message"]) == ("failed", record["message"])
    assert backup_manager.list_backups() == []


def test_a_component_that_the_parent_has_and_that_is_gone_is_an_error(
    plain: Path, back_up_at: BackUpAt
) -> None:
    back_up_at("2024-01-01T02:00:00")
    shutil.rmtree("models")
    with pytest.raises(SourceError, match="models"):
        backup_manager.create_incremental_backup()
    with pytest.raises(SourceError, match="models"):
        backup_manager.create_full_backup(components=["models"])
    assert len(backup_manager.list_backups()) == 1


def test_an_archive_cut_short_is_found_out(plain: Path, back_up_at: BackUpAt) -> None:
    metadata = back_up_at("2024-01-01T02:00:00")
    content = ARCHIVE.read_bytes()
    ARCHIVE.write_bytes(content[:-1])
    assert backup_manager.verify_backup_integrity(metadata.backup_id) is False
    MODEL.write_bytes(b"of now")
    with pytest.raises(CorruptBackup):
        backup_manager.restore_from_backup(metadata.backup_id)
    assert MODEL.read_bytes() == b"of now"
