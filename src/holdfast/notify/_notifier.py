"""`Notifier`: what the scheduler hands its events to."""

from __future__ import annotations

import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from holdfast.absence import last_good
from holdfast.clock import Clock
from holdfast.config import Settings
from holdfast.errors import HoldfastError, Interrupted, LockHeld
from holdfast.eventlog import log
from holdfast.events import Emit, Event, ScheduledRunFailed, Warned
from holdfast.model import BackupMetadata
from holdfast.notify._channels import PING, Channel, Letter, channels_for
from holdfast.notify._delivery import Undelivered, patiently
from holdfast.notify._messages import (
    Message,
    Scrubber,
    absence_message,
    message_of,
)
from holdfast.notify._outbox import Item, Outbox, Watch, new_item
from holdfast.state import LocalState

_BUDGET = 60.0
"""Seconds for the deliveries of one call. A scheduler that waits for a mail server makes no backups meanwhile; what
is left waits for the next round."""
_REMEMBERED = 1000
"""Schedules whose last error is remembered."""


def _nothing() -> None:
    pass


class Notifier:
    """Tells people of what the scheduler did. Nothing that goes wrong here is raised, but Interrupted.

    A message is kept in the outbox, tried at once, and then by `retry`, for 24 hours.
    """

    def __init__(
        self,
        settings: Settings,
        state: LocalState,
        clock: Clock,
        *,
        emit: Emit = log,
        check: Callable[[], None] = _nothing,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`emit` is told what could not be delivered. `check` is called several times a second while the network is
        waited for, and raises Interrupted to stop that. `context` verifies certificates; by default as the system
        does."""
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._check = check
        self._context = context
        self._outbox = Outbox(state)
        self._scrub = Scrubber(settings)
        self._errors: OrderedDict[str, str] = OrderedDict()

    def __call__(self, event: Event) -> None:
        """Tells of an event; does nothing about one that is not about schedules or drills."""
        if isinstance(event, ScheduledRunFailed):
            self._errors[event.schedule_id] = event.error
            self._errors.move_to_end(event.schedule_id)
            while len(self._errors) > _REMEMBERED:
                self._errors.popitem(last=False)
        last_error = self._errors.get(getattr(event, "schedule_id", ""), "")
        message = message_of(event, self._scrub, last_error=last_error)
        if message is not None:
            self.send(message)

    def send(self, message: Message) -> None:
        """Tells of something else, through every channel that is configured."""
        now = self._clock()
        channels = channels_for(message, self._settings, context=self._context)
        items = [(channel, new_item(channel.name, message, now)) for channel in channels]
        if not items:
            return
        try:
            self._keep([item for _, item in items])
            with self._outbox.locked():
                deadline = time.monotonic() + _BUDGET
                for channel, item in items:
                    self._deliver(channel, item)
                    if time.monotonic() >= deadline:
                        break
        except LockHeld:
            return  # Another process delivers; it, or the next round, delivers these too.
        except Interrupted:
            raise
        except HoldfastError as error:
            # Without an outbox there is one try.
            self._warn(f"notifications cannot be kept for another try: {error}")
            for channel, item in items:
                self._try(channel, item)

    def retry(self) -> None:
        """Tries again what is due, and gives up what is too old. For each round of the scheduler."""
        try:
            with self._outbox.locked():
                deadline = time.monotonic() + _BUDGET
                for item in self._outbox.items():
                    if self._retry(item, self._clock()) and time.monotonic() >= deadline:
                        break
        except LockHeld:
            return
        except Interrupted:
            raise
        except HoldfastError as error:
            self._warn(f"the outbox of notifications cannot be read: {error}")

    def watch(self, backups: Callable[[], Sequence[BackupMetadata]]) -> None:
        """Tells, once for each time that it is so, that there has been no good backup for BACKUP_ALARM_HOURS. For
        each round of the scheduler. `backups` gives those that there are."""
        if self._settings.alarm_hours is None:
            return
        try:
            self._watch(backups, self._settings.alarm_hours, self._clock())
        except Interrupted:
            raise
        except HoldfastError as error:
            self._warn(f"it cannot be told whether backups are missing: {error}")

    def _watch(
        self, backups: Callable[[], Sequence[BackupMetadata]], alarm_hours: float, now: datetime
    ) -> None:
        remembered = self._outbox.watched()
        since = remembered.since if remembered else now
        told = remembered.told if remembered else False
        error: HoldfastError | None = None
        last: BackupMetadata | None = None
        try:
            last = last_good(backups(), now)
        except Interrupted:
            raise
        except HoldfastError as refused:
            error = refused
        if last is not None:
            told = told and last.moment == since
            since = last.moment
        since = min(since, now)  # The clock may have been set back.
        missing = now - since > timedelta(hours=alarm_hours)
        watch = Watch(since, missing)
        if watch != remembered:
            # Remembered first: told late is better than told every five minutes.
            self._outbox.remember(watch)
        if missing and not told:
            message = absence_message(last, since, now, alarm_hours, self._settings, self._scrub, error)
            self._emit(Warned(message.body.partition("\n")[0]))
            self.send(message)

    def _keep(self, items: Sequence[Item]) -> None:
        for item in items:
            if item.channel == PING:
                # What is newer makes the older untrue: a success of an hour ago must not hide a failure.
                for old in self._outbox.items():
                    if old.channel == PING:
                        self._outbox.remove(old)
            for dropped in self._outbox.put(item):
                self._warn(f"{dropped.message.subject!r} by {dropped.channel} is dropped: too many wait")

    def _retry(self, item: Item, now: datetime) -> bool:
        """Returns whether it was tried."""
        channels = channels_for(item.message, self._settings, context=self._context)
        channel = next((known for known in channels if known.name == item.channel), None)
        if channel is None:
            self._outbox.remove(item)
            self._warn(f"{item.message.subject!r} is dropped: {item.channel} is not configured any more")
        elif item.is_old(now):
            self._outbox.remove(item)
            self._warn(
                f"{item.message.subject!r} could not be delivered within 24 hours: {channel.title}. "
                "It is given up; `holdfast notify test` shows what is wrong"
            )
        elif item.is_due(now):
            self._deliver(channel, item)
            return True
        return False

    def _deliver(self, channel: Channel, item: Item) -> None:
        if self._try(channel, item):
            self._outbox.remove(item)
        else:
            self._outbox.put(item.tried(self._clock()))

    def _try(self, channel: Channel, item: Item) -> bool:
        letter = Letter(item.message, item.name, item.created)
        error = attempt(channel, letter, self._check)
        if error is not None and item.tries == 0:
            hint = f" {error.hint}" if error.hint else ""
            self._warn(f"{channel.title}: {error}.{hint}")
        return error is None

    def _warn(self, message: str) -> None:
        self._emit(Warned(f"notification: {self._scrub(message)}"))


def attempt(
    channel: Channel, letter: Letter, check: Callable[[], None]
) -> Undelivered | HoldfastError | None:
    """Tries once; returns why it could not be delivered. Raises Interrupted."""
    try:
        patiently(lambda: channel.send(letter), check)
    except Interrupted:
        raise
    except (Undelivered, HoldfastError) as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and no reason for a backup to fail
        return Undelivered(f"unexpected {type(error).__name__}: {error}")
    return None
