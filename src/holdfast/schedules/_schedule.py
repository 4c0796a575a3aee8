"""A schedule: what it says, what is refused, and what becomes of it when it runs."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from holdfast.clock import timestamp
from holdfast.config import Settings
from holdfast.errors import ConfigError
from holdfast.model import COMPONENTS, Component
from holdfast.schedules._due import next_due
from holdfast.schedules._rules import DrillPeriod, LastStatus, ScheduledType, Status, parse_field

CONFIG_KEYS = (
    "schedule_type",
    "components",
    "retention_days",
    "include_models",
    "include_config",
    "include_logs",
    "notification_email",
    "backup_type",
    "timezone",
    "drill",
)
"""What may be said of a new schedule."""

FAILURES_ALLOWED = 3
"""So many in a row disable a schedule. A due run that is cut off so often, by a crash each time, is a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is to be backed up when, and what became of it last. The contract's ten fields come first."""

    schedule_id: str
    schedule_type: str
    """``hourly``, ``daily``, ``weekly``, ``monthly``, or the five fields of a cron line."""
    components: tuple[Component, ...]
    retention_days: int
    """For the backups that it has made."""
    next_run: datetime
    status: Status
    created_at: datetime
    last_run: datetime | None = None
    """When the last run began that came to an end, or was interrupted."""
    last_status: LastStatus | None = None
    consecutive_failures: int = 0

    include_models: bool = True
    include_config: bool = True
    include_logs: bool = False
    default_components: bool = False
    """`components` are what the three above say, and what of it is not there is passed over."""
    notification_email: str | None = None
    backup_type: ScheduledType = "full"
    timezone: str = "UTC"
    drill: DrillPeriod = "none"
    """How often a backup that it has made is restored for a rehearsal."""
    last_drill: datetime | None = None
    started_at: datetime | None = None
    """When the run began that is at work; still there where it was killed."""
    attempts: int = 0
    """Runs begun for `next_run` that came to no end."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object in the contract's format."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    def is_due(self, now: datetime) -> bool:
        return self.status == "active" and self.next_run <= now

    def begun(self, now: datetime) -> Schedule:
        """A run begins. `next_run` stays as it is until the run has ended: who is killed meanwhile is due again."""
        cut_off = self.started_at is not None
        return replace(
            self,
            started_at=now,
            attempts=self.attempts + 1,
            last_run=self.started_at if cut_off else self.last_run,
            last_status="interrupted" if cut_off else self.last_status,
        )

    def succeeded(self) -> Schedule:
        return replace(self._ended("success"), consecutive_failures=0)

    def failed(self) -> Schedule:
        """The last of FAILURES_ALLOWED failures in a row disables it."""
        failures = self.consecutive_failures + 1
        return replace(
            self._ended("failed"),
            consecutive_failures=failures,
            status="disabled" if failures >= FAILURES_ALLOWED else self.status,
        )

    def interrupted(self) -> Schedule:
        """Somebody asked the run to stop: no failure, and due again as it was."""
        return replace(
            self,
            last_run=self.started_at,
            last_status="interrupted",
            started_at=None,
            attempts=self.attempts - 1,
        )

    def put_off(self) -> Schedule:
        """Another run was at work: as if this one had never begun."""
        return replace(self, started_at=None, attempts=self.attempts - 1)

    def enabled(self, now: datetime) -> Schedule:
        """Active, without failures, and next due from now on."""
        return replace(
            self,
            status="active",
            consecutive_failures=0,
            next_run=next_due(self.schedule_type, self.timezone, now),
            attempts=0,
        )

    def drill_is_due(self, now: datetime) -> bool:
        """Whether the present day, week or month has not had its drill yet."""
        if self.drill == "none":
            return False
        if self.last_drill is None:
            return True
        shape = {"daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m"}[self.drill]
        return now.strftime(shape) > self.last_drill.strftime(shape)

    def _ended(self, status: LastStatus) -> Schedule:
        """The next run is counted from the begin of this one: what became due meanwhile runs once. Where it began
        before it was due, it stays due."""
        assert self.started_at is not None
        return replace(
            self,
            last_run=self.started_at,
            last_status=status,
            next_run=next_due(self.schedule_type, self.timezone, self.started_at),
            started_at=None,
            attempts=0,
        )


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return timestamp(value)
    return list(value) if isinstance(value, tuple) else value


def make_schedule(
    config: Mapping[str, Any], settings: Settings, *, schedule_id: str, now: datetime
) -> Schedule:
    """A new schedule from what its maker says (`CONFIG_KEYS`); what is not said is as in the settings.

    Raises ConfigError, naming the key and what it may be.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"a schedule is a dictionary, and not {reprlib.repr(config)}")
    said: dict[str, Any] = {}
    for key, value in config.items():
        if key not in CONFIG_KEYS:
            raise ConfigError(f"{reprlib.repr(key)} is no key of a schedule", hint=nearest(key, CONFIG_KEYS))
        try:
            said[key] = parse_field(key, value)
        except ValueError as error:
            raise ConfigError(f"{key} is {reprlib.repr(value)}: it must {error}") from None
    for key in ("include_models", "include_config", "include_logs"):
        said.setdefault(key, getattr(settings, key))
    if "components" not in said:
        included = {
            "database": bool(settings.databases),
            "models": said["include_models"],
            "config": said["include_config"],
            "logs": said["include_logs"],
        }
        said["components"] = tuple(name for name in COMPONENTS if included[name])
        said["default_components"] = True
        if not said["components"]:
            raise ConfigError("the schedule includes nothing", hint="Name its components, or include some.")
    said.setdefault("schedule_type", settings.schedule)
    said.setdefault("retention_days", settings.retention_days)
    now = now.replace(microsecond=0)
    try:
        next_run = next_due(said["schedule_type"], said.get("timezone", "UTC"), now)
    except ValueError as error:
        raise ConfigError(f"schedule_type: {error}") from None
    return Schedule(schedule_id=schedule_id, next_run=next_run, status="active", created_at=now, **said)


def nearest(key: object, known: tuple[str, ...]) -> str:
    """A hint for who has written something else."""
    near = difflib.get_close_matches(str(key), known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
