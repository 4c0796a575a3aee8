"""What could not be delivered yet, in files of our own: one for each message and channel.

::

    $XDG_STATE_HOME/holdfast/services/<id>/outbox/     0700
    ├── 20240101T020000-6f1c….json                     0600, no secret in it
    └── watch.json                                     since when good backups are missing, and who knows
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, get_args

from holdfast.clock import parse_timestamp, timestamp
from holdfast.durable import explained, file_lock, make_private, replace_file
from holdfast.errors import ConfigError
from holdfast.notify._messages import Kind, Message
from holdfast.state import LocalState

GIVE_UP = timedelta(hours=24)
_FIRST = timedelta(minutes=5)
_LONGEST = timedelta(hours=2)
_TRIES = 60
"""As many as a day can hold. Where a clock that was set back makes days longer, the number ends them."""
_MOST = 200
"""Messages. A mail server that is away for a day is no reason to fill the disk."""
_SIZE = 256 << 10
"""Bytes of a file."""
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{32}")
_WATCH = "watch.json"


@dataclass(frozen=True, slots=True)
class Item:
    """A message that waits for its channel."""

    name: str
    channel: str
    message: Message
    created: datetime
    tries: int
    due: datetime

    def is_due(self, now: datetime) -> bool:
        """Also where the clock was set back since."""
        return self.due <= now or self.due > now + _LONGEST

    def is_old(self, now: datetime) -> bool:
        return now - self.created > GIVE_UP or self.tries >= _TRIES

    def tried(self, now: datetime) -> Item:
        """The same after one more try in vain."""
        pause = min(_FIRST * 2 ** min(self.tries, 10), _LONGEST)
        return replace(self, tries=self.tries + 1, due=now + pause)


class Watch(NamedTuple):
    """Over the absence of backups."""

    since: datetime
    """When the last good backup that was seen was made; where none was seen, when the watch began."""
    told: bool
    """Whether people were told that there has been none since."""


def new_item(channel: str, message: Message, now: datetime) -> Item:
    name = f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(16)}"
    return Item(name, channel, message, now.replace(microsecond=0), 0, now.replace(microsecond=0))


class Outbox:
    """The directory. All of its methods raise ConfigError where others may write there, and StorageError."""

    def __init__(self, state: LocalState) -> None:
        self.directory = state.service / "outbox"
        self._state = state

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process delivers at a time, or people would be told twice. Raises LockHeld."""
        self._make()
        with file_lock(self.directory / ".lock", what="the outbox"):
            yield

    def put(self, item: Item) -> list[Item]:
        """Keeps an item, and returns the oldest ones, which had to make room for it."""
        self._make()
        data = {
            "name": item.name,
            "channel": item.channel,
            "message": asdict(item.message),
            "created": timestamp(item.created),
            "tries": item.tries,
            "due": timestamp(item.due),
        }
        with explained(f"cannot write {self.directory}"):
            replace_file(self._path(item.name), json.dumps(data).encode())
        names = self._names()
        dropped = [known for name in names[: max(0, len(names) - _MOST)] if (known := self._read(name))]
        for name in names[: max(0, len(names) - _MOST)]:
            self._remove(name)
        return dropped

    def remove(self, item: Item) -> None:
        self._remove(item.name)

    def items(self) -> list[Item]:
        """What waits, oldest first. A file that is not one of ours, whole and of a sensible size, is removed."""
        self._make()
        found = []
        for name in self._names():
            item = self._read(name)
            if item is None:
                self._remove(name)
            else:
                found.append(item)
        return found

    def watched(self) -> Watch | None:
        """What was remembered of the watch over backups."""
        self._make()
        data = self._load(_WATCH)
        if not isinstance(data, dict) or type(data.get("told")) is not bool:
            return None
        try:
            return Watch(parse_timestamp(_text(data, "since")), data["told"])
        except (ValueError, TypeError):
            return None

    def remember(self, watch: Watch) -> None:
        self._make()
        data = {"since": timestamp(watch.since), "told": watch.told}
        with explained(f"cannot write {self.directory}"):
            replace_file(self.directory / _WATCH, json.dumps(data).encode())

    def _make(self) -> None:
        self._state.make()
        with explained(f"cannot make {self.directory}"):
            make_private(self.directory, self._state.home)
            status = os.lstat(self.directory)
        if not stat.S_ISDIR(status.st_mode) or not _is_ours(status):
            raise ConfigError(
                f"{self.directory} belongs to, or may be written by, another user",
                hint="Find out who made it, and remove it.",
            )

    def _names(self) -> list[str]:
        with explained(f"cannot read {self.directory}"):
            files = os.listdir(self.directory)
        return sorted(
            file.removesuffix(".json") for file in files if _NAME.fullmatch(file.removesuffix(".json"))
        )

    def _read(self, name: str) -> Item | None:
        data = self._load(f"{name}.json")
        try:
            return _item(name, data)
        except (ValueError, TypeError):
            return None

    def _load(self, file: str) -> object:
        """What is in a file; None where there is none, or none of ours."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self.directory / file, flags)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as opened:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
                return None
            data = opened.read(_SIZE + 1)
        if len(data) > _SIZE:
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None

    def _remove(self, name: str) -> None:
        with explained(f"cannot write {self.directory}"):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.json"


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _item(name: str, data: object) -> Item:
    """Raises ValueError and TypeError for anything that `Outbox.put` has not written."""
    if not isinstance(data, dict) or not isinstance(data.get("message"), dict) or data.get("name") != name:
        raise ValueError
    message, tries = data["message"], data.get("tries")
    kinds: list[Kind] = [known for known in get_args(Kind) if known == message.get("kind")]
    if not kinds or type(tries) is not int or not 0 <= tries <= _TRIES:
        raise ValueError
    email = None if message.get("email") is None else _text(message, "email")
    return Item(
        name=name,
        channel=_text(data, "channel"),
        message=Message(kinds[0], _text(message, "subject"), _text(message, "body"), email),
        created=parse_timestamp(_text(data, "created")),
        tries=tries,
        due=parse_timestamp(_text(data, "due")),
    )


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise TypeError(key)
    return value
