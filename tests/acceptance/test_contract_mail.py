"""The contract on notifications: the mail that it prints is the mail that arrives."""

from __future__ import annotations

from pathlib import Path

from acceptance.contract import FULL_ID, TEXT, sample, table
from conformance.trees import Clock
from holdfast.config import load_settings
from holdfast.events import ScheduleDisabled, ScheduledRunFailed, ScheduledRunFinished
from holdfast.notify import Notifier
from holdfast.state import LocalState
from notify.servers import HOST, MailServer, Received

PRINTED = sample("Email Notifications", "")


Said = ScheduledRunFinished | ScheduledRunFailed | ScheduleDisabled


def told(server: MailServer, root: Path, *events: Said) -> list[Received]:
    """What arrives at the contract's address."""
    with server.running():
        environ = {
            "SMTP_SERVER": HOST,
            "SMTP_PORT": str(server.port),
            "NOTIFICATION_EMAIL": "admin@example.com",
            "XDG_STATE_HOME": str(root / "state"),
        }
        settings = load_settings(root, environ)
        state = LocalState.locate(environ, root=root, backup_dir=settings.backup_dir)
        notifier = Notifier(settings, state, Clock())
        for event in events:
            notifier(event)
    return server.received


def test_the_mail_of_a_success_is_the_one_that_is_printed(tmp_path: Path) -> None:
    event = ScheduledRunFinished("schedule-id", FULL_ID, 104857600, "2024-01-02T02:00:00", None)
    [received] = told(MailServer(), tmp_path, event)
    head, _, body = received.content.decode("ascii").partition("\r\n\r\n")
    subject, _, text = PRINTED.partition("\n\n")
    assert subject in head.split("\r\n")
    assert body.replace("\r\n", "\n") == text
    assert "Content-Transfer-Encoding: 7bit" in head.split("\r\n")
    assert received.recipients == ["admin@example.com"]


def test_failures_and_disabled_schedules_are_told_in_the_same_form(tmp_path: Path) -> None:
    failure = ScheduledRunFailed(
        "schedule-id", "Database backup failed: x", "Look.", "2024-01-02T02:00:00", 3, None, ("a line",)
    )
    failed, disabled = told(MailServer(), tmp_path, failure, ScheduleDisabled("schedule-id", 3, None))
    form = PRINTED.partition("\n")[0].removeprefix("Subject: ")
    assert failed.mail["Subject"] == form.replace("Success", "Failure")
    assert disabled.mail["Subject"] == form.replace("Backup Success", "Backup Schedule Disabled")
    for line in ("Error: Database backup failed: x", "Hint: Look.", "Next run: 2024-01-02T02:00:00"):
        assert line in failed.text.splitlines()
    assert "Enable it again: holdfast schedule enable schedule-id" in disabled.text.splitlines()


def test_every_occasion_that_the_contract_lists_is_told(tmp_path: Path) -> None:
    listed = TEXT.split("sends email notifications for:\n", 1)[1].split("\n\n", 1)[0].splitlines()
    assert [line.split(" ", 2)[2] for line in listed] == [
        "Successful backup completion",
        "Backup failures",
        "Schedule disabled (too many failures)",
    ]
    received = told(
        MailServer(),
        tmp_path,
        ScheduledRunFinished("a", FULL_ID, 1, "2024-01-02T02:00:00", None),
        ScheduledRunFailed("a", "x", "", "2024-01-02T02:00:00", 3, None, ()),
        ScheduleDisabled("a", 3, None),
    )
    assert len(received) == len(listed)


def test_the_variables_of_mail_have_the_contracts_defaults(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {})
    found = {
        "NOTIFICATION_EMAIL": settings.notification_email,
        "SMTP_SERVER": settings.smtp_server,
        "SMTP_PORT": settings.smtp_port,
        "SMTP_USERNAME": settings.smtp_username,
        "SMTP_PASSWORD": settings.smtp_password,
    }
    promised = {row[0]: row[2] for row in table("Environment Variables")}
    for variable, value in found.items():
        assert promised[variable] == ("-" if value is None else str(value))
