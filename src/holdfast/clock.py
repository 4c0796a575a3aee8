"""The one place where the time of day is read. Everything else is handed a `Clock`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the present moment, aware, in UTC."""


def system_clock() -> datetime:
    """The machine's own clock."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """A moment as the contract writes it: UTC, to the second, without a zone: ``2024-01-01T02:00:00``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_timestamp(text: str) -> datetime:
    """The inverse of `timestamp`. Raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)  # a tenth of the time that strptime takes
    if moment.tzinfo is not None or moment.isoformat() != text:
        raise ValueError(f"{text!r} is not a time as we write it")
    return moment.replace(tzinfo=UTC)
