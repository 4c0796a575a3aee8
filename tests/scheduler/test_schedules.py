"""Schedules through the API: made, listed, removed, due."""

from __future__ import annotations

import json
import re

import pytest

from holdfast.errors import ConfigError, UsageError
from scheduler.conftest import Ground


def test_a_schedule_is_made_listed_and_removed(ground: Ground) -> None:
    scheduler = ground.scheduler()
    assert scheduler.schedules == {}
    schedule_id = scheduler.schedule_backup({"components": ["models", "database"], "retention_days": 7})
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", schedule_id)
    schedule = scheduler.schedules[schedule_id]
    assert schedule["schedule_type"] == "daily"
    assert schedule["components"] == ["database", "models"]
    assert schedule["next_run"] == "2024-01-02T02:00:00"
    assert ground.scheduler().schedules == {schedule_id: schedule}
    assert json.loads(ground.file.path.read_text()) == {schedule_id: schedule}
    assert scheduler.remove_schedule(schedule_id) is True
    assert scheduler.remove_schedule(schedule_id) is False
    assert scheduler.schedules == {}


def test_a_wrong_one_is_refused_and_nothing_is_written(ground: Ground) -> None:
    with pytest.raises(ConfigError, match="schedule_tipe"):
        ground.scheduler().schedule_backup({"schedule_tipe": "daily"})
    with pytest.raises(ConfigError, match="no drill to run"):
        ground.scheduler().schedule_backup({"drill": "weekly"})
    assert not ground.service.backups.exists()


def test_a_copy_that_is_changed_changes_nothing(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.scheduler().schedules[schedule_id]["status"] = "disabled"
    assert ground.schedule(schedule_id).status == "active"


def test_the_ones_that_are_due_come_in_the_order_of_their_times(ground: Ground) -> None:
    daily, hourly, weekly = (ground.add(schedule_type=kind) for kind in ("daily", "hourly", "weekly"))
    scheduler = ground.scheduler()
    assert scheduler.get_due_schedules() == []
    ground.at("2024-01-02T02:00:00")
    due = scheduler.get_due_schedules()
    assert [schedule["schedule_id"] for schedule in due] == [hourly, daily]
    assert due[0] == scheduler.schedules[hourly]
    ground.at("2024-01-07T02:00:00")
    assert len(scheduler.get_due_schedules()) == 3
    assert weekly in [schedule["schedule_id"] for schedule in scheduler.get_due_schedules()]


def test_a_schedule_that_is_not_there_cannot_be_enabled_or_run(ground: Ground) -> None:
    with pytest.raises(UsageError, match="there is no schedule nightly"):
        ground.scheduler().enable_schedule("nightly")
    with pytest.raises(UsageError, match="there is no schedule nightly"):
        ground.scheduler().execute_scheduled_backup("nightly")
    with pytest.raises(UsageError, match="this is no schedule"):
        ground.scheduler().execute_scheduled_backup({"schedule_id": "nightly"})


def test_a_broken_file_blocks_the_scheduler_by_name_and_line_and_is_left_as_it_is(ground: Ground) -> None:
    schedule_id = ground.add()
    broken = ground.file.path.read_text().replace('"active"', '"on"')
    ground.file.path.write_text(broken)
    scheduler = ground.scheduler()
    calls = (
        lambda: scheduler.schedules,
        scheduler.get_due_schedules,
        scheduler.run_due,
        scheduler.run_scheduler,
        lambda: scheduler.schedule_backup({}),
        lambda: scheduler.remove_schedule(schedule_id),
        lambda: scheduler.enable_schedule(schedule_id),
        lambda: scheduler.execute_scheduled_backup(schedule_id),
    )
    for call in calls:
        with pytest.raises(
            ConfigError, match=rf"{re.escape(str(ground.file.path))}, line 12: status is 'on'"
        ):
            call()
    assert ground.file.path.read_text() == broken


def test_a_broken_file_blocks_no_backup_by_hand_and_no_restore(ground: Ground) -> None:
    ground.add()
    ground.file.path.write_text("broken")
    metadata = ground.service.back_up()
    (ground.service.root / "models/a.bin").write_bytes(b"changed")
    ground.service.restore(metadata.backup_id)
    assert (ground.service.root / "models/a.bin").read_bytes() == b"live"
