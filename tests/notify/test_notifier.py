from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from datetime import datetime

import pytest

from holdfast.clock import timestamp
from holdfast.errors import Interrupted, StorageError
from holdfast.events import Noted, RunFailed, RunStarted, Warned
from holdfast.model import BackupMetadata, BackupType, ManifestLocation, make_backup_id
from notify.conftest import MakePost, Post
from notify.said import failed, finished
from notify.servers import HOST, MailServer, WebServer, free_port, rude_server

HOUR = 3600


def made_at(moment: datetime, kind: BackupType = "full", status: str = "success") -> BackupMetadata:
    return BackupMetadata(
        backup_id=make_backup_id(kind, moment),
        timestamp=timestamp(moment),
        version="1.0.0",
        type=kind,
        size_bytes=1,
        checksum="0" * 64,
        components=("config",),
        status=status,
        manifest=ManifestLocation("0" * 64, 1, 0),
    )


def test_events_that_are_not_about_schedules_are_passed_over(post: MakePost) -> None:
    made = post(SMTP_PORT=str(free_port()))
    for event in (RunStarted("backup", "x"), RunFailed("backup", "x", "y"), Warned("x"), Noted("x")):
        made.notifier(event)
    assert (made.waiting, made.warnings) == ([], [])


def test_nothing_that_goes_wrong_is_raised(post: MakePost) -> None:
    made = post(
        SMTP_PORT=str(free_port()),
        BACKUP_APPRISE_URLS=f"nosuch://x json://{HOST}:{free_port()}",
        BACKUP_PING_URL=f"http://{HOST}:{free_port()}/",
    )
    made.notifier(finished(email="not an address"))
    made.notifier(finished(email="käse@exämple.com"))
    made.state.home.chmod(0o777)
    made.notifier(finished())
    made.notifier.retry()
    assert len(made.warnings) > 3


def test_waiting_for_the_network_ends_when_we_are_asked_to_stop(post: MakePost) -> None:
    silence = threading.Event()
    asked = []

    def say_nothing(connection: socket.socket) -> None:
        silence.wait(60)

    def check() -> None:
        asked.append(1)
        if len(asked) > 3:
            raise Interrupted("interrupted")

    with rude_server(say_nothing) as port:
        made = post(SMTP_PORT=str(port), check=check)
        try:
            with pytest.raises(Interrupted):
                made.notifier(finished())
        finally:
            silence.set()
    # It is sent after the next start.
    assert len(made.waiting) == 1
    assert made.warnings == []


def test_an_error_that_holds_a_secret_is_told_without_it(post: MakePost) -> None:
    secrets = {
        "ENCRYPTION_KEY": "hidden passphrase",
        "SMTP_PASSWORD": "hidden-smtp",
        "DATABASE_URL": "postgresql://app:hidden%2Fdb@db.example.com/service",
        "BACKUP_PING_URL": f"http://{HOST}:{free_port()}/hidden-ping",
        "BACKUP_APPRISE_URLS": "slack://hiddenTokenA/hiddenTokenB",
    }
    error = (
        "hidden passphrase; hidden-smtp; hidden/db; hidden%2Fdb; mysql://root:hidden@h/x; hiddenTokenB;"
        " AGE-SECRET-KEY-1HIDDEN; password=hidden; PGPASSWORD: hidden"
    )
    with MailServer().running() as server:
        made = post(SMTP_PORT=str(server.port), **secrets)
        made.notifier(failed(error, hint=error, log=(error,) * 2))
    [received] = server.received
    assert "hidden" not in received.text.lower()
    assert "mysql://***@h/x" in received.text
    assert "hidden" not in " ".join(made.warnings)


def test_a_long_log_and_a_long_error_are_cut(post: MakePost) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(failed("e" * 10**6, log=("l" * 10**5,) * 1000))
    [received] = server.received
    assert len(received.content) < 80_000


