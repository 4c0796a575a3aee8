"""The contract on restoring: its commands and samples run as printed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from acceptance.contract import FULL_ID, commands, sample
from acceptance.running import at_terminal, holdfast, shell
from acceptance.service_state import (
    ARCHIVE,
    DATABASE,
    MODEL,
    PREDICTIONS,
    SETTINGS,
    BackUpAt,
    damage,
    predict,
    predictions,
    state,
    tree,
    work_on,
)
from app.utils.backup import backup_manager
from holdfast.errors import BackupNotFound, CorruptBackup, UsageError

INTERACTIVE, CONFIRMED, CREATING = commands("Using the Restore Script")

_CLIENT = """
import sys, threading
from app.core.db import engine
from sqlalchemy import text
count = text("SELECT count(*) FROM predictions")
failures, asked, stop = [], 0, threading.Event()
def keep_asking():
    global asked
    with engine.connect() as connection:
        while not stop.is_set():
            try:
                connection.execute(count).scalar_one()
                connection.rollback()
                asked += 1
            except Exception as error:
                failures.append(repr(error))
                break
            stop.wait(0.002)
thread = threading.Thread(target=keep_asking)
with engine.connect() as connection:
    thread.start()
    for line in sys.stdin:
        print(connection.execute(count).scalar_one(), flush=True)
        connection.rollback()
