"""When a schedule is due. Pure: the present is handed in."""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

LINES = {
    "hourly": "0 * * * *",
    "daily": "0 2 * * *",
    "weekly": "0 2 * * SUN",
    "monthly": "0 2 1 * *",
}
"""The contract's types, and hourly, as cron lines."""

_CRON = re.compile(r"[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4}")
_LONGEST = 200
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")


def parse_zone(name: str) -> tzinfo:
    """A time zone by its name in the IANA database. Raises ValueError for what is none there."""
    if name == "UTC":
        return UTC
    # The name becomes a path below the database's directory.
    if len(name) > _LONGEST or not _ZONE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a time zone")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"{name!r} is not the name of a time zone") from error


def next_due(schedule_type: str, timezone: str, after: datetime) -> datetime:
    """The first moment after `after` at which a schedule is due, in UTC.

    `schedule_type` is ``hourly`` (minute 0), ``daily``, ``weekly`` (Sunday), ``monthly`` (the 1st), these three at
    02:00, or the five fields of a cron line as cron(5) has them; all by the clock on the wall in `timezone`. Where
    that clock is put forward, what it leaps over is due right after; where it is put back, nothing is due twice.
    Only a line whose hours are ``*`` goes by time that passes: it has the repeated hour twice.

    Raises ValueError for anything else, and for a line that fits no day of the next 50 years.
    """
    zone = parse_zone(timezone)
    line = LINES.get(schedule_type, schedule_type)
    if len(line) > _LONGEST or not _CRON.fullmatch(line):
        raise ValueError(f"{schedule_type!r} is no type of schedule, and no cron line")
    try:
        moments = CronSim(_by_the_wall(line), after.astimezone(zone))
        for moment in moments:
            # In the hour that comes twice cronsim goes by the first one, which may have passed.
            if moment.astimezone(UTC) > after:
                return moment.astimezone(UTC)
    except CronSimError as error:
        raise ValueError(f"{schedule_type!r} is no cron line: {error}") from error
    except OverflowError:
        pass
    raise ValueError(f"{schedule_type!r} fits no day of the next 50 years")


def _by_the_wall(line: str) -> str:
    """Spells stars out, for cronsim takes a line whose minutes or hours begin with one to go by time that passes:
    ``*/30 2 * * *`` would not be due at all on the day that has no such hour."""
    minute, hour, *rest = line.split()
    if hour == "*":
        return line
    if minute.startswith("*"):
        minute = "0-59" + minute[1:]
    if hour.startswith("*"):
        hour = "0-23" + hour[1:]
    return " ".join((minute, hour, *rest))
