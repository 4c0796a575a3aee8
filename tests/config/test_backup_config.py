from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from holdfast.config import BackupConfig
from holdfast.errors import ConfigError


def test_it_has_the_fields_of_the_contract_in_its_order_with_its_defaults() -> None:
    assert [(field.name, field.type, field.default) for field in dataclasses.fields(BackupConfig)] == [
        ("retention_days", "int", 30),
        ("compression_level", "int", 9),
        ("max_backup_size_gb", "float", 10.0),
        ("include_models", "bool", True),
        ("include_config", "bool", True),
        ("include_logs", "bool", False),
        ("encrypt_backups", "bool", True),
        ("backup_schedule", "str", "daily"),
    ]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("retention_days", 0, "1 to 1000000"),
        ("retention_days", True, "whole number of days"),
        ("retention_days", 10**30, "1 to 1000000"),
        ("retention_days", None, "1 to 1000000"),
        ("compression_level", -1, "0 to 9"),
        ("compression_level", 10, "0 to 9"),
        ("compression_level", 5.5, "0 to 9"),
        ("max_backup_size_gb", 0, "above 0"),
        ("max_backup_size_gb", -3.0, "above 0"),
        ("max_backup_size_gb", float("inf"), "above 0"),
        ("max_backup_size_gb", float("nan"), "above 0"),
        ("include_models", "maybe", "true or false"),
        ("encrypt_backups", 7, "true or false"),
        ("backup_schedule", "sometimes", "hourly, daily, weekly, monthly"),
        ("backup_schedule", "* * * *", "five fields"),
        ("backup_schedule", "* * * * * *", "five fields"),
        ("backup_schedule", "", "five fields"),
    ],
)
def test_what_is_not_allowed_is_refused_by_field_value_and_range(
    field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        BackupConfig(**{field: value})
    message = str(caught.value)
    assert f"BackupConfig.{field} is " in message
    assert (repr(value) if value != "" else "empty") in message
    assert allowed in message


@pytest.mark.parametrize(
    "schedule", ["hourly", "daily", "weekly", "monthly", "0 2 * * 1-5", "*/15 0,12 1 JAN SUN"]
)
def test_named_schedules_and_cron_lines_are_taken(schedule: str) -> None:
    assert BackupConfig(backup_schedule=schedule).backup_schedule == schedule


@pytest.mark.parametrize("level", [0, 9])
def test_the_ends_of_a_range_are_inside_it(level: int) -> None:
    assert BackupConfig(compression_level=level).compression_level == level
    assert BackupConfig(retention_days=1).retention_days == 1
