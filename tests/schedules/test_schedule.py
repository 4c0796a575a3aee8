from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast.config import load_settings
from holdfast.errors import ConfigError
from holdfast.schedules import CONFIG_KEYS, FAILURES_ALLOWED, Schedule, make_schedule

NOW = datetime(2024, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "service.db")) as connection:
        connection.execute("CREATE TABLE sample (id)")
    return tmp_path


def make(root: Path, config: Any, **environ: str) -> Schedule:
    return make_schedule(config, load_settings(root, environ), schedule_id="nightly", now=NOW)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_what_is_not_said_is_as_in_the_settings(root: Path) -> None:
    (root / "holdfast.toml").write_text('[backup]\nschedule = "weekly"\ninclude_logs = true\n')
    schedule = make(root, {}, BACKUP_RETENTION_DAYS="7")
    assert schedule == Schedule(
        schedule_id="nightly",
        schedule_type="weekly",
        components=("database", "models", "config", "logs"),
        retention_days=7,
        next_run=at("2024-01-07T02:00:00"),
        status="active",
        created_at=at("2024-01-01T00:00:00"),
        include_logs=True,
        default_components=True,
    )


def test_the_includes_say_the_components_unless_these_are_named(root: Path) -> None:
    assert make(root, {"include_models": False, "include_logs": True}).components == (
        "database",
        "config",
        "logs",
    )
    named = make(root, {"components": ["models", "database"], "include_models": False})
    assert (named.components, named.default_components) == (("database", "models"), False)


def test_a_service_without_a_database_gets_a_schedule_without_one(tmp_path: Path) -> None:
    assert make(tmp_path, {}).components == ("models", "config")
    with pytest.raises(ConfigError, match="includes nothing"):
        make(tmp_path, {"include_models": False, "include_config": False})


def test_an_unknown_key_is_refused_with_the_nearest_one(root: Path) -> None:
    with pytest.raises(ConfigError, match="'retention_day'") as refused:
        make(root, {"retention_day": 7})
    assert refused.value.hint == "Did you mean retention_days?"
    with pytest.raises(ConfigError) as refused:
        make(root, {"zzz": 7})
    assert all(key in refused.value.hint for key in CONFIG_KEYS)


