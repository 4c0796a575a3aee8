"""The contract on settings: each variable and each field of `BackupConfig` changes what happens."""

from __future__ import annotations

import dataclasses
import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from acceptance.contract import commands, sample, table
from acceptance.running import shell
from acceptance.service_state import ARCHIVE, BackUpAt, tree
from app.utils.backup import BackupConfig, BackupManager, backup_manager
from holdfast.config import load_settings
from holdfast.crypto import X25519Identity
from holdfast.errors import ConfigError, HoldfastError, KeyMissing, SizeLimitExceeded


def days_ago(days: int) -> str:
    """A moment so long before now, as `back_up_at` takes it."""
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S")


def test_the_defaults_of_the_variables(project: Path) -> None:
    settings = load_settings()
    defaults = {name: value for name, _, value in table("Environment Variables")}
    assert settings.backup_dir == (project / defaults["BACKUP_DIR"]).resolve()
    assert settings.retention_days == int(defaults["BACKUP_RETENTION_DAYS"])
    assert settings.compression_level == int(defaults["BACKUP_COMPRESSION_LEVEL"])
    assert settings.max_bytes == float(defaults["BACKUP_MAX_SIZE_GB"]) * 10**9
    assert settings.encrypt is (defaults["BACKUP_ENCRYPT"] == "true")


