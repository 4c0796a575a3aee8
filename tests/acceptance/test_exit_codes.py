"""Each exit code, provoked for real: what the program says then, and what it leaves."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acceptance.contract import FULL_ID
from acceptance.running import PATIENCE, Done, command_of, holdfast
from acceptance.service_state import ARCHIVE, DATABASE, BackUpAt, damage, make_slow, state
from app.utils.backup import backup_manager

_HOLDER = """
import sys
from pathlib import Path
from holdfast.storage.local import LocalStorage
with LocalStorage(Path("backups")).lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_0_done(plain: Path) -> None:
    done = holdfast("backup", "--json")
    assert (done.status, done.json["status"], done.err) == (0, "success", "")


def test_1_failed(plain: Path) -> None:
    DATABASE.write_bytes(b"this is no database" * 1000)
    done = holdfast("backup")
    assert done.status == 1
    assert done.out == ""
    assert "\nError: Database backup failed: " in done.err
    assert "\nHint: " in done.err


def test_1_failed_for_a_machine(plain: Path, back_up_at: BackUpAt) -> None:
    back_up_at("2024-01-01T02:00:00")
    damage(ARCHIVE)
    told = holdfast("verify", "latest", "--json")
    assert told.status == 1
    assert (told.json["error"], told.json["exit_code"]) == ("CorruptBackup", 1)
    assert FULL_ID in told.json["message"]
    assert told.json["hint"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["backup", "--component", "databse"], "databse"),
        (["list", "--typo", "full"], "--typo"),
        (["demo", "--service", "nowhere"], "nowhere"),
    ],
)
def test_2_usage(plain: Path, arguments: list[str], named: str) -> None:
    done = holdfast(*arguments)
    assert (done.status, done.out) == (2, "")
    assert named in done.err
    assert not Path("backups").exists()


def test_2_a_wrong_setting(plain: Path) -> None:
    Path("holdfast.toml").write_text("[backup]\nretention_day = 7\n")
    told = holdfast("list", "--json")
    assert told.status == told.json["exit_code"] == 2
    assert "retention_day" in told.json["message"]
    assert "retention_days" in told.json["hint"]


@pytest.mark.parametrize("variable", ["BACKUP_DIR", "XDG_STATE_HOME"])
def test_a_directory_that_cannot_be_one_is_told_in_words(plain: Path, variable: str) -> None:
    Path("a-file").touch()
    done = holdfast("backup", **{variable: str(plain / "a-file")})
    assert done.status in (1, 2)
    assert "a-file" in done.err.split("Error: ")[1]
    assert "Traceback" not in done.err


def test_3_finished_with_warnings(plain: Path, back_up_at: BackUpAt) -> None:
    back_up_at("2024-01-01T02:00:00")
    shutil.rmtree("models")
    done = holdfast("backup")
    assert done.status == 3
    assert "warning: models was in the last full backup" in done.err
    assert list(backup_manager.list_backups()[0].components) == ["database", "config"]


def test_10_no_such_backup(plain: Path) -> None:
    told = holdfast("restore", "full_20240101_020001", "--confirm", "--json")
    assert (told.status, told.json["error"]) == (10, "BackupNotFound")
    assert "full_20240101_020001" in told.json["message"]


@pytest.mark.parametrize(("lock", "command"), [("backup", ["backup"]), ("expire", ["expire"])])
def test_11_another_run_holds_the_lock(
    plain: Path, back_up_at: BackUpAt, lock: str, command: list[str]
) -> None:
    back_up_at("2024-01-01T02:00:00")
    before = backup_manager.list_backups()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        told = holdfast(*command, "--json")
        holder.communicate()
    assert (told.status, told.json["error"], told.json["exit_code"]) == (11, "LockHeld", 11)
    assert "another run" in told.json["message"]
    assert backup_manager.list_backups() == before
    assert backup_manager.create_full_backup().status == "success"


def test_12_no_key(project: Path) -> None:
    told = holdfast("backup", "--json")
    assert (told.status, told.json["error"]) == (12, "KeyMissing")
    assert "ENCRYPTION_KEY" in told.json["hint"]
    assert "holdfast key new" in told.json["hint"]
    assert not list(Path().rglob("*.tar.gz*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_130_interrupted(plain: Path, number: signal.Signals) -> None:
    make_slow(Path("models/large.json"))
    before = state()
    status, out, err = interrupted(number)
    assert (status, out) == (130, "")
    assert "Error: " in err
    assert "Traceback" not in err
    [metadata] = Path("backups/full").iterdir()
    record = json.loads(metadata.read_text())
    assert (record["status"], record["size_bytes"]) == ("failed", 0)
    assert backup_manager.list_backups() == []
    assert leftovers() == []
    assert state() == before


@pytest.mark.torture
def test_130_interrupted_at_any_moment(plain: Path) -> None:
    make_slow(Path("models/large.json"))
    moments = random.Random(1)
    for _ in range(60):
        status, _, err = interrupted(signal.SIGINT, after=moments.uniform(0, 0.1))
        assert (status, "Traceback" in err) == (130, False), err
        assert leftovers() == []
    assert backup_manager.list_backups() == []


def interrupted(number: signal.Signals, *, after: float = 0.0) -> Done:
    """Makes a backup, and sends it a signal `after` seconds of reading models."""
    with subprocess.Popen(
        command_of("backup"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as backup:
        try:
            assert backup.stderr is not None
            assert any("read models" in line for line in backup.stderr)
            time.sleep(after)
            backup.send_signal(number)
            out, err = backup.communicate(timeout=PATIENCE)
        finally:
            backup.kill()  # one that hangs must not hang us
    return Done(backup.returncode, out, err)


def leftovers() -> list[Path]:
    """What could be taken for a backup, or takes room."""
    return [path for path in Path("backups").rglob("*") if path.name.endswith((".gz", ".enc", ".partial"))]


def test_a_reader_that_goes_away_is_no_error_to_tell(plain: Path, back_up_at: BackUpAt) -> None:
    back_up_at("2024-01-01T02:00:00")
    with subprocess.Popen(
        command_of("ls", "latest"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as listing:
        assert listing.stdout is not None
        listing.stdout.close()  # as in `holdfast ls latest | head`
        _, err = listing.communicate(timeout=PATIENCE)
    assert err == b""
