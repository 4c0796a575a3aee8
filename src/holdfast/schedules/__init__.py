"""What runs when: schedules, when each is due, and ``schedules.json``, which keeps them.

Nothing here runs anything: that is `holdfast.scheduler`. Retention asks for schedules as well, from below it.
"""

from __future__ import annotations

from holdfast.schedules._due import next_due
from holdfast.schedules._file import ScheduleFile
from holdfast.schedules._schedule import CONFIG_KEYS, FAILURES_ALLOWED, Schedule, make_schedule

__all__ = ["CONFIG_KEYS", "FAILURES_ALLOWED", "Schedule", "ScheduleFile", "make_schedule", "next_due"]
