"""Mail: composed with the standard library, handed to the configured server."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from contextlib import suppress
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from holdfast.config import Settings, is_email_address
from holdfast.errors import ConfigError
from holdfast.notify._delivery import TIMEOUT, Undelivered
from holdfast.notify._messages import Message
from holdfast.version import __version__

_IMPLICIT_TLS_PORT = 465
"""RFC 8314, section 3.3."""
_LONGEST_LINE = 998
"""RFC 5322, section 2.1.1. The usual 78 would fold a subject with a UUID in it, and encode a longer error."""


def host_name() -> str:
    """This host, in the letters that an address may have."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname()).strip("-.") or "localhost"


def compose(
    message: Message, settings: Settings, recipient: str, *, sent: datetime, name: str
) -> EmailMessage:
    """A mail. `name` tells it from every other: it is the same each time that it is tried."""
    plain = message.subject.isascii()
    mail = EmailMessage(policy=SMTP.clone(cte_type="7bit", max_line_length=_LONGEST_LINE if plain else 78))
    username = settings.smtp_username or ""
    host = host_name()
    mail["From"] = username if is_email_address(username) else f"holdfast@{host}"
    mail["To"] = recipient
    mail["Subject"] = message.subject
    mail["Date"] = format_datetime(sent)
    mail["Message-ID"] = f"<{name}@{host}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday answers it
    mail["X-Mailer"] = f"holdfast {__version__}"
    mail.set_content(message.body, charset="us-ascii" if message.body.isascii() else "utf-8")
    return mail


def send_mail(mail: EmailMessage, settings: Settings, *, context: ssl.SSLContext | None = None) -> None:
    """Hands a mail to the server. `context` verifies certificates; by default as the system does.

    TLS is used where the server offers it, and always on port 465. A password goes through TLS or not at all, also
    on this machine. Raises Undelivered; ConfigError where a password is missing.
    """
    if settings.smtp_username is not None and settings.smtp_password is None:
        raise ConfigError(
            "SMTP_USERNAME is set, and SMTP_PASSWORD is not",
            hint="Set both, or neither for a server without login.",
        )
    where = f"{settings.smtp_server}:{settings.smtp_port}"
    try:
        server = _connect(settings, context or ssl.create_default_context())
        try:
            _log_in(server, settings, where)
            server.send_message(mail)
            with suppress(
                smtplib.SMTPException, OSError
            ):  # It is accepted by now: sent again, it would come twice.
                server.quit()
        finally:
            server.close()
    except smtplib.SMTPException as error:
        raise Undelivered(f"{where} refused the mail: {_said(error)}") from error
    except OSError as error:
        raise Undelivered(f"{where} cannot be reached: {error.strerror or error}") from error
    except ValueError as error:  # UnicodeError too
        raise Undelivered(
            f"{where} cannot be told this address or password: {type(error).__name__}"
        ) from None


def _connect(settings: Settings, context: ssl.SSLContext) -> smtplib.SMTP:
    # Without a name smtplib asks the DNS for ours, and waits for it as long as it takes.
    host = host_name()
    ours = host if "." in host else "[127.0.0.1]"
    if settings.smtp_port == _IMPLICIT_TLS_PORT:
        return smtplib.SMTP_SSL(
            settings.smtp_server, settings.smtp_port, local_hostname=ours, timeout=TIMEOUT, context=context
        )
    server = smtplib.SMTP(settings.smtp_server, settings.smtp_port, local_hostname=ours, timeout=TIMEOUT)
    try:
        server.ehlo_or_helo_if_needed()
        if server.has_extn("starttls"):
            server.starttls(context=context)
            server.ehlo()
    except BaseException:
        server.close()
        raise
    return server


def _log_in(server: smtplib.SMTP, settings: Settings, where: str) -> None:
    if settings.smtp_username is None or settings.smtp_password is None:
        return
    if not isinstance(server.sock, ssl.SSLSocket):
        raise Undelivered(
            f"{where} offers no TLS, and the password is not sent without it",
            hint="Use a port with STARTTLS (587) or TLS (465), or unset SMTP_USERNAME.",
        )
    server.login(settings.smtp_username, settings.smtp_password.get_secret_value())


def _said(error: smtplib.SMTPException) -> str:
    """What a server answered."""
    answers: list[tuple[int, bytes | str]] = []
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        answers = list(error.recipients.values())
    elif isinstance(error, smtplib.SMTPResponseException):
        answers = [(error.smtp_code, error.smtp_error)]
    if not answers:
        return str(error)
    code, answer = answers[0]
    return f"{code} {answer.decode('utf-8', 'replace') if isinstance(answer, bytes) else answer}"
