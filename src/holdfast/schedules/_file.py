"""``schedules.json`` in the backup directory: the schedules by id, in the contract's format.

People edit it. What is not understood is refused with its line, and left as it is: nothing of it is run, and nothing
is written over it.
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields
from pathlib import Path

from holdfast.durable import explained, file_lock, make_private, replace_file
from holdfast.errors import ConfigError, LockHeld
from holdfast.schedules._due import next_due
from holdfast.schedules._json import Malformed, Member, members, parse
from holdfast.schedules._rules import parse_field
from holdfast.schedules._schedule import Schedule, nearest

NAME = "schedules.json"

_LIMIT = 1 << 20
_MOST = 1000
_PATIENCE = 10.0
"""Seconds. Nobody holds the lock for longer than it takes to read and write a small file."""
_PAUSE = 0.02
_HINT = "Correct it by hand; until then no schedule runs. Backups by hand and restores do not need it."

_FIELDS = tuple(item.name for item in fields(Schedule))
_REQUIRED = tuple(item.name for item in fields(Schedule) if item.default is MISSING)


class ScheduleFile:
    """The schedules of one backup directory."""

    def __init__(self, backup_dir: Path) -> None:
        self.path = backup_dir / NAME
        self._temp = backup_dir / "temp"

    def read(self) -> dict[str, Schedule]:
        """The schedules by id; none where there is no file.

        Raises ConfigError, with path and line, for a file that is broken; StorageError for one that the system does
        not let us read.
        """
        data = self._read()
        return {} if data is None else _Reader(self.path, data).schedules()

    @contextmanager
    def changing(self) -> Iterator[dict[str, Schedule]]:
        """The schedules, to be changed: what the dictionary holds in the end is written, whole and durably, where it
        differs. Others who want to change them wait meanwhile. Raises as `read` does; LockHeld after seconds."""
        with explained(f"cannot write to {self.path.parent}"):
            make_private(self._temp, self.path.parent)
        with self._locked():
            schedules = self.read()
            before = dict(schedules)
            yield schedules
            if schedules != before:
                self._write(schedules)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Held while a scheduled backup is made, by whatever scheduler. Raises LockHeld at once."""
        with explained(f"cannot write to {self.path.parent}"):
            make_private(self._temp, self.path.parent)
        with file_lock(self._temp / "scheduler.lock", what=f"{self.path.parent} (scheduler)"):
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + _PATIENCE
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(file_lock(self._temp / "schedules.lock", what=str(self.path)))
                    break
                except LockHeld:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_PAUSE)
            yield

    def _read(self) -> bytes | None:
        try:
            # Neither a link nor a fifo that somebody has put there is followed, or waited for.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ConfigError(f"{self.path} is a link, which is not followed", hint=_HINT) from None
            with explained(f"cannot read {self.path}"):
                raise
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"{self.path} is no regular file", hint=_HINT)
            with explained(f"cannot read {self.path}"):
                data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise ConfigError(f"{self.path} is longer than {_LIMIT} bytes", hint=_HINT)
        return data

    def _write(self, schedules: dict[str, Schedule]) -> None:
        plain = {schedule_id: schedule.to_json() for schedule_id, schedule in schedules.items()}
        data = json.dumps(plain, indent=2).encode() + b"\n"
        if len(schedules) > _MOST or len(data) > _LIMIT:
            raise ConfigError(
                f"{self.path} cannot hold more than {_MOST} schedules, and {_LIMIT} bytes",
                hint="Remove schedules that nobody needs: `holdfast schedule remove`.",
            )
        with explained(f"cannot write {self.path}"):
            # What a run that was killed has left. The repository sweeps its own, at other times than ours.
            for left in self._temp.glob(f"{NAME}.*.tmp"):
                left.unlink(missing_ok=True)
            replace_file(self.path, data, temporary=self._temp / f"{NAME}.{secrets.token_hex(4)}.tmp")


class _Reader:
    """Reads one file, and says where it is wrong."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        try:
            self._text = data.decode()
        except UnicodeDecodeError as error:
            raise self._refusal(data.count(b"\n", 0, error.start) + 1, "this is not UTF-8") from None

    def schedules(self) -> dict[str, Schedule]:
        """Also from a list of schedules, and from one alone, as the contract prints it."""
        try:
            return self._schedules()
        except Malformed as error:
            raise self._refusal(error.line, f"this is not JSON as it should be: {error}") from None

    def _schedules(self) -> dict[str, Schedule]:
        value, offset = parse(self._text)
        line = self._text.count("\n", 0, offset) + 1
        if not isinstance(value, (dict, list)):
            raise self._refusal(line, "this is not an object with schedules")
        if isinstance(value, dict) and isinstance(value.get("schedule_id"), str):
            found = [Member(value["schedule_id"], value, line, offset)]
        else:
            found = list(members(self._text, offset))
        if len(found) > _MOST:
            raise self._refusal(line, f"there are {len(found)} schedules, more than {_MOST}")
        schedules: dict[str, Schedule] = {}
        for member in found:
            schedule = self._schedule(member)
            if isinstance(member.key, str) and member.key != schedule.schedule_id:
                raise self._refusal(
                    member.line, f"the schedule {member.key!r:.80} has the schedule_id {schedule.schedule_id}"
                )
            if schedule.schedule_id in schedules:
                raise self._refusal(member.line, f"the schedule {schedule.schedule_id} comes twice")
            schedules[schedule.schedule_id] = schedule
        return schedules

    def _schedule(self, member: Member) -> Schedule:
        if not isinstance(member.value, dict):
            raise self._refusal(member.line, f"{reprlib.repr(member.value)} is not a schedule")
        said = {}
        lines = {}
        for item in members(self._text, member.offset):
            key = str(item.key)
            if key not in _FIELDS:
                raise self._refusal(item.line, f"{key!r:.80} is no key of a schedule", nearest(key, _FIELDS))
            try:
                said[key] = parse_field(key, item.value)
            except ValueError as error:
                raise self._refusal(
                    item.line, f"{key} is {reprlib.repr(item.value)}: it must {error}"
                ) from None
            lines[key] = item.line
        missing = [key for key in _REQUIRED if key not in said]
        if missing:
            raise self._refusal(member.line, f"the schedule has no {', '.join(missing)}")
        schedule = Schedule(**said)
        try:
            next_due(schedule.schedule_type, schedule.timezone, schedule.next_run)
        except ValueError as error:
            raise self._refusal(lines["schedule_type"], str(error)) from None
        return schedule

    def _refusal(self, line: int, what: str, hint: str = "") -> ConfigError:
        return ConfigError(f"{self._path}, line {line}: {what}", hint=f"{hint} {_HINT}".strip())