stop.set()
thread.join()
print(asked, failures, flush=True)
"""


def leftovers() -> list[Path]:
    """What a restore would have left beside the data."""
    return sorted(Path().glob(".holdfast-*"))


@pytest.fixture
def backed_up(plain: Path, back_up_at: BackUpAt) -> Path:
    """The project with the backup of the samples, after which every component has changed."""
    assert back_up_at("2024-01-01T02:00:00").backup_id == FULL_ID
    work_on()
    return plain


def test_the_script_asks_at_a_terminal_and_yes_restores(backed_up: Path) -> None:
    done = at_terminal(INTERACTIVE.split(), "y")
    assert done.status == 0, done.out
    assert FULL_ID in done.out
    assert predictions() == PREDICTIONS


def test_the_script_asks_at_a_terminal_and_no_leaves_everything_alone(backed_up: Path) -> None:
    before = state()
    done = at_terminal(INTERACTIVE.split(), "n")
    assert done.status == 2, done.out
    assert state() == before
    assert leftovers() == []


def test_the_script_refuses_where_nobody_can_be_asked(backed_up: Path) -> None:
    before = state()
    done = shell(INTERACTIVE)
    assert (done.status, done.out) == (2, "")
    assert "--confirm" in done.err
    assert state() == before


def test_the_confirmed_script_restores_the_database_and_nothing_else(backed_up: Path) -> None:
    others = tree("models", "config")
    done = shell(CONFIRMED)
    assert done.status == 0, done.err
    assert predictions() == PREDICTIONS
    assert tree("models", "config") == others


def test_the_script_restores_other_components_when_told(backed_up: Path, seeded: Path) -> None:
    done = shell(f"{CONFIRMED} --component config")
    assert done.status == 0, done.err
    assert predictions() == PREDICTIONS
    assert SETTINGS.read_bytes() == (seeded / SETTINGS).read_bytes()
    assert MODEL.with_name("classifier-v2.safetensors").exists()


def test_the_script_creates_the_database_where_there_is_none(
    backed_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///new/place/service.db")
    done = shell(CONFIRMED)
    assert done.status == 1
    assert "--create-db" in done.err
    assert not Path("new").exists()
    done = shell(CREATING)
    assert done.status == 0, done.err
    assert predictions(Path("new/place/service.db")) == PREDICTIONS


def test_the_script_refuses_what_is_not_there(backed_up: Path) -> None:
    done = shell(CONFIRMED.replace("full_2024", "full_2023"))
    assert done.status == 10
    assert "full_20230101_020000.tar.gz" in done.err


def test_the_samples_of_the_python_interface(backed_up: Path, seeded: Path) -> None:
    whole, database_only = sample("Using Python API", "python").split("# Restore specific")
    names: dict[str, object] = {}
    exec(whole, names)  # noqa: S102 - the contract's own words
    assert names.pop("success") is True
    assert predictions() == PREDICTIONS
    assert tree("models") == {
        str(MODEL.parent / path.name): path.read_bytes() for path in (seeded / "models").iterdir()
    }
    assert SETTINGS.read_bytes() == (seeded / SETTINGS).read_bytes()
    work_on()
    others = tree("models", "config")
    exec(f"#{database_only}", names)  # noqa: S102
    assert names["success"] is True
    assert predictions() == PREDICTIONS
    assert tree("models", "config") == others


@pytest.mark.parametrize("component", ["models", "config"])
def test_a_restore_of_one_component_leaves_the_others_alone(
    backed_up: Path, seeded: Path, component: str
) -> None:
    other = {"models": "config", "config": "models"}[component]
    others = tree(other)
    assert backup_manager.restore_from_backup(FULL_ID, components=[component]) is True
    assert set(tree(component).values()) == {path.read_bytes() for path in (seeded / component).iterdir()}
    assert tree(other) == others
    assert predictions() == PREDICTIONS + 10


def test_everything_that_was_destroyed_comes_back(backed_up: Path, seeded: Path) -> None:
    for path in Path().glob(f"{DATABASE}*"):
        path.unlink()
    shutil.rmtree("models")
    shutil.rmtree("config")
    assert backup_manager.restore_from_backup(FULL_ID) is True
    assert predictions() == PREDICTIONS
    for name in ("models", "config"):
        assert tree(name) == {f"{name}/{path.name}": path.read_bytes() for path in (seeded / name).iterdir()}


def test_an_incremental_restores_what_it_rests_on_as_well(backed_up: Path, back_up_at: BackUpAt) -> None:
    first = back_up_at("2024-01-01T08:00:00", incremental=True)
    at_first = state()
    predict(50)
    MODEL.unlink()
    second = back_up_at("2024-01-01T09:00:00", since=first.backup_id)
    at_second = state()
    predict(50)
    shutil.rmtree("config")
    for metadata, then in ((second, at_second), (first, at_first)):
        assert backup_manager.restore_from_backup(metadata.backup_id) is True
        assert state() == then


def test_what_cannot_be_restored_raises_and_changes_nothing(backed_up: Path, back_up_at: BackUpAt) -> None:
    back_up_at("2024-01-02T02:00:00", ["config"])
    before = state()
    with pytest.raises(BackupNotFound, match="full_20230101_020000"):
        backup_manager.restore_from_backup("full_20230101_020000")
    with pytest.raises(UsageError, match="databse"):
        backup_manager.restore_from_backup(FULL_ID, components=["databse"])
    with pytest.raises(UsageError, match="models"):
        backup_manager.restore_from_backup("config_20240102_020000", components=["models"])
    damage(ARCHIVE)
    with pytest.raises(CorruptBackup):
        backup_manager.restore_from_backup(FULL_ID)
    ARCHIVE.unlink()
    with pytest.raises(CorruptBackup, match="missing"):
        backup_manager.restore_from_backup(FULL_ID)
    assert state() == before
    assert leftovers() == []


def test_a_restore_that_fails_halfway_leaves_everything_as_it_was(backed_up: Path) -> None:
    with Path("models/large.bin").open("wb") as file:
        for number in range(4000):
            file.write(number.to_bytes(2, "big") * 256)
    full = backup_manager.create_full_backup()
    work_on()
    before = state()
    # No file may grow beyond 1 MiB: the database is staged by then, the model cannot be.
    done = shell(f"ulimit -f 1024; python -m holdfast restore {full.backup_id} --confirm")
    assert done.status == 1
    assert "Error: " in done.err
    assert state() == before
    assert leftovers() == []
    assert holdfast("recover").status == 0
    assert backup_manager.restore_from_backup(full.backup_id) is True


def test_a_process_that_keeps_querying_sees_the_restored_rows(backed_up: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        questions, answers = client.stdin, client.stdout
        assert questions is not None
        assert answers is not None

        def ask() -> int:
            print(file=questions, flush=True)
            return int(answers.readline())

        assert ask() == PREDICTIONS + 10
        assert backup_manager.restore_from_backup(FULL_ID) is True
        assert ask() == PREDICTIONS
        with closing(sqlite3.connect(DATABASE)) as other, other:
            other.execute("DELETE FROM predictions WHERE id = 1")
        assert ask() == PREDICTIONS - 1
        questions.close()
        asked, failures = answers.read().split(maxsplit=1)
    assert int(asked) > 0
    assert failures.strip() == "[]"
    assert client.returncode == 0


def test_a_restore_cleans_up_but_for_what_undo_needs(backed_up: Path) -> None:
    before = state()
    assert backup_manager.restore_from_backup(FULL_ID) is True
    assert not [path for path in Path("backups/temp").iterdir() if path.suffix != ".lock"]
    assert leftovers() != []
    assert holdfast("undo", "--confirm").status == 0
    assert state() == before
    assert holdfast("undo", "--discard").status == 0
    assert leftovers() == []
    assert state() == before


def test_a_restore_writes_a_detailed_log_and_a_record(backed_up: Path, state_home: Path) -> None:
    backup_manager.restore_from_backup(FULL_ID)
    damage(ARCHIVE)
    with pytest.raises(CorruptBackup):
        backup_manager.restore_from_backup(FULL_ID)
    logs = sorted(
        state_home.glob("holdfast/services/*/logs/restore_*.log"), key=lambda path: path.stat().st_mtime_ns
    )
    text = "".join(path.read_text() for path in logs)
    for said in (f"restore of {FULL_ID}", "stage: database main", "stage: models models", "swap: ", "failed"):
        assert said in text
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in logs)
    [history] = state_home.glob("holdfast/repositories/*/history.jsonl")
    records = [json.loads(line) for line in history.read_text().splitlines()]
    restores = [(record["backup_id"], record["status"]) for record in records if record["verb"] == "restore"]
    assert restores == [(FULL_ID, "success"), (FULL_ID, "failed")]
