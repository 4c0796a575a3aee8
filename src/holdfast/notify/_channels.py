"""The ways a message can go: mail, Apprise, a dead man's switch. Each by a name that is no secret."""

from __future__ import annotations

import logging
import ssl
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.util import find_spec

from holdfast.config import Settings
from holdfast.errors import ConfigError
from holdfast.notify._delivery import Undelivered
from holdfast.notify._mail import compose, send_mail
from holdfast.notify._messages import Message
from holdfast.notify._ping import ping

PING = "ping"
_NOT_PINGED = ("disabled", "drill", "drill failure")
_EXTRA = "Install it: pip install 'holdfast[apprise]'."


@dataclass(frozen=True, slots=True)
class Letter:
    """A message on its way through one channel."""

    message: Message
    name: str
    """Tells it from every other."""
    created: datetime


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to somebody."""

    name: str
    """``mail``, ``ping``, ``apprise-1``…: the same as long as the settings are."""
    title: str
    """For a person."""
    send: Callable[[Letter], None]
    """Raises Undelivered, ConfigError."""


def channels_of(
    settings: Settings, *, email: str | None = None, context: ssl.SSLContext | None = None
) -> list[Channel]:
    """What is configured. `email` wins over that of the settings; `context` verifies certificates."""
    channels = []
    if recipient := email or settings.notification_email:
        title = f"mail to {recipient} through {settings.smtp_server}:{settings.smtp_port}"
        channels.append(Channel("mail", title, partial(_mail, settings, recipient, context)))
    for number, url in enumerate(settings.apprise_urls, 1):
        scheme = url.get_secret_value().partition("://")[0].lower()
        send = partial(_apprise, url.get_secret_value(), scheme)
        channels.append(Channel(f"apprise-{number}", f"Apprise URL {number} ({scheme})", send))
    if settings.ping_url is not None:
        send = partial(_ping, settings.ping_url.get_secret_value(), context)
        channels.append(Channel(PING, "ping to BACKUP_PING_URL", send))
    return channels


def channels_for(
    message: Message, settings: Settings, *, context: ssl.SSLContext | None = None
) -> list[Channel]:
    """Those that a message goes through. A dead man's switch learns of runs: that a schedule is disabled follows a
    failure of which it was told, and a drill of yesterday's backup would hide that there is none of today."""
    channels = channels_of(settings, email=message.email, context=context)
    return [channel for channel in channels if channel.name != PING or message.kind not in _NOT_PINGED]


def _mail(settings: Settings, recipient: str, context: ssl.SSLContext | None, letter: Letter) -> None:
    try:
        mail = compose(letter.message, settings, recipient, sent=letter.created, name=letter.name)
    except ValueError as error:  # The recipient may come from schedules.json.
        raise Undelivered(f"no mail can be addressed to {recipient!r:.100}") from error
    send_mail(mail, settings, context=context)


def _ping(url: str, context: ssl.SSLContext | None, letter: Letter) -> None:
    ping(url, good=letter.message.is_good, context=context)


def _apprise(url: str, scheme: str, letter: Letter) -> None:
    with _quiet("apprise", "urllib3", "requests"):
        try:
            refusal = _through_apprise(url, letter.message)
        except ImportError as error:
            raise ConfigError("BACKUP_APPRISE_URLS needs the extra holdfast[apprise]", hint=_EXTRA) from error
        except ConfigError as error:
            raise ConfigError(f"{error}, which begins with {scheme}://", hint=error.hint) from None
        except Exception as error:  # noqa: BLE001 - a hundred services' own code
            raise Undelivered(f"{scheme}: {type(error).__name__}") from None
    if refusal is not None:
        raise Undelivered(f"{scheme}: {refusal}")


def _through_apprise(url: str, message: Message) -> str | None:
    """Returns what was said when it was refused. Raises ConfigError, ImportError, and whatever the services do."""
    # Imported here because it takes a second, and because it is an extra.
    import apprise

    kinds = {
        "success": apprise.NotifyType.SUCCESS,
        "test": apprise.NotifyType.INFO,
        "drill": apprise.NotifyType.SUCCESS,
    }
    notifier = apprise.Apprise()
    with apprise.LogCapture(level=logging.WARNING) as log:  # type: ignore[no-untyped-call]
        if not notifier.add(url):
            raise ConfigError(
                "Apprise does not understand the URL",
                hint="https://github.com/caronc/apprise/wiki says how each service's URL is written.",
            )
        sent = notifier.notify(
            title=message.subject,
            body=message.body,
            notify_type=kinds.get(message.kind, apprise.NotifyType.FAILURE),
            body_format="text",
        )
        lines = log.getvalue().strip().splitlines()
    if sent:
        return None
    return lines[-1].split(" - ", 2)[-1] if lines else "it was refused"


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """What these log goes nowhere meanwhile: URLs, which are secret, stand in it. Nor do their warnings, which are
    for their own developers."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = False
    silent = logging.NullHandler()
    for logger in loggers:
        logger.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(silent)
            logger.propagate = propagate


def faults(settings: Settings) -> Sequence[str]:
    """What can be seen to be wrong with the settings without sending anything."""
    found = []
    if settings.smtp_username is not None and settings.smtp_password is None:
        found.append("SMTP_USERNAME is set, and SMTP_PASSWORD is not")
    if settings.apprise_urls and find_spec("apprise") is None:
        found.append(f"BACKUP_APPRISE_URLS needs the extra holdfast[apprise]. {_EXTRA}")
    return found
