"""The contract on verification, troubleshooting and recovery: its samples and commands run as printed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from acceptance.contract import FULL_ID, SAMPLES, TEXT, commands, sample
from acceptance.running import run, shell
from acceptance.service_state import (
    ARCHIVE,
    DATABASE,
    PREDICTIONS,
    BackUpAt,
    damage,
    predict,
    predictions,
    work_on,
)
from app.utils.backup import backup_manager
from app.utils.encryption import encryption
from holdfast.crypto import X25519Identity
from holdfast.errors import KeyMissing, KeyWrong


def execute(text: str) -> dict[str, Any]:
    """Runs a sample of the contract; returns the names that it leaves."""
    names: dict[str, Any] = {"backup_manager": backup_manager}
    exec(text, names)  # noqa: S102 - the contract's own words, which lie beside this file
    return names


def test_the_sample_of_an_integrity_check(
    plain: Path, back_up_at: BackUpAt, capsys: pytest.CaptureFixture[str]
) -> None:
    check = sample("Integrity Check", "python")
    assert execute(check)["is_valid"] is False
    back_up_at("2024-01-01T02:00:00")
    assert execute(check)["is_valid"] is True
    damage(ARCHIVE)
    assert execute(check)["is_valid"] is False
    missing, intact, damaged = capsys.readouterr().out.splitlines()
    assert missing == damaged == "Backup is corrupted or missing"
    assert intact == "Backup is valid and intact"


@pytest.mark.parametrize("reference", ["full_20240101_020001", "full", "../full_20240101_020000", "", "\0"])
def test_no_reference_to_an_unknown_backup_is_valid(plain: Path, reference: str) -> None:
    assert backup_manager.verify_backup_integrity(reference) is False


def test_a_backup_is_not_valid_without_its_archive_nor_without_what_it_rests_on(
    plain: Path, back_up_at: BackUpAt
) -> None:
    back_up_at("2024-01-01T02:00:00")
    incremental = back_up_at("2024-01-01T08:00:00", incremental=True)
    assert backup_manager.verify_backup_integrity(incremental.backup_id) is True
    aside = ARCHIVE.rename("aside")
    assert backup_manager.verify_backup_integrity(FULL_ID) is False
    assert backup_manager.verify_backup_integrity(incremental.backup_id) is False
    aside.rename(ARCHIVE)
    assert backup_manager.verify_backup_integrity(incremental.backup_id) is True


def test_the_commands_of_a_manual_verification_agree(plain: Path, back_up_at: BackUpAt) -> None:
    back_up_at("2024-01-01T02:00:00")
    listed, summed, compared = (shell(command) for command in commands("Manual Verification"))
    assert (listed.status, summed.status, compared.status) == (0, 0, 0)
    assert listed.out.rstrip().endswith(str(ARCHIVE))
    checksum, name = summed.out.split()
    assert name == str(ARCHIVE)
    assert re.fullmatch(rf'\s*"checksum": "{checksum}",\n', compared.out)


def test_the_commands_of_database_trouble(project: Path) -> None:
    connect, permissions = commands('Backup Fails with "Database backup failed"')
    done = shell(connect)
    assert done.status == 0, done.err
    assert "sqlalchemy.engine.base.Connection" in done.out
    assert shell(permissions).out.rstrip().endswith(str(DATABASE))


def test_the_commands_of_encryption_trouble(
    sealed: Path, back_up_at: BackUpAt, identity: X25519Identity
) -> None:
    metadata = back_up_at("2024-01-01T02:00:00")
    echo, summed = (shell(command) for command in commands("Encryption/Decryption Fails"))
    assert echo.out == f"{identity.reveal()}\n"
    assert summed.out.split() == [metadata.checksum, f"{ARCHIVE}.enc"]
    assert metadata.checksum == hashlib.sha256(Path(f"{ARCHIVE}.enc").read_bytes()).hexdigest()


def test_debug_logging_tells_what_a_backup_does(plain: Path) -> None:
    program = (
        sample("Debug Mode", "python")
        + "from app.utils.backup import backup_manager\n"
        + "print(backup_manager.create_full_backup().backup_id)\n"
    )
    done = run(["python", "-c", program])
    assert done.status == 0, done.err
    assert re.search(rf"^\w+:holdfast\b.*{done.out.strip()}", done.err, re.MULTILINE)


def test_the_recovery_from_a_corrupted_latest_backup(
    plain: Path, back_up_at: BackUpAt, capsys: pytest.CaptureFixture[str]
) -> None:
    back_up_at("2024-01-01T02:00:00")
    work_on()
    latest = back_up_at("2024-01-02T02:00:00")
    damage(Path(f"backups/full/{latest.backup_id}.tar.gz"))
    execute(sample("Scenario: Corrupted Latest Backup", "python"))
    assert capsys.readouterr().out == f"Valid backup: {FULL_ID}\n"
    [restore] = commands("Scenario: Corrupted Latest Backup")
    done = shell(restore)
    assert done.status == 0, done.err
    assert predictions() == PREDICTIONS


def test_the_recovery_with_a_key_set_by_hand(
    project: Path, back_up_at: BackUpAt, identity: X25519Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY", "manual-key-here")
    metadata = back_up_at("2024-01-01T02:00:00")
    predict(10)
    monkeypatch.delenv("ENCRYPTION_KEY")
    with pytest.raises(KeyMissing, match="no key"):
        backup_manager.restore_from_backup(metadata.backup_id)
    encryption.key = identity.reveal()
    with pytest.raises(KeyWrong):
        backup_manager.restore_from_backup(metadata.backup_id)
    assert predictions() == PREDICTIONS + 10
    execute(sample("Scenario: Lost Encryption Key", "python"))
    assert "manual" not in repr(encryption)
    assert backup_manager.restore_from_backup(metadata.backup_id) is True
    assert predictions() == PREDICTIONS


def test_a_key_set_by_hand_wins_over_the_configured_one(
    sealed: Path, identity: X25519Identity, back_up_at: BackUpAt
) -> None:
    encryption.key = X25519Identity.generate().reveal().encode()
    metadata = back_up_at("2024-01-01T02:00:00", ["config"])
    assert backup_manager.restore_from_backup(metadata.backup_id) is True
    encryption.key = None
    with pytest.raises(KeyWrong):
        backup_manager.restore_from_backup(metadata.backup_id)


def test_the_contract_is_the_one_that_was_agreed() -> None:
    agreed = "d6fd6c76ffa4f4c02606725284d43e1255b0f364f60aed1515c501fa473c9fd6"
    assert hashlib.sha256(TEXT.encode()).hexdigest() == agreed
    assert len(SAMPLES) == 30
