from __future__ import annotations

import re
import socket
import ssl
from email.utils import parsedate_to_datetime

import pytest

from holdfast.notify import _mail
from notify.conftest import MakePost
from notify.said import UUID, disabled, failed, finished
from notify.servers import Certificates, MailServer, free_port, rude_server


def headers_of(content: bytes) -> list[str]:
    return content.partition(b"\r\n\r\n")[0].decode("ascii").split("\r\n")


def test_a_success_is_told_in_the_contracts_words(post: MakePost) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(finished())
    [received] = server.received
    assert f"Subject: IIT ML Service - Backup Success: {UUID}" in headers_of(received.content)
    assert received.text.splitlines() == [
        f"Scheduled backup {UUID} completed successfully.",
        "Backup ID: full_20240101_020000",
        "Size: 104857600 bytes",
        "Next run: 2024-01-02T02:00:00",
    ]


def test_ascii_text_goes_as_it_is_however_long_its_lines(post: MakePost) -> None:
    error = "cannot read " + "/a" * 300
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(failed(error))
    [received] = server.received
    headers = headers_of(received.content)
    assert "Content-Transfer-Encoding: 7bit" in headers
    assert 'Content-Type: text/plain; charset="us-ascii"' in headers
    assert f"\r\nError: {error}\r\n".encode() in received.content


@pytest.mark.parametrize("error", ["modèles/käse.bin: fehlt", "模型" * 200])
def test_other_text_is_encoded_in_ascii(post: MakePost, error: str) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(failed(error))
    [received] = server.received
    assert received.content.isascii()
    assert received.mail["Content-Transfer-Encoding"] in ("quoted-printable", "base64")
    assert f"Error: {error}" in received.text.splitlines()


def test_a_failure_tells_error_hint_log_and_next_run(post: MakePost) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(failed(failures=2))
    [received] = server.received
    assert received.mail["Subject"] == f"IIT ML Service - Backup Failure: {UUID}"
    assert received.text.splitlines() == [
        f"Scheduled backup {UUID} failed.",
        "Error: Database backup failed: main is locked",
        "Hint: Find the process that holds a transaction open.",
        "Failures in a row: 2",
        "Last log lines:",
        "  2024-01-01 02:00:00 INFO backup: started",
        "  2024-01-01 02:00:31 ERROR locked",
        "Next run: 2024-01-02T02:00:00",
    ]


def test_that_a_schedule_is_disabled_tells_why_and_how_to_enable_it(post: MakePost) -> None:
    with MailServer().running() as server:
        made = post(SMTP_PORT=str(server.port))
        made.notifier(failed(failures=3))
        made.notifier(disabled())
    received = server.received[1]
    assert received.mail["Subject"] == f"IIT ML Service - Backup Schedule Disabled: {UUID}"
    assert received.text.splitlines() == [
        f"Scheduled backup {UUID} failed 3 times in a row and is disabled: it does not run any more.",
        "Last error: Database backup failed: main is locked",
        f"Enable it again: holdfast schedule enable {UUID}",
    ]


def test_no_line_of_an_error_can_forge_a_header_or_another_line(post: MakePost) -> None:
    with MailServer().running() as server:
        event = failed("bad\nNext run: never\r\n.\r\nMAIL FROM:<x>", schedule_id="a\nBcc: b@example.com")
        post(SMTP_PORT=str(server.port)).notifier(event)
    [received] = server.received
    assert received.mail["Bcc"] is None
    assert received.recipients == ["admin@example.com"]
    assert "Error: bad Next run: never . MAIL FROM:<x>" in received.text.splitlines()


def test_the_schedules_own_address_comes_before_that_of_the_settings(post: MakePost) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(finished(email="team@example.com"))
        post(SMTP_PORT=str(server.port)).notifier(finished())
        unaddressed = post(SMTP_PORT=str(server.port), NOTIFICATION_EMAIL="")
        unaddressed.notifier(finished())
    assert [received.recipients for received in server.received] == [
        ["team@example.com"],
        ["admin@example.com"],
    ]
    assert (unaddressed.waiting, unaddressed.warnings) == ([], [])


def test_a_mail_has_all_that_a_mail_must_have(post: MakePost) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(finished())
    [received] = server.received
    assert parsedate_to_datetime(received.mail["Date"]).isoformat() == "2024-01-01T02:00:00+00:00"
    assert re.fullmatch(r"<[0-9T]+-[0-9a-f]{32}@[A-Za-z0-9.-]+>", received.mail["Message-ID"])
    assert re.fullmatch(r"holdfast@[A-Za-z0-9.-]+", received.mail["From"])
    assert received.sender == received.mail["From"]
    assert received.mail["To"] == "admin@example.com"
    assert received.mail["Auto-Submitted"] == "auto-generated"


def test_tls_is_used_where_it_is_offered(post: MakePost, certificates: Certificates) -> None:
    with MailServer().running(starttls=certificates.server) as server:
        post(SMTP_PORT=str(server.port)).notifier(finished())
    assert [received.by_tls for received in server.received] == [True]


def test_a_server_without_a_good_certificate_gets_no_mail(post: MakePost, certificates: Certificates) -> None:
    with MailServer().running(starttls=certificates.server) as server:
        made = post(SMTP_PORT=str(server.port), trusting=False)
        made.notifier(finished())
    assert server.received == []
    assert "certificate" in made.warnings[0].lower()
    assert len(made.waiting) == 1


