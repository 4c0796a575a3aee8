"""What the contract and its design say of encryption, with the programs ``age`` and ``tar``, and on hosts that have
only a part of the key."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acceptance.running import holdfast
from acceptance.service_state import (
    ARCHIVE,
    MODEL,
    PREDICTIONS,
    SETTINGS,
    BackUpAt,
    predict,
    predictions,
    state,
    tree,
    work_on,
)
from app.utils.backup import backup_manager
from holdfast.crypto import X25519Identity
from holdfast.errors import KeyMissing, KeyWrong

AGE = shutil.which("age") or ""
needs_age = pytest.mark.skipif(not AGE, reason="the age program is not installed")

SEALED = Path(f"{ARCHIVE}.enc")
PASSPHRASE = "old plain-string key, 32 chars!"
TYPING = Path(__file__).parents[1] / "crypto" / "age_at_terminal.py"


def test_no_plaintext_lies_in_the_backup_directory(sealed: Path, back_up_at: BackUpAt) -> None:
    marker = b"review_threshold"
    assert marker in SETTINGS.read_bytes()
    back_up_at("2024-01-01T02:00:00")
    work_on()
    back_up_at("2024-01-01T08:00:00", incremental=True)
    stored = tree("backups")
    assert sum(path.endswith(".tar.gz.enc") for path in stored) == 2
    for path, content in stored.items():
        assert not path.endswith(".tar.gz")
        assert marker not in content
        assert content[:2] != b"\x1f\x8b"


@needs_age
def test_age_and_tar_open_a_full_archive(
    sealed: Path, back_up_at: BackUpAt, identity: X25519Identity, tmp_path: Path
) -> None:
    back_up_at("2024-01-01T02:00:00", ["database", "models", "config", "logs"])
    (tmp_path / "key.txt").write_text(identity.reveal() + "\n")
    opened = tmp_path / "opened"
    opened.mkdir()
    subprocess.run(
        ["sh", "-c", f"age -d -i {tmp_path}/key.txt {SEALED} | tar xz -C {opened}"], check=True, timeout=60
    )
    assert (opened / "files" / MODEL).read_bytes() == MODEL.read_bytes()
    assert (opened / "files" / SETTINGS).read_bytes() == SETTINGS.read_bytes()
    assert (opened / "files/logs/service.log").is_file()
    assert predictions(opened / "database/main.db") == PREDICTIONS
    assert (opened / "MANIFEST.jsonl").is_file()


@needs_age
def test_a_plain_string_is_a_passphrase_and_opens_with_age_as_well(
    project: Path, back_up_at: BackUpAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY", PASSPHRASE)
    full = back_up_at("2024-01-01T02:00:00")
    before = state()
    work_on()
    assert backup_manager.restore_from_backup(full.backup_id) is True
    assert state() == before
    assert b"-> scrypt " in SEALED.read_bytes()[:100]
    subprocess.run(
        [sys.executable, TYPING, AGE, "-d", "-o", "opened.tar.gz", SEALED],
        input=PASSPHRASE.encode() + b"\n",
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    listed = subprocess.run(["tar", "tzf", "opened.tar.gz"], check=True, capture_output=True, text=True)
    assert f"files/{MODEL}" in listed.stdout.splitlines()


def test_a_host_with_a_recipient_alone_writes_what_only_the_identity_reads(
    project: Path, identity: X25519Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY", str(identity.recipient))
    for count in (400, 800, 1600):
        predict(count)
    full = backup_manager.create_full_backup()
    predict(10)
    first = backup_manager.create_incremental_backup()
    predict(10)
    second = backup_manager.create_incremental_backup(first.backup_id)
    assert (first.parent, second.parent) == (full.backup_id, first.backup_id)
    # It knows what it wrote: nothing is carried twice.
    assert max(first.size_bytes, second.size_bytes) < full.size_bytes / 2
    assert backup_manager.verify_backup_integrity(second.backup_id) is True
    at_second = state()
    work_on()
    with pytest.raises(KeyMissing, match=full.backup_id) as raised:
        backup_manager.restore_from_backup(second.backup_id)
    assert "identity" in raised.value.hint
    assert predictions() == at_second[0] + 10
    monkeypatch.setenv("ENCRYPTION_KEY", identity.reveal())
    assert backup_manager.restore_from_backup(second.backup_id) is True
    assert state() == at_second


def test_each_of_several_recipients_opens_a_backup(
    project: Path, back_up_at: BackUpAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = X25519Identity.generate(), X25519Identity.generate()
    monkeypatch.setenv("ENCRYPTION_KEY", f"{ours.recipient}\n{theirs.recipient}")
    full = back_up_at("2024-01-01T02:00:00")
    for identity in (ours, theirs):
        monkeypatch.setenv("ENCRYPTION_KEY", identity.reveal())
        assert backup_manager.restore_from_backup(full.backup_id) is True
    monkeypatch.setenv("ENCRYPTION_KEY", X25519Identity.generate().reveal())
    with pytest.raises(KeyWrong):
        backup_manager.restore_from_backup(full.backup_id)


def test_a_wrong_key_ends_with_status_12_and_shows_neither_key(
    sealed: Path, back_up_at: BackUpAt, identity: X25519Identity
) -> None:
    back_up_at("2024-01-01T02:00:00")
    wrong = X25519Identity.generate().reveal()
    done = holdfast("restore", "latest", "--confirm", ENCRYPTION_KEY=wrong)
    assert done.status == 12
    assert "ENCRYPTION_KEY" in done.err
    for secret in (wrong, identity.reveal()):
        assert secret not in done.out + done.err
    assert predictions() == PREDICTIONS


@pytest.mark.parametrize("key", ["AGE-SECRET-KEY-1QQQ", "age1qqqq", "two\nlines"])
def test_a_key_that_is_malformed_is_refused_and_not_shown(
    project: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY", key)
    with pytest.raises(KeyWrong) as raised:
        backup_manager.create_full_backup()
    assert key not in f"{raised.value} {raised.value.hint}"
    assert not list(Path().rglob("*.tar.gz*"))
