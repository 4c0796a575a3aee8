"""What each field of a schedule may be."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from holdfast.clock import parse_timestamp
from holdfast.config import is_email_address
from holdfast.errors import UsageError
from holdfast.model import COMPONENTS, Component, parse_components
from holdfast.schedules._due import LINES, next_due, parse_zone

Status = Literal["active", "disabled"]
LastStatus = Literal["success", "failed", "interrupted"]
ScheduledType = Literal["full", "incremental"]
DrillPeriod = Literal["none", "daily", "weekly", "monthly"]

_LARGEST = 1_000_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def parse_field(key: str, value: object) -> Any:
    """A field of a schedule, from plain JSON. Raises ValueError, whose words go on where "it must" leaves off;
    KeyError for what is no field."""
    return _RULES[key](value)


def _schedule_id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError("be an id of at most 64 letters, digits, '-' and '_'")
    return value


def _schedule_type(value: object) -> str:
    try:
        if isinstance(value, str):
            next_due(value, "UTC", datetime(2024, 1, 1, tzinfo=UTC))
            return value
    except ValueError:
        pass
    raise ValueError(f"be {', '.join(LINES)}, or the five fields of a cron line")


def _timezone(value: object) -> str:
    try:
        if isinstance(value, str):
            parse_zone(value)
            return value
    except ValueError:
        pass
    raise ValueError("be the name of a time zone, such as UTC or Europe/Berlin")


def _components(value: object) -> tuple[Component, ...]:
    try:
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            return parse_components(value)
    except UsageError:
        pass
    raise ValueError(f"be a list of components: {', '.join(COMPONENTS)}")


def _days(value: object) -> int:
    return _whole(value, 1, "days ")


def _count(value: object) -> int:
    return _whole(value, 0, "")


def _whole(value: object, least: int, of: str) -> int:
    if type(value) is not int or not least <= value <= _LARGEST:
        raise ValueError(f"be a whole number {'of ' if of else ''}{of}from {least} to {_LARGEST}")
    return value


def _switch(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("be true or false")
    return value


def _email(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and is_email_address(value)):
        raise ValueError("be one e-mail address, such as admin@example.com")
    return value


def _moment(value: object) -> datetime:
    try:
        if isinstance(value, str) and len(value) == 19:
            return parse_timestamp(value)
    except ValueError:
        pass
    raise ValueError("be a time in UTC, such as 2024-01-02T02:00:00")


def _moment_or_never(value: object) -> datetime | None:
    return None if value is None else _moment(value)


def _one_of(literal: Any, *, or_none: bool = False) -> Callable[[object], Any]:
    known = get_args(literal)

    def check(value: object) -> object:
        if (value is None and or_none) or (isinstance(value, str) and value in known):
            return value
        raise ValueError(f"be one of {', '.join(known)}")

    return check


_RULES: dict[str, Callable[[object], Any]] = {
    "schedule_id": _schedule_id,
    "schedule_type": _schedule_type,
    "components": _components,
    "retention_days": _days,
    "next_run": _moment,
    "status": _one_of(Status),
    "created_at": _moment,
    "last_run": _moment_or_never,
    "last_status": _one_of(LastStatus, or_none=True),
    "consecutive_failures": _count,
    "include_models": _switch,
    "include_config": _switch,
    "include_logs": _switch,
    "default_components": _switch,
    "notification_email": _email,
    "backup_type": _one_of(ScheduledType),
    "timezone": _timezone,
    "drill": _one_of(DrillPeriod),
    "last_drill": _moment_or_never,
    "started_at": _moment_or_never,
    "attempts": _count,
}