@pytest.mark.parametrize("where", ["elsewhere/deep", "/absolute"])
def test_backup_dir_says_where(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    directory = f"{tmp_path}{where}" if where.startswith("/") else where
    monkeypatch.setenv("BACKUP_DIR", directory)
    metadata = backup_manager.create_full_backup()
    assert Path(directory, "full", f"{metadata.backup_id}.tar.gz").is_file()
    assert not Path("backups").exists()
    assert backup_manager.list_backups() == [metadata]


def test_retention_days_say_what_cleaning_up_deletes(plain: Path, back_up_at: BackUpAt) -> None:
    old = back_up_at(days_ago(10))
    new = back_up_at(days_ago(1))
    _, clean_up, shorter = commands("Disk Space Issues")
    done = shell(f"df -h\n{clean_up}\n{shorter}\n{clean_up}")
    assert done.status == 0, done.err
    assert done.out.splitlines()[-2:] == ["0", "1"]
    assert backup_manager.list_backups() == [new]
    assert not list(Path("backups").rglob(f"{old.backup_id}*"))


def test_cleaning_up_never_deletes_the_last_good_backup_nor_what_a_kept_one_rests_on(
    plain: Path, back_up_at: BackUpAt
) -> None:
    lonely = back_up_at(days_ago(90), ["config"])
    full = back_up_at(days_ago(50))
    incremental = back_up_at(days_ago(1), incremental=True)
    assert backup_manager.cleanup_old_backups() == 0
    assert backup_manager.list_backups() == [incremental, full, lonely]


def test_compression_level_zero_stores_and_nine_squeezes(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for level in ("0", "1", "9"):
        monkeypatch.setenv("BACKUP_COMPRESSION_LEVEL", level)
        metadata = backup_manager.create_full_backup()
        sizes[level] = metadata.size_bytes
        with gzip.open(Path("backups/full", f"{metadata.backup_id}.tar.gz")) as file:
            assert len(file.read()) > metadata.source_bytes
    assert sizes["0"] > metadata.source_bytes
    assert sizes["9"] < sizes["1"] < sizes["0"] * 0.7


def test_max_size_stops_a_backup_and_leaves_nothing_behind(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_MAX_SIZE_GB", "0.0001")
    with pytest.raises(SizeLimitExceeded, match=r"0\.0001 GB") as raised:
        backup_manager.create_full_backup()
    assert "BACKUP_MAX_SIZE_GB" in raised.value.hint
    assert backup_manager.list_backups() == []
    assert {path.rpartition(".")[2] for path in tree("backups")} <= {"json", "lock"}
    monkeypatch.setenv("BACKUP_MAX_SIZE_GB", "0.01")
    assert backup_manager.create_full_backup().size_bytes > 100_000


def test_encryption_is_on_unless_it_is_switched_off(
    project: Path, identity: X25519Identity, monkeypatch: pytest.MonkeyPatch, back_up_at: BackUpAt
) -> None:
    with pytest.raises(KeyMissing) as raised:
        back_up_at("2024-01-01T02:00:00")
    assert "ENCRYPTION_KEY" in raised.value.hint
    assert not list(Path().rglob("*.tar.gz*"))
    monkeypatch.setenv("BACKUP_ENCRYPT", "false")
    assert not back_up_at("2024-01-01T02:00:00").encrypted
    assert ARCHIVE.read_bytes()[:2] == b"\x1f\x8b"
    monkeypatch.setenv("BACKUP_ENCRYPT", "true")
    monkeypatch.setenv("ENCRYPTION_KEY", identity.reveal())
    assert back_up_at("2024-01-02T02:00:00").encrypted
    sealed = Path("backups/full/full_20240102_020000.tar.gz.enc").read_bytes()
    assert sealed.startswith(b"age-encryption.org/v1\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKUP_DIR", " "),
        ("BACKUP_RETENTION_DAYS", "0"),
        ("BACKUP_RETENTION_DAYS", "a month"),
        ("BACKUP_COMPRESSION_LEVEL", "10"),
        ("BACKUP_MAX_SIZE_GB", "-1"),
        ("BACKUP_MAX_SIZE_GB", "nan"),
        ("BACKUP_ENCRYPT", "perhaps"),
    ],
)
def test_an_absurd_value_is_refused_by_its_name(
    plain: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        backup_manager.create_full_backup()
    assert not Path("backups").exists()


def test_variables_may_stand_in_the_env_file(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(".env").open("a") as file:
        file.write("BACKUP_DIR=from-file\n")
    backup_manager.create_full_backup(["config"])
    assert Path("from-file/config").is_dir()
    monkeypatch.setenv("BACKUP_DIR", "from-environment")
    backup_manager.create_full_backup(["config"])
    assert Path("from-environment/config").is_dir()


def test_the_backup_config_class() -> None:
    names: dict[str, Any] = {"dataclass": dataclasses.dataclass}
    exec(sample("BackupConfig Class", "python"), names)  # noqa: S102 - the contract's own words
    ours, printed = dataclasses.fields(BackupConfig), dataclasses.fields(names["BackupConfig"])
    assert [(field.name, field.default) for field in ours] == [
        (field.name, field.default) for field in printed
    ]
    assert [field.type for field in ours] == [
        getattr(field.type, "__name__", field.type) for field in printed
    ]
    assert dataclasses.asdict(BackupConfig()) == dataclasses.asdict(names["BackupConfig"]())


@pytest.mark.parametrize(
    ("field", "components"),
    [
        ({}, ["database", "models", "config"]),
        ({"include_models": False}, ["database", "config"]),
        ({"include_config": False}, ["database", "models"]),
        ({"include_logs": True}, ["database", "models", "config", "logs"]),
    ],
)
def test_what_is_included_where_no_component_is_named(
    plain: Path, field: dict[str, Any], components: list[str]
) -> None:
    manager = BackupManager(BackupConfig(encrypt_backups=False, **field))
    assert list(manager.create_full_backup().components) == components


def test_naming_a_component_wins_over_what_is_included(plain: Path) -> None:
    manager = BackupManager(BackupConfig(encrypt_backups=False, include_models=False))
    assert manager.create_full_backup(components=["models"]).type == "models"


def test_the_other_fields_of_the_backup_config_are_honored(plain: Path) -> None:
    with pytest.raises(KeyMissing):
        BackupManager(BackupConfig()).create_full_backup()
    stored = BackupManager(BackupConfig(encrypt_backups=False, compression_level=0)).create_full_backup()
    squeezed = BackupManager(BackupConfig(encrypt_backups=False)).create_full_backup()
    assert squeezed.size_bytes < stored.size_bytes * 0.7
    with pytest.raises(SizeLimitExceeded):
        BackupManager(BackupConfig(encrypt_backups=False, max_backup_size_gb=0.0001)).create_full_backup()


def test_the_retention_of_the_backup_config_is_honored(plain: Path, back_up_at: BackUpAt) -> None:
    back_up_at(days_ago(10))
    back_up_at(days_ago(1))
    assert BackupManager(BackupConfig()).cleanup_old_backups() == 0
    assert BackupManager(BackupConfig(retention_days=7)).cleanup_old_backups() == 1


@pytest.mark.parametrize(
    "field",
    [
        {"retention_days": 0},
        {"compression_level": 10},
        {"max_backup_size_gb": 0},
        {"include_logs": "perhaps"},
        {"backup_schedule": "now and then"},
    ],
)
def test_an_absurd_field_is_refused_by_its_name(field: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError, match=next(iter(field))):
        BackupConfig(**field)