@pytest.fixture
def watched(post: MakePost) -> Post:
    """Its mail server is not there: what is told can be seen waiting."""
    return post(SMTP_PORT=str(free_port()), BACKUP_ALARM_HOURS="24")


def bodies(made: Post) -> list[str]:
    return [json.loads(path.read_text())["message"]["body"] for path in made.waiting]


def test_an_absence_of_backups_is_told_once_for_each_time(watched: Post) -> None:
    backups = [made_at(watched.clock.now)]
    for _ in range(24 * 12 + 1):
        watched.notifier.watch(lambda: backups)
        watched.clock.forward(300)
    assert bodies(watched) == []
    for _ in range(10):
        watched.notifier.watch(lambda: backups)
        watched.clock.forward(300)
    [first] = bodies(watched)
    assert sum("no good backup for" in warning for warning in watched.warnings) == 1
    assert first.startswith("There has been no good backup for 24.1 hours. The alarm is set to 24.")
    assert "Last good backup: full_20240101_020000" in first

    backups.append(made_at(watched.clock.now))
    watched.notifier.watch(lambda: backups)
    watched.clock.forward(25 * HOUR)
    watched.notifier.watch(lambda: backups)
    watched.notifier.watch(lambda: backups)
    assert len(bodies(watched)) == 2


def test_an_absence_is_told_once_also_over_a_restart(watched: Post, post: MakePost) -> None:
    backups = [made_at(watched.clock.now)]
    watched.clock.forward(25 * HOUR)
    watched.notifier.watch(lambda: backups)
    again = post(SMTP_PORT=str(free_port()), BACKUP_ALARM_HOURS="24")
    again.notifier.watch(lambda: backups)
    assert len(bodies(watched)) == 1


def test_a_new_installation_has_its_hours_before_the_first_backup(watched: Post) -> None:
    watched.notifier.watch(list)
    watched.clock.forward(24 * HOUR)
    watched.notifier.watch(list)
    assert bodies(watched) == []
    watched.clock.forward(HOUR)
    watched.notifier.watch(list)
    assert len(bodies(watched)) == 1


def test_backups_that_cannot_be_looked_at_are_an_absence_after_their_hours(watched: Post) -> None:
    def unreadable() -> Sequence[BackupMetadata]:
        raise StorageError("cannot list /backups: Stale file handle", hint="Mount it.")

    backups = [made_at(watched.clock.now)]
    watched.notifier.watch(lambda: backups)
    watched.clock.forward(HOUR)
    watched.notifier.watch(unreadable)
    assert bodies(watched) == []
    watched.clock.forward(24 * HOUR)
    watched.notifier.watch(unreadable)
    watched.notifier.watch(unreadable)
    [told] = bodies(watched)
    assert "Error: cannot list /backups: Stale file handle\nHint: Mount it.\n" in told


def test_failed_partial_and_future_backups_do_not_end_an_absence(watched: Post) -> None:
    old = made_at(watched.clock.now)
    watched.clock.forward(25 * HOUR)
    now = watched.clock.now
    others = [made_at(now, status="failed"), made_at(now, "config"), made_at(now, "models")]
    future = made_at(now.replace(year=2030))
    watched.notifier.watch(lambda: [old, *others, future])
    assert len(bodies(watched)) == 1


def test_without_hours_nothing_is_watched(post: MakePost) -> None:
    made = post(SMTP_PORT=str(free_port()))
    made.notifier.watch(list)
    assert not made.outbox.exists()


def test_an_absence_goes_to_the_settings_address_and_fails_the_switch(post: MakePost) -> None:
    with MailServer().running() as server, WebServer().running() as web:
        made = post(SMTP_PORT=str(server.port), BACKUP_PING_URL=f"{web.url}/x", BACKUP_ALARM_HOURS="1")
        backups = [made_at(made.clock.now)]
        made.clock.forward(2 * HOUR)
        made.notifier.watch(lambda: backups)
    assert server.received[0].mail["Subject"] == "IIT ML Service - Backup Missing"
    assert [request.path for request in web.requests] == ["/x/fail"]
