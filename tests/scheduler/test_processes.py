"""The program: schedulers as processes of their own, by the machine's clock.

What is added here by a clock that shows January 2024 has long been due there.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast.clock import system_clock, timestamp
from scheduler.conftest import Ground

PATIENCE = 60.0
IN_TIME = 10.0
"""Seconds that a service manager waits before it kills."""


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "holdfast", *arguments]


def run(ground: Ground, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(*arguments),
        cwd=ground.service.root,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@contextmanager
def started(ground: Ground, *arguments: str, until: str = "") -> Iterator[subprocess.Popen[str]]:
    """A program, once it has said `until`."""
    with subprocess.Popen(
        program(*arguments),
        cwd=ground.service.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            if until:
                assert any(until in line for line in process.stderr)
            yield process
        finally:
            process.kill()


def make_slow(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that takes seconds to compress."""
    monkeypatch.setenv("BACKUP_COMPRESSION_LEVEL", "9")
    line = "".join(f'{{"id": {number}, "value": {number * 7919 % 10007}}}\n' for number in range(30_000))
    (ground.service.root / "models/large.json").write_text(line * 60)


def hang_before_backups(ground: Ground) -> None:
    """A run that says ``hanging``, and comes to no next step."""
    (ground.service.root / "hang.sh").write_text("echo hanging >&2\nexec sleep 600\n")
    (ground.service.root / "holdfast.toml").write_text('[hooks]\nbefore = ["sh hang.sh"]\n')


def leftovers(ground: Ground) -> list[Path]:
    """What could be taken for a backup, or takes room."""
    return [
        path
        for path in ground.service.backups.rglob("*")
        if path.suffix in (".gz", ".enc", ".partial", ".tmp")
    ]


def log(ground: Ground) -> str:
    return (ground.service.root / "logs/backup_scheduler.log").read_text()


def test_two_schedulers_at_the_same_instant_make_one_backup(ground: Ground) -> None:
    for _ in range(3):
        schedule_id = ground.add(schedule_type="monthly")
        before = len(ground.backups())
        with started(ground, "scheduler", "--once") as one, started(ground, "scheduler", "--once") as other:
            for scheduler in (one, other):
                scheduler.communicate(timeout=PATIENCE)
            # Who finds the other at work says so.
            assert sorted((one.returncode, other.returncode)) in ([0, 0], [0, 11])
        assert len(ground.backups()) == before + 1
        assert ground.schedule(schedule_id).last_status == "success"
        ground.scheduler().remove_schedule(schedule_id)


