"""Drills of a schedule: the real ones, when they are due, and what is told of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import LockHeld
from holdfast.events import DrillFailed, DrillFinished, RunFailed
from holdfast.jobs import drill as drills
from holdfast.jobs.drill import rehearse
from holdfast.scheduler import Outcome
from scheduler.conftest import Ground

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))


def kinds(outcomes: list[Outcome]) -> list[str]:
    return [outcome.kind for outcome in outcomes]


def edit(ground: Ground, schedule_id: str, **changes: Any) -> None:
    """As somebody does with an editor."""
    schedules = json.loads(ground.file.path.read_text())
    schedules[schedule_id] |= changes
    ground.file.path.write_text(json.dumps(schedules))


@pytest.mark.parametrize(
    ("period", "days"),
    [("daily", [2, 3, 4, 5, 6, 7, 8, 9]), ("weekly", [2, 8]), ("monthly", [2]), ("none", [])],
)
def test_the_first_backup_of_each_period_is_rehearsed_also_where_a_hand_wrote_it(
    ground: Ground, period: str, days: list[int]
) -> None:
    schedule_id = ground.add()
    edit(ground, schedule_id, drill=period)
    for day in range(2, 10):
        ground.at(f"2024-01-{day:02}T02:00:00")
        assert kinds(ground.scheduler(drill=rehearse).run_due()) == ["success"]
    expected = [f"2024-01-{day:02}T02:00:00" for day in days]
    records = ground.history("drill")
    assert [(record["time"], record["status"]) for record in records] == [(at, "success") for at in expected]
    assert ground.schedule(schedule_id).to_json()["last_drill"] == (expected[-1] if expected else None)


def test_who_is_told_of_a_schedule_is_told_of_its_drills(ground: Ground) -> None:
    scheduler = ground.scheduler(drill=rehearse)
    scheduler.schedule_backup({"drill": "daily", "notification_email": "ops@example.com"})
    ground.at("2024-01-02T02:00:00")
    scheduler.run_due()
    [finished] = ground.told(DrillFinished)
    assert (finished.backup_id, finished.email) == ("full_20240102_020000", "ops@example.com")
    (ground.service.root / "models/bad.gguf").write_bytes(b"no model")
    ground.at("2024-01-03T02:00:00")
    assert kinds(scheduler.run_due()) == ["success"]
    [failed] = ground.told(DrillFailed)
    assert (failed.backup_id, failed.email) == ("full_20240103_020000", "ops@example.com")
    assert "bad.gguf is not a whole model file" in failed.error
    assert [event.verb for event in ground.told(RunFailed)] == ["drill"]
    [schedule] = ground.file.read().values()
    assert schedule.consecutive_failures == 0
    assert ground.history("drill")[-1]["status"] == "failed"


def test_a_defect_of_a_drill_stops_no_other_schedule(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("postgresql://user:password@host")

    monkeypatch.setattr(drills, "locate", break_down)
    scheduler = ground.scheduler(drill=rehearse)
    scheduler.schedule_backup({"drill": "daily"})
    scheduler.schedule_backup({})
    ground.at("2024-01-02T02:00:00")
    assert kinds(scheduler.run_due()) == ["success", "success"]
    [failed] = ground.told(DrillFailed)
    assert "unexpected ZeroDivisionError" in failed.error
    assert "password" not in failed.error


def test_a_drill_that_another_restore_keeps_from_running_is_due_again(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*arguments: object, **options: object) -> None:
        raise LockHeld("another run is at work")

    scheduler = ground.scheduler(drill=rehearse)
    schedule_id = scheduler.schedule_backup({"drill": "monthly"})
    with monkeypatch.context() as patch:
        patch.setattr(drills, "check_signature", held)
        ground.at("2024-01-02T02:00:00")
        assert kinds(scheduler.run_due()) == ["success"]
    assert any("the drill waits for the next run" in warning for warning in ground.warnings)
    assert ground.schedule(schedule_id).last_drill is None
    assert ground.told(DrillFailed) == []
    ground.at("2024-01-03T02:00:00")
    scheduler.run_due()
    assert ground.schedule(schedule_id).last_drill is not None


def test_a_scheduler_without_a_drill_tells_that_one_is_asked_for(ground: Ground) -> None:
    schedule_id = ground.add()
    edit(ground, schedule_id, drill="weekly")
    ground.at("2024-01-02T02:00:00")
    assert kinds(ground.scheduler().run_due()) == ["success"]
    assert any("asks for a drill (weekly)" in warning for warning in ground.warnings)
    assert ground.schedule(schedule_id).last_drill is None


def run(ground: Ground, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *words],
        cwd=ground.service.root,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "backend/ml-service")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_program_and_the_service_make_schedules_with_drills_and_the_program_runs_them(
    ground: Ground,
) -> None:
    added = run(ground, "-m", "holdfast", "schedule", "add", "--drill", "weekly")
    assert added.returncode == 0, added.stderr
    made = run(
        ground,
        "-c",
        "from app.utils.backup import backup_scheduler; backup_scheduler.schedule_backup({'drill': 'daily'})",
    )
    assert made.returncode == 0, made.stderr
    for schedule_id in ground.file.read():
        edit(ground, schedule_id, next_run="2024-01-01T02:00:00")
    done = run(ground, "-m", "holdfast", "scheduler", "--once")
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in ground.history("drill")] == ["success", "success"]
    assert all(schedule.last_drill is not None for schedule in ground.file.read().values())
