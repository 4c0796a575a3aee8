"""The journal: one small JSON file that tells what a transaction does to live data, and how to take it back.

``restore.json`` in the state directory of a service::

    {"version": 1, "records": [{"run": "5f0c…", "verb": "restore", "subject": "full_20240101_020000",
      "moment": "2024-01-02T09:30:00", "phase": "kept", "places": ["/srv/.holdfast-5f0c…-0"],
      "swaps": [{"kind": "rename", "state": {…}}]}]}

It is replaced as a whole, atomically and durably, so it always tells of one moment. At most one record is at
work and at most one is kept; records that share a run share their places. Whoever can write here could have us
delete and rename anything, so a journal that is not ours alone, or names places that are none, is refused.
"""

from __future__ import annotations

import enum
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.clock import parse_timestamp
from holdfast.durable import explained, file_lock, replace_file, sync_directory
from holdfast.errors import JournalRefused, RestoreError
from holdfast.transaction._places import is_private, place_name

NAME = "restore.json"
_LOCK = "restore.lock"
_VERSION = 1
_RUN = re.compile(r"[0-9a-f]{16}")
_MAX_BYTES = 16 << 20


class Phase(enum.StrEnum):
    """How far a record has come. See `holdfast.transaction`."""

    STAGING = "staging"
    APPLYING = "applying"
    COMMITTED = "committed"
    KEPT = "kept"
    DISCARDING = "discarding"


@dataclass(slots=True)
class Record:
    """One restore or undo."""

    run: str
    verb: str
    subject: str
    moment: str
    """When it began, and once it is committed, when that was: a timestamp as `holdfast.clock` writes it."""
    phase: Phase
    places: list[str] = field(default_factory=list)
    swaps: list[dict[str, Any]] = field(default_factory=list)


class Journal:
    """The journal of one state directory. Only who holds its lock may write it."""

    def __init__(self, state_dir: Path) -> None:
        """Reads it. Raises JournalRefused."""
        self.path = state_dir / NAME
        self.records = _read(self.path)

    @classmethod
    @contextmanager
    def locked(cls, state_dir: Path) -> Iterator[Journal]:
        """The journal, while no other process uses it. Makes the directory where there is none.

        Raises LockHeld, JournalRefused.
        """
        with explained(f"cannot use {state_dir}"):
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(state_dir, state_dir.lstat(), stat.S_ISDIR)
        with file_lock(state_dir / _LOCK, what=str(state_dir)):
            for leftover in state_dir.glob(f".{NAME}.*.tmp"):
                leftover.unlink()
            yield cls(state_dir)

    def write(self) -> None:
        """Makes the records durable. Raises StorageError, NoSpace."""
        with explained(f"cannot write {self.path}"):
            if self.records:
                data = {"version": _VERSION, "records": [asdict(record) for record in self.records]}
                text = json.dumps(data, indent=1).encode("ascii")
                if len(text) > _MAX_BYTES:
                    raise RestoreError(f"what would have to be recorded in {self.path} is too much")
                replace_file(self.path, text)
            else:
                self.path.unlink(missing_ok=True)
                sync_directory(self.path.parent)

    def reload(self) -> None:
        """Forgets what was not written."""
        self.records = _read(self.path)

    def in_phase(self, *phases: Phase) -> list[Record]:
        return [record for record in self.records if record.phase in phases]

    @property
    def kept(self) -> Record | None:
        """What could be taken back."""
        return next(iter(self.in_phase(Phase.COMMITTED, Phase.KEPT)), None)

    def release(self, record: Record) -> None:
        """Nothing needs this record's state any more; its places only go if no other record has them."""
        if any(other.run == record.run for other in self.records if other is not record):
            self.records.remove(record)
        else:
            record.phase = Phase.DISCARDING


def _read(path: Path) -> list[Record]:
    try:
        directory = path.parent.lstat()
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise JournalRefused(
            f"{path} cannot be read: {error.strerror}",
            hint="Run as the user who restored, or make it yours alone.",
        ) from error
    with os.fdopen(fd, "rb") as file:
        _check_private(path.parent, directory, stat.S_ISDIR)
        _check_private(path, os.fstat(fd), stat.S_ISREG)
        text = file.read(_MAX_BYTES + 1)
    try:
        if len(text) > _MAX_BYTES:
            raise ValueError("it is too long")
        return _parse(json.loads(text))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise JournalRefused(
            f"{path} is not a restore journal: {error}",
            hint="Find out who wrote to it. A backup of it may help; it tells how a restore can be taken back.",
        ) from error


def _check_private(path: Path, status: os.stat_result, is_right_kind: Any) -> None:
    if not is_right_kind(status.st_mode) or not is_private(status):
        raise JournalRefused(
            f"{path} could have been written or read by somebody else",
            hint="Find out who could. If it is sound, make it yours alone: chown, and chmod go-rwx.",
        )


def _parse(data: Any) -> list[Record]:
    if data["version"] != _VERSION:
        raise ValueError(f"version {data['version']!r} is unknown")
    records = [_record(**item) for item in data["records"]]
    if len([record for record in records if record.phase in (Phase.STAGING, Phase.APPLYING)]) > 1:
        raise ValueError("two restores at once")
    return records


def _record(
    *,
    run: str,
    verb: str,
    subject: str,
    moment: str,
    phase: str,
    places: list[str],
    swaps: list[dict[str, Any]],
) -> Record:
    if not _RUN.fullmatch(run):
        raise ValueError(f"run {run!r}")
    parse_timestamp(moment)
    for place in places:
        directory, name = os.path.split(place)
        number = name.rpartition("-")[2]
        if (
            not os.path.isabs(place)
            or os.path.normpath(place) != place
            or not number.isdecimal()
            or name != place_name(run, int(number))
        ):
            raise ValueError(f"{place!r} is not a private place of run {run} in {directory!r}")
    for swap in swaps:
        if not isinstance(swap["kind"], str) or not isinstance(swap["state"], dict):
            raise TypeError("a swap has a kind and a state")
    return Record(run, str(verb), str(subject), moment, Phase(phase), list(places), list(swaps))