def test_many_schedulers_and_many_schedules_make_each_backup_once(ground: Ground) -> None:
    wanted = {ground.add(schedule_type="monthly", components=["config"]) for _ in range(4)}
    processes = [
        subprocess.Popen(program("scheduler", "--once"), cwd=ground.service.root, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    for process in processes:
        assert process.wait(PATIENCE) in (0, 11)
    while any(schedule.last_run is None for schedule in ground.file.read().values()):
        assert run(ground, "scheduler", "--once").returncode == 0
    assert sorted(str(made.schedule_id) for made in ground.backups()) == sorted(wanted)


def test_once_runs_what_is_due_and_ends(ground: Ground) -> None:
    schedule_id = ground.add(schedule_type="monthly")
    done = run(ground, "scheduler", "--once")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"schedule {schedule_id}: made full_" in done.stderr
    assert len(ground.backups()) == 1
    assert run(ground, "scheduler", "--once").returncode == 0
    assert len(ground.backups()) == 1


def test_once_tells_a_failure_by_its_exit_code(ground: Ground) -> None:
    ground.add(schedule_type="monthly")
    ground.break_database()
    done = run(ground, "scheduler", "--once")
    assert done.returncode == 1
    assert "Database backup failed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["scheduler"], ["scheduler", "--once"], ["schedule", "list"]])
def test_a_broken_file_is_refused_by_name_and_line(ground: Ground, arguments: list[str]) -> None:
    ground.service.backups.mkdir()
    ground.file.path.write_text('{\n  "nightly": {"status": "on"}\n}\n')
    done = run(ground, *arguments)
    assert done.returncode == 2
    assert f"Error: {ground.file.path}, line 2: status is 'on'" in done.stderr
    assert ground.file.path.read_text() == '{\n  "nightly": {"status": "on"}\n}\n'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_scheduler_that_waits(ground: Ground, number: signal.Signals) -> None:
    ground.add(schedule_type="monthly")
    with started(ground, "scheduler", until=": made full_") as scheduler:
        scheduler.send_signal(number)
        _, err = scheduler.communicate(timeout=IN_TIME)
        assert scheduler.returncode == (0 if number is signal.SIGTERM else 130)
    assert "Traceback" not in err
    assert ("INFO the scheduler ends: it was asked to" in log(ground)) is (number is signal.SIGTERM)
    assert len(ground.backups()) == 1


def test_sigterm_abandons_a_run_which_is_no_failure_and_runs_at_the_next_start(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule_id = ground.add(schedule_type="monthly")
    due = ground.schedule(schedule_id)
    make_slow(ground, monkeypatch)
    with started(ground, "-v", "scheduler", until="read models") as scheduler:
        scheduler.send_signal(signal.SIGTERM)
        _, err = scheduler.communicate(timeout=IN_TIME)
        assert scheduler.returncode == 0
    assert "Traceback" not in err
    assert "failed," not in err
    assert ground.backups() == []
    assert leftovers(ground) == []
    after = ground.schedule(schedule_id)
    assert (after.last_status, after.consecutive_failures) == ("interrupted", 0)
    assert after.next_run == due.next_run
    assert run(ground, "scheduler", "--once").returncode == 0
    assert len(ground.backups()) == 1


@pytest.mark.parametrize("once", [False, True])
def test_sigterm_ends_in_time_also_where_a_run_comes_to_no_next_step(ground: Ground, once: bool) -> None:
    schedule_id = ground.add(schedule_type="monthly")
    hang_before_backups(ground)
    with started(ground, "scheduler", *(["--once"] if once else []), until="hanging") as scheduler:
        scheduler.send_signal(signal.SIGTERM)
        scheduler.communicate(timeout=IN_TIME)
        assert scheduler.returncode == (130 if once else 0)
    assert ground.schedule(schedule_id).last_status == "interrupted"
    assert ground.schedule(schedule_id).consecutive_failures == 0


def test_sigterm_ends_in_time_also_where_a_database_stays_locked(ground: Ground) -> None:
    schedule_id = ground.add(schedule_type="monthly")
    (ground.service.root / "holdfast.toml").write_text("database_timeout = 600\n")
    with closing(sqlite3.connect(ground.service.root / "service.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with started(ground, "-v", "scheduler", until="read database") as scheduler:
            scheduler.send_signal(signal.SIGTERM)
            scheduler.communicate(timeout=IN_TIME)
            assert scheduler.returncode == 0
    assert run(ground, "scheduler", "--once").returncode == 0
    assert len(ground.backups()) == 1
    assert ground.schedule(schedule_id).consecutive_failures == 0


def test_a_signal_that_its_programs_get_as_well_makes_no_failure_of_theirs(ground: Ground) -> None:
    """As systemd sends it, and a terminal: to all processes of a group."""
    schedule_id = ground.add(schedule_type="monthly")
    hang_before_backups(ground)
    with started(ground, "scheduler", until="hanging") as scheduler:
        os.killpg(scheduler.pid, signal.SIGTERM)
        _, err = scheduler.communicate(timeout=IN_TIME)
        assert scheduler.returncode == 0
    assert "in a row" not in err
    schedule = ground.schedule(schedule_id)
    assert (schedule.last_status, schedule.consecutive_failures) == ("interrupted", 0)


def test_a_scheduler_that_is_killed_leaves_its_run_to_the_next_one(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule_id = ground.add(schedule_type="monthly")
    make_slow(ground, monkeypatch)
    with started(ground, "-v", "scheduler", until="read models") as scheduler:
        scheduler.kill()
        scheduler.communicate(timeout=PATIENCE)
    assert ground.schedule(schedule_id).started_at is not None
    assert run(ground, "scheduler", "--once").returncode == 0
    assert len(ground.backups()) == 1
    assert [path for path in leftovers(ground) if path.suffix != ".gz"] == []
    assert ground.schedule(schedule_id).consecutive_failures == 0


def test_the_log_is_a_private_file_in_the_service(ground: Ground) -> None:
    ground.add(schedule_type="monthly")
    done = run(ground, "scheduler", "--once")
    assert log(ground) == done.stderr
    path = ground.service.root / "logs/backup_scheduler.log"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "DEBUG" not in log(ground)


def test_log_level_and_format_are_as_the_variables_say(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.add(schedule_type="monthly")
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("LOG_FORMAT", "json")
    assert run(ground, "scheduler", "--once").returncode == 0
    lines = [json.loads(line) for line in log(ground).splitlines()]
    assert {line["level"] for line in lines} >= {"DEBUG", "INFO"}
    assert all(set(line) == {"time", "level", "message"} for line in lines)


def test_no_secret_is_logged(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    ground.add(schedule_type="monthly", notification_email="admin@example.com")
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@127.0.0.1:1/name")
    monkeypatch.setenv("SMTP_SERVER", "127.0.0.1")
    monkeypatch.setenv("SMTP_PORT", "1")
    monkeypatch.setenv("SMTP_USERNAME", "user")
    monkeypatch.setenv("SMTP_PASSWORD", "hunter3")
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    done = run(ground, "scheduler", "--once")
    assert done.returncode == 1
    for secret in ("hunter2", "hunter3"):
        assert secret not in done.stderr + log(ground)


# Commands for schedules


def test_schedules_are_added_listed_enabled_and_removed(ground: Ground) -> None:
    added = run(
        ground,
        *("schedule", "add", "--type", "30 2 * * mon-fri", "--timezone", "Europe/Berlin"),
        *("--component", "database", "--retention-days", "7", "--incremental", "--email", "a@example.com"),
        "--json",
    )
    assert (added.returncode, added.stderr) == (0, "")
    schedule = json.loads(added.stdout)
    schedule_id = schedule["schedule_id"]
    assert ground.file.read()[schedule_id].to_json() == schedule
    assert (schedule["schedule_type"], schedule["timezone"]) == ("30 2 * * mon-fri", "Europe/Berlin")
    assert (schedule["components"], schedule["retention_days"]) == (["database"], 7)
    assert (schedule["backup_type"], schedule["notification_email"]) == ("incremental", "a@example.com")

    other = run(ground, "schedule", "add", "--no-models", "--logs")
    assert ground.schedule(other.stdout.strip()).components == ("database", "config", "logs")
    listed = run(ground, "schedule", "list")
    assert schedule_id in listed.stdout
    assert "30 2 * * mon-fri Europe/Berlin" in listed.stdout
    assert len(json.loads(run(ground, "schedule", "list", "--json").stdout)) == 2

    with ground.file.changing() as schedules:
        schedules[schedule_id] = replace(schedules[schedule_id], status="disabled", consecutive_failures=3)
    assert "DISABLED after 3 failures" in run(ground, "schedule", "list").stdout
    enabled = run(ground, "schedule", "enable", schedule_id[:8])
    assert enabled.returncode == 0
    assert ground.schedule(schedule_id).status == "active"
    assert ground.schedule(schedule_id).next_run > system_clock()

    removed = run(ground, "schedule", "remove", schedule_id, "--json")
    assert json.loads(removed.stdout) == {"schedule_id": schedule_id, "removed": True}
    assert schedule_id not in ground.file.read()
    again = run(ground, "schedule", "remove", schedule_id)
    assert again.returncode == 2
    assert "there is no schedule" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["add", "--type", "fortnightly"], "fortnightly"),
        (["add", "--component", "databse"], "databse"),
        (["add", "--retention-days", "0"], "retention_days"),
        (["add", "--email", "nobody"], "notification_email"),
        (["add", "--timezone", "Mars"], "Mars"),
        (["enable", "nightly"], "nightly"),
        (["remove", ""], "no schedule"),
    ],
)
def test_what_is_wrong_is_refused_by_name(ground: Ground, arguments: list[str], named: str) -> None:
    done = run(ground, "schedule", *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not ground.file.path.exists()


def test_check_looks_at_the_schedules(ground: Ground) -> None:
    def looked() -> list[tuple[str, str]]:
        found = json.loads(run(ground, "check", "--json").stdout)
        return [(known["state"], known["detail"]) for known in found if known["subject"] == "schedules"]

    assert looked() == []
    added = run(ground, "schedule", "add", "--type", "daily", "--json")
    schedule = ground.schedule(json.loads(added.stdout)["schedule_id"])
    assert looked() == [("ok", f"1, the next one is due at {timestamp(schedule.next_run)} UTC")]
    late = replace(schedule, next_run=schedule.next_run - timedelta(days=2))
    for changed, state, told in (
        (late, "warning", "is a `holdfast scheduler` at work?"),
        (replace(late, started_at=late.next_run), "warning", "is a `holdfast scheduler` at work?"),
        (replace(late, started_at=system_clock().replace(microsecond=0)), "ok", "the next one is due"),
        (
            replace(schedule, status="disabled", consecutive_failures=3),
            "warning",
            "disabled after 3 failures",
        ),
    ):
        with ground.file.changing() as schedules:
            schedules[schedule.schedule_id] = changed
        [(found, detail)] = looked()
        assert found == state
        assert told in detail
    ground.file.path.write_text("{")
    [(found, detail)] = looked()
    assert found == "FAILED"
    assert f"{ground.file.path}, line 1" in detail


def test_a_schedule_that_outruns_the_checks_is_told_so(ground: Ground) -> None:
    hint = "A scheduler looks every 5 minutes"
    assert hint in run(ground, "schedule", "add", "--type", "* * * * *").stderr
    assert hint not in run(ground, "schedule", "add", "--type", "*/5 * * * *").stderr


def test_expire_gives_a_reason_for_each(ground: Ground) -> None:
    ground.add(schedule_type="monthly")
    run(ground, "scheduler", "--once")
    told = run(ground, "expire", "--dry-run")
    [made] = ground.backups()
    assert made.backup_id in told.stdout
    assert "less than a day old, kept for 30" in told.stdout


def test_expire_warns_where_the_schedules_cannot_be_read(ground: Ground) -> None:
    ground.service.back_up()
    ground.file.path.write_text("{")
    told = run(ground, "expire")
    assert told.returncode == 3
    assert (
        f"warning: what schedules have made is kept, for nobody can tell for how long: {ground.file.path}"
        in (told.stderr)
    )


def test_the_commands_need_no_scheduler_to_be_at_rest(ground: Ground) -> None:
    ground.add(schedule_type="monthly")
    hang_before_backups(ground)
    with started(ground, "scheduler", until="hanging") as scheduler:
        assert run(ground, "schedule", "add").returncode == 0
        assert "at work since" in run(ground, "schedule", "list").stdout
        scheduler.send_signal(signal.SIGTERM)
        scheduler.communicate(timeout=IN_TIME)
    assert len(ground.file.read()) == 2
