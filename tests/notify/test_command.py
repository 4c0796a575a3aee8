from __future__ import annotations

from pathlib import Path

import pytest

from acceptance.running import holdfast
from notify.servers import HOST, Certificates, MailServer, WebServer, free_port


@pytest.fixture(autouse=True)
def service(tmp_path: Path, state_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory; nothing is configured."""
    root = tmp_path / "service"
    root.mkdir()
    monkeypatch.chdir(root)
    for name in (
        "NOTIFICATION_EMAIL",
        "SMTP_USERNAME",
        "SMTP_PASSWORD",
        "BACKUP_APPRISE_URLS",
        "BACKUP_PING_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    return root


def test_a_test_goes_through_every_channel_now(certificates: Certificates) -> None:
    users = {"robot@example.com": "hidden"}
    with (
        MailServer(users=users).running(starttls=certificates.server) as server,
        WebServer().running() as web,
    ):
        done = holdfast(
            "notify",
            "test",
            SSL_CERT_FILE=str(certificates.authority),
            SMTP_SERVER=HOST,
            SMTP_PORT=str(server.port),
            SMTP_USERNAME="robot@example.com",
            SMTP_PASSWORD="hidden",
            NOTIFICATION_EMAIL="admin@example.com",
            BACKUP_APPRISE_URLS=f"json://{HOST}:{web.port}/hook-hidden",
            BACKUP_PING_URL=f"{web.url}/ping-hidden",
        )
    assert done.status == 0, done.err
    assert done.out.splitlines() == [
        f"sent    mail to admin@example.com through {HOST}:{server.port}",
        "sent    Apprise URL 1 (json)",
        "sent    ping to BACKUP_PING_URL",
    ]
    [received] = server.received
    assert received.by_tls
    assert received.mail["Subject"] == "IIT ML Service - Backup Notification Test"
    assert [request.path for request in web.requests] == ["/hook-hidden", "/ping-hidden"]


def test_one_that_fails_fails_the_test_and_the_others_are_still_tried(service: Path) -> None:
    with WebServer().running() as web:
        environment = {
            "SMTP_SERVER": HOST,
            "SMTP_PORT": str(free_port()),
            "NOTIFICATION_EMAIL": "admin@example.com",
            "BACKUP_PING_URL": f"{web.url}/x",
        }
        done = holdfast("notify", "test", **environment)
        told = holdfast("notify", "test", "--json", **environment)
    assert (done.status, told.status) == (1, 1)
    first, second = done.out.splitlines()
    assert first.startswith("FAILED  mail to admin@example.com")
    assert "cannot be reached: Connection refused" in first
    assert second == "sent    ping to BACKUP_PING_URL"
    assert [bool(result["error"]) for result in told.json] == [True, False]
    assert len(web.requests) == 2


def test_a_test_is_not_tried_again_later(service: Path, state_home: Path) -> None:
    holdfast(
        "notify", "test", SMTP_SERVER=HOST, SMTP_PORT=str(free_port()), NOTIFICATION_EMAIL="a@example.com"
    )
    assert list(state_home.rglob("outbox/*")) == []


def test_without_any_configuration_it_says_what_there_is_to_configure() -> None:
    done = holdfast("notify", "test")
    assert done.status == 2
    for name in ("NOTIFICATION_EMAIL", "BACKUP_APPRISE_URLS", "BACKUP_PING_URL"):
        assert name in done.err


def test_another_address_can_be_tested() -> None:
    with MailServer().running() as server:
        done = holdfast(
            "notify", "test", "--email", "team@example.com", SMTP_SERVER=HOST, SMTP_PORT=str(server.port)
        )
        assert done.status == 0, done.err
        assert [received.recipients for received in server.received] == [["team@example.com"]]
        assert holdfast("notify", "test", "--email", "team").status == 2


def test_no_secret_is_shown_where_everything_fails(service: Path) -> None:
    done = holdfast(
        "notify",
        "test",
        LOG_LEVEL="DEBUG",
        SMTP_SERVER=HOST,
        SMTP_PORT=str(free_port()),
        SMTP_USERNAME="robot",
        SMTP_PASSWORD="hidden",
        NOTIFICATION_EMAIL="a@example.com",
        BACKUP_APPRISE_URLS=f"json://{HOST}:{free_port()}/hidden-hook slack://hidden",
        BACKUP_PING_URL=f"http://user:hidden@{HOST}:{free_port()}/hidden-ping",
    )
    assert done.status == 1
    assert len(done.out.splitlines()) == 4
    assert "hidden" not in done.out + done.err
