"""The contract on scheduled backups: its samples and tables, as printed."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from acceptance.contract import commands, sample, table
from acceptance.running import shell
from app.utils.backup import BackupScheduler, backup_manager, backup_scheduler
from holdfast.clock import timestamp

SCHEDULER = "python -m backend.ml-service.scripts.backup_scheduler"
LOG = Path("logs/backup_scheduler.log")


def execute(text: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs a sample of the contract; returns the names that it leaves."""
    names = {} if names is None else names
    exec(text, names)  # noqa: S102 - the contract's own words, which lie beside this file
    return names


def scheduler_at(moment: str) -> BackupScheduler:
    then = datetime.fromisoformat(f"{moment}+00:00")
    return BackupScheduler(clock=lambda: then)


def add_due(**config: Any) -> str:
    """A schedule that was made in January 2024, and has been due since."""
    return scheduler_at("2024-01-01T00:00:00").schedule_backup({"schedule_type": "monthly", **config})


def test_the_sample_of_creating_a_schedule(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC)
    names = execute(sample("Creating a Schedule", "python"))
    schedule_id = names["schedule_id"]
    assert capsys.readouterr().out == f"Schedule ID: {schedule_id}\n"
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", schedule_id)
    schedule = json.loads(Path("backups/schedules.json").read_text())[schedule_id]
    for key, value in names["schedule_config"].items():
        assert schedule[key] == value
    two = before.replace(hour=2, minute=0, second=0, microsecond=0)
    assert schedule["next_run"] in {timestamp(two + timedelta(days=days)) for days in (0, 1, 2)}


def test_the_sample_of_managing_schedules(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = execute(sample("Creating a Schedule", "python"))
    schedules = backup_scheduler.schedules
    capsys.readouterr()
    names = execute(sample("Schedule Management", "python"), names)
    assert capsys.readouterr().out == f"{schedules}\n"
    assert list(schedules) == [names["schedule_id"]]
    assert names["due"] == []
    assert backup_scheduler.schedules == {}


def test_the_table_of_types_and_their_times(plain: Path) -> None:
    times = {name: when for name, _, when in table("Schedule Types")}
    assert times == {
        "daily": "2:00 AM UTC",
        "weekly": "Sunday 2:00 AM UTC",
        "monthly": "1st of month 2:00 AM UTC",
    }
    due = {"daily": "2024-01-04T02:00:00", "weekly": "2024-01-07T02:00:00", "monthly": "2024-02-01T02:00:00"}
    scheduler = scheduler_at("2024-01-03T02:00:00")  # a Wednesday
    for name, moment in due.items():
        schedule_id = scheduler.schedule_backup({"schedule_type": name})
        assert scheduler.schedules[schedule_id]["next_run"] == moment


def test_the_schedule_file_format(plain: Path) -> None:
    printed = json.loads(sample("Schedule File Format", "json"))
    schedule_id = scheduler_at("2024-01-01T00:00:00").schedule_backup(
        {"schedule_type": "daily", "components": ["database", "models", "config"], "retention_days": 30}
    )
    later = scheduler_at("2024-01-01T02:00:00")
    [due] = later.get_due_schedules()
    assert later.execute_scheduled_backup(due) is True
    written = json.loads(Path("backups/schedules.json").read_text())[schedule_id]
    assert list(written)[:10] == list(printed)
    assert {key: written[key] for key in printed} == printed | {"schedule_id": schedule_id}
    assert Path("backups/schedules.json").stat().st_mode & 0o777 == 0o600


def test_the_printed_file_is_read_as_it_stands(plain: Path) -> None:
    Path("backups").mkdir()
    Path("backups/schedules.json").write_text(sample("Schedule File Format", "json"))
    [due] = scheduler_at("2024-01-02T02:00:00").get_due_schedules()
    assert due["schedule_id"] == "uuid-here"
    assert scheduler_at("2024-01-02T01:59:59").get_due_schedules() == []


def test_the_default_type_is_that_of_the_configuration(plain: Path) -> None:
    Path("holdfast.toml").write_text('[backup]\nschedule = "weekly"\n')
    schedule_id = backup_scheduler.schedule_backup({})
    assert backup_scheduler.schedules[schedule_id]["schedule_type"] == "weekly"


def test_the_reference_of_the_scheduler() -> None:
    for signature, _ in table("BackupScheduler"):
        name, _, parameters = signature.rstrip(")").partition("(")
        known = inspect.signature(getattr(backup_scheduler, name))
        positional = [
            parameter.name
            for parameter in known.parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        assert positional == [word.strip() for word in parameters.split(",") if word], signature
        assert getattr(backup_scheduler, name).__doc__


# Running the scheduler


@contextmanager
def running() -> Iterator[subprocess.Popen[str]]:
    """The contract's command, once it has made what was due."""
    assert commands("Running the Scheduler") == [SCHEDULER]
    with subprocess.Popen(
        ["bash", "-c", f"exec {SCHEDULER}"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as scheduler:
        try:
            assert scheduler.stderr is not None
            assert any(": made full_" in line for line in scheduler.stderr)
            yield scheduler
        finally:
            scheduler.kill()


def test_the_command_runs_the_scheduler_which_is_found_and_logs(plain: Path) -> None:
    schedule_id = add_due()
    find, tail, start = commands("Scheduler Not Running")
    assert start == SCHEDULER
    with running() as scheduler:
        # One line of grep's own, and one of the scheduler.
        found = [line.split()[1] for line in shell(find).out.splitlines() if SCHEDULER in line]
        assert str(scheduler.pid) in found
        followed = shell(f"timeout 1 {tail} || true").out
        scheduler.send_signal(signal.SIGTERM)
        _, err = scheduler.communicate(timeout=10)
        assert scheduler.returncode == 0
    assert "Traceback" not in err
    [made] = backup_manager.list_backups()
    assert made.schedule_id == schedule_id
    assert f"schedule {schedule_id}: made {made.backup_id}" in followed
    assert LOG.stat().st_mode & 0o777 == 0o600


def test_debug_mode(plain: Path) -> None:
    add_due()
    export, start = commands("Debug Mode")
    assert start == SCHEDULER
    done = shell(f"{export}\n{start} --once")
    assert done.status == 0
    assert " DEBUG read models" in LOG.read_text()


def test_the_scheduler_runs_in_a_directory_of_its_own_where_the_package_can_be_seen(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that lies elsewhere: its directory is the service root, the project's is on the path."""
    add_due()
    project = (plain / "backend").resolve().parent
    (plain / "backend").unlink()
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{project}")
    done = shell(f"{SCHEDULER} --once")
    assert done.status == 0, done.err
    assert len(backup_manager.list_backups()) == 1
