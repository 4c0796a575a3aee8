"""What the records of the history add up to. Pure, but for `History`, which reads them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdfast.clock import parse_timestamp
from holdfast.durable import explained

BUCKETS = (10, 30, 60, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)
"""Upper bounds of a backup's duration, in seconds. That of 30 minutes is what the alert compares with."""

RESULTS = ("success", "failed")

_INTERRUPTED = {"Interrupted", "KeyboardInterrupt", "SystemExit", "GeneratorExit"}
_PUT_OFF = _INTERRUPTED | {"LockHeld"}
"""Another run was at work: this one follows it."""
_NOT_BEGUN = _INTERRUPTED | {"ConfirmationRequired", "UsageError"}
"""Nobody agreed to the restore, or it was asked for wrongly: nothing failed."""
_NOT_REHEARSED = _PUT_OFF | {"UsageError"}
_LONGEST_LINE = 1 << 20
"""Bytes. No record is longer."""
_LARGEST = 1 << 60


class Numbers:
    """What happened so far. Of a size that does not depend on how much that is."""

    def __init__(self) -> None:
        self.successes = 0
        self.failures = 0
        """Runs that a person or the system stopped are none."""
        self.failures_in_row = 0
        """Of the newest runs, whoever started them."""
        self.durations = [0] * (len(BUCKETS) + 1)
        """Of successful runs: how many of them per bucket; the last one has no bound."""
        self.duration_sum = 0.0
        self.last_duration: float | None = None
        self.last_size: int | None = None
        """Bytes of the last good backup."""
        self.last_success: float | None = None
        """When the last good full or incremental backup was finished, in seconds since 1970."""
        self.source_bytes = 0
        """Content that successful backups stand for."""
        self.stored_bytes = 0
        """What they took in the repository."""
        self.restores = dict.fromkeys(RESULTS, 0)
        self.verifications = dict.fromkeys(RESULTS, 0)
        self.drills = dict.fromkeys(RESULTS, 0)
        self.last_drill_duration: float | None = None
        """Of the last good one, in seconds."""

    def add(self, record: object) -> None:
        """Counts a record of the history. What is not of its form is passed over."""
        if not isinstance(record, dict):
            return
        verb, result = record.get("verb"), record.get("status")
        if result not in RESULTS:
            return
        error = str(record.get("error"))
        if verb == "backup":
            if result == "success":
                self._add_success(record)
            elif error not in _PUT_OFF:
                self.failures += 1
                self.failures_in_row += 1
        elif verb == "restore" and error not in _NOT_BEGUN:
            self.restores[result] += 1
        elif verb == "verify" and error not in _INTERRUPTED:
            self.verifications[result] += 1
        elif verb == "drill" and error not in _NOT_REHEARSED:
            self.drills[result] += 1
            if result == "success":
                seconds = _seconds(record.get("duration_seconds"))
                self.last_drill_duration = self.last_drill_duration if seconds is None else seconds

    def _add_success(self, record: dict[str, Any]) -> None:
        self.successes += 1
        self.failures_in_row = 0
        self.source_bytes += _whole(record.get("source_bytes")) or 0
        size = _whole(record.get("size_bytes"))
        if size is not None:
            self.stored_bytes += size
            self.last_size = size
        seconds = _seconds(record.get("duration_seconds"))
        if seconds is not None:
            bucket = next((at for at, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
            self.durations[bucket] += 1
            self.duration_sum += seconds
            self.last_duration = seconds
        moment = _moment(record.get("time"))
        if moment is not None and record.get("type") in ("full", "incremental"):
            self.last_success = moment


def derive(records: Iterable[object]) -> Numbers:
    """What all records together add up to."""
    numbers = Numbers()
    for record in records:
        numbers.add(record)
    return numbers


class History:
    """A history file, of which each look reads what came since the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = Numbers()
        self._file: tuple[int, int] | None = None
        self._offset = 0

    def read(self) -> Numbers:
        """What it adds up to now. Raises StorageError when it cannot be read."""
        with explained(f"cannot read {self._path}"):
            try:
                fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._begin(None)
                return self._numbers
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) != self._file or status.st_size < self._offset:
                    self._begin((status.st_dev, status.st_ino))
                file.seek(self._offset)
                # A record is on its way until its line has an end.
                while (line := file.readline(_LONGEST_LINE)).endswith(b"\n") or len(line) == _LONGEST_LINE:
                    self._offset += len(line)
                    self._add(line)
        return self._numbers

    def _begin(self, file: tuple[int, int] | None) -> None:
        self._numbers, self._file, self._offset = Numbers(), file, 0

    def _add(self, line: bytes) -> None:
        try:
            self._numbers.add(json.loads(line))
        except (ValueError, RecursionError):
            return  # A crash has cut it short.


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST else None


def _seconds(value: object) -> float | None:
    if type(value) not in (int, float):
        return None
    seconds = float(value)  # type: ignore[arg-type]  # one of the two
    return seconds if math.isfinite(seconds) and 0 <= seconds < _LARGEST else None


def _moment(value: object) -> float | None:
    try:
        return parse_timestamp(value).timestamp() if isinstance(value, str) else None
    except ValueError:
        return None
