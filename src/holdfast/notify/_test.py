"""`holdfast notify test`: a message by every channel, now."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.config import Settings
from holdfast.errors import ConfigError
from holdfast.notify._channels import Letter, channels_of
from holdfast.notify._mail import host_name
from holdfast.notify._messages import Scrubber, test_message
from holdfast.notify._notifier import attempt
from holdfast.text import harmless


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one channel."""

    channel: str
    """For a person, and no secret."""
    error: str = ""
    """Empty when the message was delivered."""
    hint: str = ""


def _nothing() -> None:
    pass


def send_test(
    settings: Settings,
    clock: Clock,
    *,
    email: str | None = None,
    check: Callable[[], None] = _nothing,
    context: ssl.SSLContext | None = None,
) -> list[Result]:
    """Sends a test by every channel that is configured, each tried once. `email` wins over NOTIFICATION_EMAIL.

    Raises ConfigError when nothing is configured, and Interrupted when `check` does.
    """
    channels = channels_of(settings, email=email, context=context)
    if not channels:
        raise ConfigError(
            "no notifications are configured",
            hint="Set NOTIFICATION_EMAIL, BACKUP_APPRISE_URLS or BACKUP_PING_URL, or name an address with --email.",
        )
    scrub = Scrubber(settings)
    results = []
    for channel in channels:
        letter = Letter(test_message(host_name()), secrets.token_hex(16), clock())
        error = attempt(channel, letter, check)
        if error is None:
            results.append(Result(channel.title))
        else:
            results.append(Result(channel.title, harmless(scrub(str(error))), harmless(scrub(error.hint))))
    return results
