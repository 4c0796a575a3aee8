"""What is said, in the contract's words; and nothing secret in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from urllib.parse import unquote, urlsplit

from holdfast.config import Settings
from holdfast.errors import HoldfastError
from holdfast.events import (
    DrillFailed,
    DrillFinished,
    Event,
    ScheduleDisabled,
    ScheduledRunFailed,
    ScheduledRunFinished,
)
from holdfast.model import BackupMetadata
from holdfast.text import harmless

Kind = Literal["success", "failure", "disabled", "absence", "test", "drill", "drill failure"]

_SERVICE = "IIT ML Service"
_HOUR = timedelta(hours=1)
_LINE = 1000
"""Characters. Errors and log lines are cut there."""
_LINES = 50
_SHORTEST = 4
"""Characters. Replacing a shorter secret wherever it occurs would leave no text to read."""

_TOKEN = 8
"""Characters. Shorter parts of an Apprise URL are names of hosts and rooms."""

_PATTERNS = (
    (re.compile(r"(?<=://)[^\s/]+(?=@)"), "***"),
    (re.compile(r"AGE-SECRET-KEY-1[0-9A-Z]+", re.IGNORECASE), "***"),
    (
        re.compile(
            r"(?i)((?:password|passwd|pwd|passphrase|token|secret|api_?key|encryption_key)\s*[=:]\s*)[^\s&,;]+"
        ),
        r"\1***",
    ),
)


@dataclass(frozen=True, slots=True)
class Message:
    """One thing that people are told."""

    kind: Kind
    subject: str
    """One line."""
    body: str
    """Lines, each ended by a newline."""
    email: str | None = None
    """Who gets it by mail, where that is not who stands in the settings."""

    @property
    def is_good(self) -> bool:
        return self.kind in ("success", "test", "drill")


class Scrubber:
    """Takes out of a text what is secret in the settings, and what looks as if it were."""

    def __init__(self, settings: Settings) -> None:
        found = {value for value in _secrets(settings) if len(value) >= _SHORTEST}
        self._secrets = sorted(found, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


def _secrets(settings: Settings) -> Iterator[str]:
    for secret in (settings.encryption_key, settings.smtp_password):
        if secret is not None:
            yield secret.get_secret_value()
            yield secret.get_secret_value().strip()
    for address in (settings.ping_url, *settings.apprise_urls):
        if address is not None:
            yield address.get_secret_value()
            # Tokens stand where others have a host or a path: slack://token/token/token.
            pieces = re.split(r"[/:@?&=#,;]+", address.get_secret_value().partition("://")[2])
            yield from (piece for piece in pieces if len(piece) >= _TOKEN)
    for url in (settings.database_url, *(table.url for table in settings.database_tables.values())):
        if url is None:
            continue
        try:
            password = urlsplit(url.get_secret_value()).password
        except ValueError:
            continue
        if password:
            yield password
            yield unquote(password)


def message_of(event: Event, scrub: Scrubber, *, last_error: str = "") -> Message | None:
    """What is said about an event; None about one that nobody needs to be told of.

    `last_error` is what a schedule that is disabled failed with.
    """
    match event:
        case ScheduledRunFinished():
            name = _one_line(event.schedule_id)
            return Message(
                "success",
                f"{_SERVICE} - Backup Success: {name}",
                f"Scheduled backup {name} completed successfully.\n"
                f"Backup ID: {_one_line(event.backup_id)}\n"
                f"Size: {event.size_bytes} bytes\n"
                f"Next run: {_one_line(event.next_run)}\n",
                event.email,
            )
        case ScheduledRunFailed():
            return _failure(event, scrub)
        case ScheduleDisabled():
            name = _one_line(event.schedule_id)
            last = f"Last error: {_one_line(scrub(last_error))}\n" if last_error else ""
            return Message(
                "disabled",
                f"{_SERVICE} - Backup Schedule Disabled: {name}",
                f"Scheduled backup {name} failed {event.failures} times in a row and is disabled: "
                f"it does not run any more.\n{last}"
                f"Enable it again: holdfast schedule enable {name}\n",
                event.email,
            )
        case DrillFinished():
            return _drilled(event)
        case DrillFailed():
            hint = f"Hint: {_one_line(scrub(event.hint))}\n" if event.hint else ""
            name = _one_line(event.backup_id)
            return Message(
                "drill failure",
                f"{_SERVICE} - Restore Drill Failure: {name}",
                f"The rehearsed restore of backup {name} failed.\n"
                f"Error: {_one_line(scrub(event.error))}\n{hint}"
                f"Nothing live was touched. Try again: holdfast drill {name}\n",
                event.email,
            )
    return None


def _drilled(event: DrillFinished) -> Message:
    name = _one_line(event.backup_id)
    restore = "unknown" if event.restore_seconds is None else f"{event.restore_seconds:.1f} seconds"
    return Message(
        "drill",
        f"{_SERVICE} - Restore Drill Success: {name}",
        f"The rehearsed restore of backup {name} completed successfully.\n"
        f"Content: {event.content_bytes} bytes\n"
        f"Duration of the drill: {event.seconds:.1f} seconds\n"
        f"Estimated duration of a restore: {restore}\n"
        f"Warnings: {event.warnings}\n",
        event.email,
    )


def _failure(event: ScheduledRunFailed, scrub: Scrubber) -> Message:
    name = _one_line(event.schedule_id)
    lines = [
        f"Scheduled backup {name} failed.",
        f"Error: {_one_line(scrub(event.error))}",
    ]
    if event.hint:
        lines.append(f"Hint: {_one_line(scrub(event.hint))}")
    lines.append(f"Failures in a row: {event.consecutive_failures}")
    if event.log_tail:
        lines.append("Last log lines:")
        lines += [f"  {_one_line(scrub(line))}" for line in event.log_tail[-_LINES:]]
    lines.append(f"Next run: {_one_line(event.next_run)}")
    return Message("failure", f"{_SERVICE} - Backup Failure: {name}", "\n".join(lines) + "\n", event.email)


def absence_message(
    last: BackupMetadata | None,
    since: datetime,
    now: datetime,
    alarm_hours: float,
    settings: Settings,
    scrub: Scrubber,
    error: HoldfastError | None,
) -> Message:
    """What is said when there has been no good backup since then. `error` is why the backups cannot be looked at."""
    hours = (now - since) / _HOUR
    lines = [f"There has been no good backup for {hours:.1f} hours. The alarm is set to {alarm_hours:g}."]
    if last is not None:
        lines.append(f"Last good backup: {last.backup_id}")
    if error is not None:
        lines.append(f"Error: {_one_line(scrub(str(error)))}")
        lines += [f"Hint: {_one_line(scrub(error.hint))}"] if error.hint else []
    lines.append(f"Backup directory: {_one_line(str(settings.backup_dir))}")
    lines.append("What is wrong with the set-up: holdfast check")
    return Message("absence", f"{_SERVICE} - Backup Missing", "\n".join(lines) + "\n")


def test_message(host: str) -> Message:
    """What `holdfast notify test` sends."""
    return Message(
        "test",
        f"{_SERVICE} - Backup Notification Test",
        f"This is a test from Holdfast on {_one_line(host)}. Notifications of its backups arrive here.\n",
    )


def _one_line(text: str) -> str:
    text = harmless(" ".join(text.split()))
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"
