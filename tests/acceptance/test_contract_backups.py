"""The contract on making and listing backups: its samples run as printed."""

from __future__ import annotations

import inspect
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from acceptance.contract import FULL_ID, sample, table
from acceptance.service_state import BackUpAt, predict, state, work_on
from app.utils.backup import BackupMetadata, backup_manager
from holdfast.errors import BackupNotFound, ParentMissing, UsageError

EVERYTHING = ["database", "models", "config"]


def execute(text: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs a sample of the contract; returns the names that it leaves."""
    names = {"backup_manager": backup_manager} if names is None else names
    exec(text, names)  # noqa: S102 - the contract's own words, which lie beside this file
    return names


def archive(metadata: BackupMetadata) -> Path:
    return Path("backups") / metadata.type / f"{metadata.backup_id}.tar.gz"


def test_the_sample_of_a_full_backup(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = execute(sample("Full Backup", "python"), {})["metadata"]
    assert metadata.type == "full"
    assert list(metadata.components) == EVERYTHING
    said = f"Backup ID: {metadata.backup_id}\nSize: {archive(metadata).stat().st_size} bytes\n"
    assert capsys.readouterr().out == said


def test_the_sample_of_an_incremental_backup(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = execute(sample("Full Backup", "python"), {})
    full = names["metadata"]
    work_on()
    capsys.readouterr()
    metadata = execute(sample("Incremental Backup", "python"), names)["metadata"]
    assert (metadata.type, metadata.parent) == ("incremental", full.backup_id)
    assert re.fullmatch(r"Incremental backup: incr_\d{8}_\d{6}\n", capsys.readouterr().out)
    assert archive(metadata).is_file()


def test_the_samples_of_full_backups_of_all_and_of_some_components(plain: Path) -> None:
    execute(sample("Create Full Backup", "python"), {})
    some, every = backup_manager.list_backups()
    assert list(every.components) == EVERYTHING
    assert list(some.components) == ["database", "config"]
    assert {some.type, every.type} == {"full"}


def test_the_samples_of_incrementals_since_the_last_full_and_since_a_given_one(
    plain: Path, back_up_at: BackUpAt
) -> None:
    assert back_up_at("2024-01-01T02:00:00").backup_id == FULL_ID
    last = back_up_at("2024-01-02T02:00:00")
    execute(sample("Create Incremental Backup", "python"))
    since_given, since_last = backup_manager.list_backups("incremental")
    assert (since_last.parent, since_given.parent) == (last.backup_id, FULL_ID)


def test_an_incremental_needs_a_full_backup_that_is_there(plain: Path) -> None:
    with pytest.raises(ParentMissing, match="no full backup"):
        backup_manager.create_incremental_backup()
    with pytest.raises(BackupNotFound, match=FULL_ID):
        backup_manager.create_incremental_backup(since_backup_id=FULL_ID)
    assert backup_manager.list_backups() == []


def test_an_incremental_after_a_few_new_rows_is_a_small_part_of_the_full_backup(plain: Path) -> None:
    for count in (400, 800, 1600, 3200, 6400):
        predict(count)
    full = backup_manager.create_full_backup()
    predict(1)
    incremental = backup_manager.create_incremental_backup()
    assert incremental.size_bytes < full.size_bytes / 4
    assert incremental.source_bytes >= full.source_bytes


def test_the_sample_of_listing(plain: Path, back_up_at: BackUpAt, capsys: pytest.CaptureFixture[str]) -> None:
    made = [
        back_up_at("2024-01-01T02:00:00"),
        back_up_at("2024-01-02T02:00:00", ["config"]),
        back_up_at("2024-01-01T08:00:00", incremental=True),
        back_up_at("2024-01-01T09:00:00"),
    ]
    names = execute(sample("List Available Backups", "python"))
    newest_first = [made[1], made[3], made[2], made[0]]
    assert names["all_backups"] == newest_first
    assert names["full_backups"] == [made[3], made[0]]
    assert names["incr_backups"] == [made[2]]
    assert capsys.readouterr().out.splitlines() == [
        f"{known.backup_id} - {known.timestamp} - {known.size_bytes} bytes" for known in newest_first
    ]


def test_every_type_can_be_listed_and_no_other(plain: Path, back_up_at: BackUpAt) -> None:
    config = back_up_at("2024-01-01T02:00:00", ["config"])
    models = back_up_at("2024-01-01T02:00:00", ["models"])
    assert backup_manager.list_backups("config") == [config]
    assert backup_manager.list_backups("models") == [models]
    assert backup_manager.list_backups("full") == []
    with pytest.raises(UsageError, match="weekly"):
        backup_manager.list_backups("weekly")


def test_the_directory_structure(plain: Path, back_up_at: BackUpAt) -> None:
    back_up_at("2024-01-01T02:00:00")
    back_up_at("2024-01-01T08:00:00", incremental=True)
    back_up_at("2024-01-01T12:00:00", incremental=True)
    back_up_at("2024-01-02T02:00:00")
    back_up_at("2024-01-02T03:00:00", ["config"])
    back_up_at("2024-01-02T04:00:00", ["models"])
    printed = sample("Directory Structure", "")
    archives = re.findall(r"\w+\.tar\.gz", printed)
    assert len(archives) == 4
    for name in [*archives, *re.findall(r"\w+\.metadata\.json", printed)]:
        assert Path("backups", "full" if name.startswith("full") else "incremental", name).is_file()
    directories = set(re.findall(r"── (\w+)/", printed))
    assert directories == {path.name for path in Path("backups").iterdir() if path.is_dir()}
    assert sorted(path.name for path in Path("backups/config").iterdir()) == [
        "config_20240102_030000.metadata.json",
        "config_20240102_030000.tar.gz",
    ]
    assert sorted(path.name for path in Path("backups/models").iterdir()) == [
        "models_20240102_040000.metadata.json",
        "models_20240102_040000.tar.gz",
    ]
    assert not [path for path in Path("backups/temp").iterdir() if path.stat().st_size]


def test_backups_and_their_metadata_are_for_the_owner_alone(plain: Path, back_up_at: BackUpAt) -> None:
    back_up_at("2024-01-01T02:00:00")
    for path in [Path("backups"), *Path("backups").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_the_metadata_format(plain: Path, back_up_at: BackUpAt) -> None:
    printed = json.loads(sample("Backup Metadata Format", "json"))
    back_up_at("2024-01-01T02:00:00", EVERYTHING)
    back_up_at("2024-01-01T08:00:00", incremental=True)
    text = Path(f"backups/full/{FULL_ID}.metadata.json").read_text()
    written = json.loads(text)
    assert list(written)[:8] == list(printed)
    assert text.startswith(
        '{\n  "backup_id": "full_20240101_020000",\n  "timestamp": "2024-01-01T02:00:00",\n'
    )
    for name, value in printed.items():
        assert type(written[name]) is type(value), name
        if name not in ("size_bytes", "checksum"):
            assert written[name] == value, name
    assert re.fullmatch("[0-9a-f]{64}", written["checksum"])
    incremental = json.loads(Path("backups/incremental/incr_20240101_080000.metadata.json").read_text())
    assert list(incremental)[:8] == list(printed)
    assert (incremental["type"], incremental["status"]) == ("incremental", "success")


def test_metadata_objects_say_what_their_files_say(plain: Path, back_up_at: BackUpAt) -> None:
    metadata = back_up_at("2024-01-01T02:00:00")
    [listed] = backup_manager.list_backups()
    written = json.loads(Path(f"backups/full/{FULL_ID}.metadata.json").read_text())
    for known in (metadata, listed):
        for name in list(written)[:8]:
            value = getattr(known, name)
            assert (list(value) if isinstance(value, tuple) else value) == written[name]
    assert isinstance(metadata.timestamp, str)


def test_ids_are_of_the_moment_in_utc(plain: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    metadata = backup_manager.create_full_backup(["config"])
    after = datetime.now(UTC)
    moment = datetime.strptime(metadata.backup_id, "config_%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    assert before <= moment <= after
    assert metadata.timestamp == moment.strftime("%Y-%m-%dT%H:%M:%S")


def test_two_backups_of_one_second_have_two_ids(plain: Path, back_up_at: BackUpAt) -> None:
    ids = [back_up_at("2024-01-01T02:00:00", ["config"]).backup_id for _ in range(3)]
    assert ids == ["config_20240101_020000", "config_20240101_020001", "config_20240101_020002"]


@pytest.mark.parametrize("components", [["databse"], [], "database"])
def test_components_that_are_none_are_refused(plain: Path, components: Any) -> None:
    with pytest.raises(UsageError, match="component"):
        backup_manager.create_full_backup(components=components)
    assert backup_manager.list_backups() == []


def test_a_backup_changes_nothing_in_the_service(plain: Path) -> None:
    before, names = state(), sorted(path.name for path in plain.iterdir())
    backup_manager.create_full_backup(["database", "models", "config", "logs"])
    assert state() == before
    assert sorted(path.name for path in plain.iterdir()) == sorted([*names, "backups"])


def test_the_reference_of_the_manager() -> None:
    for signature, _ in table("BackupManager"):
        name, _, parameters = signature.rstrip(")").partition("(")
        known = inspect.signature(getattr(backup_manager, name))
        positional = [
            parameter.name
            for parameter in known.parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        assert positional == [word.strip() for word in parameters.split(",") if word], signature