def test_the_port_of_smtps_begins_with_tls(
    post: MakePost, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MailServer().running(tls=certificates.server) as server:
        monkeypatch.setattr(_mail, "_IMPLICIT_TLS_PORT", server.port)
        post(SMTP_PORT=str(server.port)).notifier(finished())
    assert [received.by_tls for received in server.received] == [True]


def test_a_login_goes_through_tls_and_its_address_is_the_sender(
    post: MakePost, certificates: Certificates
) -> None:
    users = {"backups@example.com": "hidden word"}
    with MailServer(users=users).running(starttls=certificates.server) as server:
        made = post(
            SMTP_PORT=str(server.port), SMTP_USERNAME="backups@example.com", SMTP_PASSWORD="hidden word"
        )
        made.notifier(finished())
    [received] = server.received
    assert (received.login, received.by_tls) == ("backups@example.com", True)
    assert received.mail["From"] == "backups@example.com"
    assert made.warnings == []


def test_a_wrong_password_is_told_and_not_shown(post: MakePost, certificates: Certificates) -> None:
    with MailServer(users={"robot": "right"}).running(starttls=certificates.server) as server:
        made = post(SMTP_PORT=str(server.port), SMTP_USERNAME="robot", SMTP_PASSWORD="hidden")
        made.notifier(finished())
    assert server.received == []
    [warning] = made.warnings
    assert "535" in warning
    assert "hidden" not in warning + made.waiting[0].read_text()


def test_no_password_goes_without_tls_not_even_to_this_machine(post: MakePost) -> None:
    with MailServer(users={"robot": "hidden"}).running() as server:
        made = post(SMTP_PORT=str(server.port), SMTP_USERNAME="robot", SMTP_PASSWORD="hidden")
        made.notifier(finished())
    assert (server.logins, server.received) == ([], [])
    assert "offers no TLS" in made.warnings[0]
    assert "STARTTLS" in made.warnings[0]


def test_a_username_without_its_password_is_told(post: MakePost) -> None:
    with MailServer().running() as server:
        made = post(SMTP_PORT=str(server.port), SMTP_USERNAME="robot")
        made.notifier(finished())
    assert server.received == []
    assert "SMTP_PASSWORD is not" in made.warnings[0]


@pytest.mark.parametrize("answer", ["554 no such user hidden", "451 try again later"])
def test_a_refusal_is_told_with_the_servers_words_and_tried_again(post: MakePost, answer: str) -> None:
    server = MailServer(answer=answer)
    with server.running():
        made = post(SMTP_PORT=str(server.port))
        made.notifier(finished())
        assert answer in made.warnings[0]
        assert len(made.waiting) == 1
        server.answer = "250 ok"
        made.clock.forward(300)
        made.notifier.retry()
    assert len(server.received) == 1
    assert made.waiting == []


def hang_up_at_mail(connection: socket.socket) -> None:
    connection.sendall(b"220 rude\r\n")
    connection.recv(1000)
    connection.sendall(b"250 rude\r\n")
    connection.recv(1000)


def speak_nonsense(connection: socket.socket) -> None:
    connection.sendall(b"\xff\xfe nonsense \r\n" * 100)


def hang_up(connection: socket.socket) -> None:
    pass


@pytest.mark.parametrize("talk", [hang_up_at_mail, speak_nonsense, hang_up])
def test_a_server_that_hangs_up_is_tried_again(post: MakePost, talk: object) -> None:
    assert callable(talk)
    with rude_server(talk) as port:
        made = post(SMTP_PORT=str(port))
        made.notifier(finished())
    assert len(made.warnings) == 1
    assert len(made.waiting) == 1


def test_a_server_that_is_down_gets_the_same_mail_when_it_is_back(post: MakePost) -> None:
    port = free_port()
    made = post(SMTP_PORT=str(port))
    made.notifier(finished())
    assert "cannot be reached" in made.warnings[0]
    [waiting] = made.waiting
    made.clock.forward(300)
    with MailServer().running(port=port) as server:
        # After a restart, too.
        post(SMTP_PORT=str(port)).notifier.retry()
    [received] = server.received
    assert received.mail["Message-ID"].startswith(f"<{waiting.stem}@")
    assert parsedate_to_datetime(received.mail["Date"]).hour == 2
    assert made.waiting == []


def test_a_mail_that_was_taken_is_not_sent_again_where_the_goodbye_fails(post: MakePost) -> None:
    taken = []

    def no_goodbye(connection: socket.socket) -> None:
        connection.sendall(b"220 x\r\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                if line.upper().startswith(b"DATA"):
                    connection.sendall(b"354 go\r\n")
                elif line == b".\r\n":
                    taken.append(line)
                    connection.sendall(b"250 taken\r\n")
                    return
                elif line.upper().startswith((b"EHLO", b"MAIL", b"RCPT")):
                    connection.sendall(b"250 x\r\n")

    with rude_server(no_goodbye) as port:
        made = post(SMTP_PORT=str(port))
        made.notifier(finished())
    assert len(taken) == 1
    assert (made.waiting, made.warnings) == ([], [])


def test_certificates_are_those_of_the_system_by_default(
    post: MakePost, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    assert ssl.get_default_verify_paths().openssl_cafile_env == "SSL_CERT_FILE"
    with MailServer().running(starttls=certificates.server) as server:
        post(SMTP_PORT=str(server.port), trusting=False).notifier(finished())
    assert [received.by_tls for received in server.received] == [True]
