"""What becomes of old backups, after a run and by hand."""

from __future__ import annotations

import json

import pytest

from holdfast.errors import LockHeld
from holdfast.events import ignore
from holdfast.jobs.expire import expire
from holdfast.jobs.pin import pin
from holdfast.manager import BackupManager
from scheduler.conftest import Ground


def run_on(ground: Ground, *days: int) -> None:
    for day in days:
        ground.at(f"2024-01-{day:02}T02:00:00")
        assert [outcome.kind for outcome in ground.scheduler().run_due()] == ["success"]


def times(ground: Ground) -> list[str]:
    return [made.timestamp[5:13] for made in ground.backups()]


def test_after_a_run_only_backups_of_that_schedule_go_and_by_its_own_days(ground: Ground) -> None:
    ground.service.back_up()  # by hand, on the first, at two
    ground.add(retention_days=2)
    run_on(ground, 2, 3, 4, 5, 6)
    assert times(ground) == ["01-06T02", "01-05T02", "01-04T02", "01-01T02"]
    assert [record["message"] for record in ground.history("expire")] == ["3 days old, limit 2"] * 2


def test_by_hand_each_goes_by_what_it_is_kept_by(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_RETENTION_DAYS", "3")
    schedule_id = ground.add(retention_days=30)
    run_on(ground, 2, 3)
    ground.at("2024-01-04T12:00:00")
    ground.service.back_up()
    ground.at("2024-01-20T12:00:00")
    ground.service.back_up()
    manager = BackupManager(root=ground.service.root, clock=ground.service.clock)
    assert manager.cleanup_old_backups() == 1
    assert times(ground) == ["01-20T12", "01-03T02", "01-02T02"]
    ground.scheduler().remove_schedule(schedule_id)
    assert manager.cleanup_old_backups() == 2
    assert times(ground) == ["01-20T12"]


def test_a_dry_run_gives_the_reason_for_each_and_drops_none(ground: Ground) -> None:
    schedule_id = ground.add(retention_days=1, schedule_type="hourly")
    by_hand = ground.service.back_up(components=["config"])
    ground.at("2024-01-01T12:00:00")
    ground.scheduler().run_due()
    ground.at("2024-01-04T12:00:00")
    ground.service.back_up()
    verdicts = expire(ground.service.installation(), ignore, dry_run=True)
    assert [(verdict.keep, verdict.reason) for verdict in verdicts] == [
        (True, "less than a day old, kept for 30"),
        (True, "last good backup of its schedule"),
        (True, "3 days old, kept for 30"),
    ]
    assert [verdict.backup.schedule_id for verdict in verdicts] == [None, schedule_id, None]
    assert by_hand in ground.backups()


def test_keep_rules_of_the_settings_decide_instead_of_days(ground: Ground) -> None:
    (ground.service.root / "holdfast.toml").write_text("[retention]\nlast = 1\nweekly = 2\n")
    ground.add(retention_days=1)
    run_on(ground, *range(2, 12))
    # January 7 is a Sunday.
    assert times(ground) == ["01-11T02", "01-07T02"]


def test_chains_and_pins_are_kept(ground: Ground) -> None:
    full = ground.service.back_up()
    ground.add(retention_days=1, backup_type="incremental")
    run_on(ground, 2)
    pinned = ground.backups()[0]
    pin(ground.service.installation(), pinned.backup_id, pinned=True)
    run_on(ground, 3, 4, 5, 6)
    assert times(ground) == ["01-06T02", "01-05T02", "01-02T02", "01-01T02"]
    assert {made.parent for made in ground.backups()[:-1]} == {full.backup_id}


def test_while_a_backup_is_read_none_is_dropped_and_the_run_is_no_failure(ground: Ground) -> None:
    schedule_id = ground.add(retention_days=1)
    run_on(ground, 2, 3)
    with ground.service.installation().repository.lent():
        run_on(ground, 8)
    assert len(ground.backups()) == 3
    assert any("no old backups are dropped" in warning for warning in ground.warnings)
    assert ground.schedule(schedule_id).last_status == "success"
    run_on(ground, 9)
    assert times(ground) == ["01-09T02", "01-08T02"]


@pytest.mark.parametrize("format_", ["archive", "dedup"])
def test_nothing_is_pinned_while_metadata_is_written_anew(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    """What is written last would take back what the other has written: the pin, or the checksum under a new key."""
    monkeypatch.setenv("BACKUP_FORMAT", format_)
    made = ground.service.back_up()
    with ground.service.installation().repository.expiring(), pytest.raises(LockHeld):
        pin(ground.service.installation(), made.backup_id, pinned=True)
    with ground.service.installation().repository.lent():
        pin(ground.service.installation(), made.backup_id, pinned=True)
    assert [known.pinned for known in ground.backups()] == [True]


def test_while_the_clock_is_behind_the_newest_backup_none_is_dropped(ground: Ground) -> None:
    ground.add(retention_days=1)
    run_on(ground, 2, 3)
    ground.at("2030-01-01T00:00:00")
    ground.service.back_up()
    run_on(ground, 20)
    assert len(ground.backups()) == 4


def test_also_after_a_run_that_failed_old_backups_go_but_for_the_last_good(ground: Ground) -> None:
    ground.add(retention_days=2)
    run_on(ground, 2, 3)
    ground.break_database()
    ground.at("2024-01-10T02:00:00")
    assert [outcome.kind for outcome in ground.scheduler().run_due()] == ["failed"]
    assert times(ground) == ["01-03T02"]


def test_where_schedules_json_is_broken_what_schedules_have_made_stays(ground: Ground) -> None:
    ground.add(retention_days=1)
    run_on(ground, 2)
    ground.at("2024-01-03T12:00:00")
    ground.service.back_up()
    ground.at("2024-06-01T12:00:00")
    ground.service.back_up()
    ground.file.path.write_text(json.dumps({"nightly": {}}))
    verdicts = expire(ground.service.installation(), ground.events.append)
    assert [verdict.reason for verdict in verdicts] == [
        "less than a day old, kept for 30",
        "150 days old, limit 30",
        "of a schedule, and the schedules cannot be read",
    ]
    assert len(ground.backups()) == 2
    assert any(str(ground.file.path) in warning for warning in ground.warnings)