@pytest.mark.parametrize(
    "key", ["hooks", "command", "ping_url", "drill_command", "apprise", "status", "next_run"]
)
def test_commands_urls_and_what_is_ours_to_say_are_no_keys(root: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="is no key of a schedule"):
        make(root, {key: "x"})


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("schedule_type", "fortnightly", "hourly, daily, weekly, monthly"),
        ("schedule_type", "0 0 30 2 *", "cron line"),
        ("schedule_type", 5, "cron line"),
        ("components", "database", "a list of components"),
        ("components", [], "a list of components"),
        ("components", ["databse"], "database, models, config, logs"),
        ("components", [["database"]], "a list of components"),
        ("retention_days", 0, "from 1 to 1000000"),
        ("retention_days", -3, "from 1 to 1000000"),
        ("retention_days", True, "whole number of days"),
        ("retention_days", 1.5, "whole number of days"),
        ("retention_days", "30", "whole number of days"),
        ("retention_days", 10**30, "from 1 to 1000000"),
        ("include_logs", "yes", "true or false"),
        ("include_logs", 1, "true or false"),
        ("notification_email", "nobody", "one e-mail address"),
        ("notification_email", "a@example.com\nBcc: b@example.com", "one e-mail address"),
        ("notification_email", "a@example.com, b@example.com", "one e-mail address"),
        ("notification_email", ["a@example.com"], "one e-mail address"),
        ("backup_type", "differential", "one of full, incremental"),
        ("backup_type", ["full"], "one of full, incremental"),
        ("timezone", "Europe/Nowhere", "time zone"),
        ("timezone", "../../etc/passwd", "time zone"),
        ("drill", "hourly", "one of none, daily, weekly, monthly"),
    ],
)
def test_a_value_that_is_none_is_refused_with_what_it_may_be(
    root: Path, key: str, value: Any, rule: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        make(root, {key: value})
    assert str(refused.value).startswith(f"{key} is ")
    assert rule in str(refused.value)


@pytest.mark.parametrize("config", [None, "daily", ["daily"], 5])
def test_what_is_no_dictionary_is_refused(root: Path, config: Any) -> None:
    with pytest.raises(ConfigError, match="a schedule is a dictionary"):
        make(root, config)


# What becomes of it


def nightly(**changes: Any) -> Schedule:
    usual: dict[str, Any] = {
        "schedule_id": "nightly",
        "schedule_type": "daily",
        "components": ("database",),
        "retention_days": 30,
        "next_run": at("2024-01-02T02:00:00"),
        "status": "active",
        "created_at": at("2024-01-01T00:00:00"),
    }
    return Schedule(**{**usual, **changes})


def test_it_is_due_from_its_time_on_unless_it_is_disabled() -> None:
    assert not nightly().is_due(at("2024-01-02T01:59:59"))
    assert nightly().is_due(at("2024-01-02T02:00:00"))
    assert nightly().is_due(at("2024-03-01T00:00:00"))
    assert not nightly(status="disabled").is_due(at("2024-03-01T00:00:00"))


def test_what_was_missed_runs_once() -> None:
    back = at("2024-02-10T09:30:00")
    after = nightly().begun(back).succeeded()
    assert after.next_run == at("2024-02-11T02:00:00")
    assert (after.last_run, after.last_status, after.consecutive_failures) == (back, "success", 0)
    assert not after.is_due(back)


def test_a_run_that_begins_before_its_time_leaves_that_as_it_is() -> None:
    after = nightly().begun(at("2024-01-01T12:00:00")).succeeded()
    assert after.next_run == at("2024-01-02T02:00:00")


def test_what_became_due_while_a_run_was_at_work_runs_after_it() -> None:
    hourly = nightly(schedule_type="hourly").begun(at("2024-01-02T02:00:00")).succeeded()
    assert hourly.is_due(at("2024-01-02T03:10:00"))


def test_a_clock_set_back_runs_nothing_again_and_one_set_forward_skips_nothing() -> None:
    ran = nightly().begun(at("2024-01-02T02:00:00")).succeeded()
    for back in (timedelta(minutes=1), timedelta(hours=3), timedelta(days=400)):
        assert not ran.is_due(at("2024-01-02T02:00:00") - back)
    assert ran.is_due(at("2024-01-02T02:00:00") + timedelta(days=400))
    assert ran.enabled(at("2023-01-01T00:00:00")).next_run == at("2023-01-01T02:00:00")


def test_three_failures_in_a_row_disable_it_and_a_success_begins_the_count_anew() -> None:
    schedule = nightly()
    for count in range(1, FAILURES_ALLOWED):
        schedule = schedule.begun(schedule.next_run).failed()
        assert (schedule.consecutive_failures, schedule.status) == (count, "active")
    assert schedule.begun(schedule.next_run).succeeded().consecutive_failures == 0
    disabled = schedule.begun(schedule.next_run).failed()
    assert (disabled.consecutive_failures, disabled.status, disabled.last_status) == (3, "disabled", "failed")
    enabled = disabled.enabled(at("2024-06-01T12:00:00"))
    assert (enabled.consecutive_failures, enabled.status) == (0, "active")
    assert enabled.next_run == at("2024-06-02T02:00:00")


def test_an_interrupted_run_is_no_failure_and_stays_due() -> None:
    due = nightly(consecutive_failures=2)
    begun = due.begun(at("2024-01-02T02:00:00"))
    after = begun.interrupted()
    assert (after.last_status, after.consecutive_failures, after.status) == ("interrupted", 2, "active")
    assert after.next_run == due.next_run
    assert begun.put_off() == due


def test_a_run_that_was_killed_shows_when_the_next_one_begins() -> None:
    killed = nightly().begun(at("2024-01-02T02:00:00"))
    assert killed.is_due(at("2024-01-02T02:05:00"))
    again = killed.begun(at("2024-01-02T02:05:00"))
    assert (again.last_run, again.last_status, again.attempts) == (
        at("2024-01-02T02:00:00"),
        "interrupted",
        2,
    )


@pytest.mark.parametrize(
    ("period", "last", "now", "due"),
    [
        ("none", None, "2024-01-01T00:00:00", False),
        ("weekly", None, "2024-01-01T00:00:00", True),
        ("daily", "2024-01-01T23:59:59", "2024-01-02T00:00:00", True),
        ("daily", "2024-01-01T00:00:00", "2024-01-01T23:59:59", False),
        ("weekly", "2024-12-30T02:00:00", "2025-01-05T02:00:00", False),
        ("weekly", "2024-12-29T02:00:00", "2024-12-30T02:00:00", True),
        ("monthly", "2024-01-31T02:00:00", "2024-02-01T02:00:00", True),
        ("monthly", "2024-01-01T02:00:00", "2024-01-31T02:00:00", False),
        ("daily", "2024-01-05T02:00:00", "2024-01-02T02:00:00", False),
    ],
)
def test_each_period_has_one_drill(period: Any, last: str | None, now: str, due: bool) -> None:
    schedule = nightly(drill=period, last_drill=at(last) if last else None)
    assert schedule.drill_is_due(at(now)) is due
