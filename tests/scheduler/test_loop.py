"""The loop around the checks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from holdfast.errors import ConfigError, Interrupted
from holdfast.events import Event, RunFailed, StageStarted
from notify.servers import HOST, MailServer, free_port
from scheduler.conftest import Ground


def rounds(ground: Ground, *steps: Callable[[], object]) -> Callable[[float], bool]:
    """For `wait`: the clock goes on by what is waited for, then a step is taken; after the last one it ends."""
    left = list(steps)

    def wait(seconds: float) -> bool:
        ground.service.clock.forward(seconds)
        if not left:
            return True
        left.pop(0)()
        return False

    return wait


def nothing() -> None:
    pass


def test_it_checks_every_five_minutes_by_the_clock(ground: Ground) -> None:
    ground.add()
    ground.at("2024-01-02T01:47:13")
    seen: list[str] = []
    note = [lambda: seen.append(ground.now)] * 4
    ground.scheduler().run_scheduler(wait=rounds(ground, *note))
    assert [moment[11:] for moment in seen] == ["01:50:00", "01:55:00", "02:00:00", "02:05:00"]
    assert [made.timestamp for made in ground.backups()] == ["2024-01-02T02:00:00"]


def test_what_breaks_later_is_told_at_each_check_and_looked_at_again(ground: Ground) -> None:
    ground.add()
    good = ground.file.path.read_text()
    steps: list[Callable[[], object]] = [
        lambda: ground.file.path.write_text("{"),
        nothing,
        lambda: ground.file.path.write_text(good),
        lambda: ground.at("2024-01-02T02:00:00"),
    ]
    ground.scheduler().run_scheduler(wait=rounds(ground, *steps))
    told = [event.error for event in ground.told(RunFailed)]
    assert len(told) == 2
    assert all(f"{ground.file.path}, line 1: " in error for error in told)
    assert len(ground.backups()) == 1


def test_settings_that_change_count_from_the_next_check(ground: Ground) -> None:
    toml = ground.service.root / "holdfast.toml"
    elsewhere = ground.service.root.parent / "elsewhere"
    steps: list[Callable[[], object]] = [
        lambda: toml.write_text("nonsense"),
        lambda: toml.write_text(f'[backup]\ndirectory = "{elsewhere}"\n'),
        lambda: ground.add(schedule_type="*/5 * * * *"),
        nothing,
    ]
    ground.scheduler().run_scheduler(wait=rounds(ground, *steps))
    assert [str(toml) in event.error for event in ground.told(RunFailed)] == [True]
    assert len(list(elsewhere.glob("full/*.tar.gz"))) == 1


def test_that_there_is_no_schedule_is_told_once(ground: Ground) -> None:
    ground.scheduler().run_scheduler(wait=rounds(ground, nothing, nothing))
    assert [warning for warning in ground.warnings if "holds no schedule" in warning] == [
        f"{ground.file.path} holds no schedule: nothing is backed up by itself"
    ]


def test_stop_ends_it_and_abandons_the_run_at_work(ground: Ground) -> None:
    schedule_id = ground.add()
    ground.at("2024-01-02T02:00:00")

    def stop(event: Event) -> None:
        if isinstance(event, StageStarted):
            scheduler.stop()

    scheduler = ground.scheduler(subscribers=[stop])
    with pytest.raises(Interrupted):
        scheduler.run_scheduler()
    assert ground.backups() == []
    assert ground.schedule(schedule_id).last_status == "interrupted"


def test_stop_from_another_thread_ends_the_waiting(ground: Ground) -> None:
    ground.add()
    scheduler = ground.scheduler()
    thread = threading.Thread(target=scheduler.run_scheduler)
    thread.start()
    scheduler.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_the_numbers_are_served_and_written(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    textfile = tmp_path / "holdfast.prom"
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("BACKUP_METRICS_PORT", str(port))
    monkeypatch.setenv("BACKUP_METRICS_TEXTFILE", str(textfile))
    ground.add()
    served: list[str] = []

    def scrape() -> None:
        with urlopen(f"http://{HOST}:{port}/metrics") as answer:
            served.append(answer.read().decode())

    steps = [lambda: ground.at("2024-01-02T02:00:00"), scrape]
    ground.scheduler().run_scheduler(wait=rounds(ground, *steps))
    assert "backup_success_total 1.0" in served[0]
    assert "backup_success_total 1.0" in textfile.read_text()
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://{HOST}:{port}/metrics")


def test_a_port_that_is_taken_is_told_at_the_start(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    with MailServer().running() as other:
        monkeypatch.setenv("BACKUP_METRICS_PORT", str(other.port))
        with pytest.raises(ConfigError, match=str(other.port)):
            ground.scheduler().run_scheduler(wait=rounds(ground))


def test_mail_goes_to_the_schedules_address_and_waits_while_there_is_no_server(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("SMTP_SERVER", HOST)
    monkeypatch.setenv("SMTP_PORT", str(port))
    schedule_id = ground.add(notification_email="admin@example.com")
    scheduler = ground.scheduler()
    ground.at("2024-01-02T02:00:00")
    assert [outcome.kind for outcome in scheduler.run_due()] == ["success"]
    with MailServer().running(port=port) as server:
        ground.at("2024-01-02T12:00:00")
        scheduler.run_due()
        ground.at("2024-01-03T02:00:00")
        scheduler.run_due()
    assert [mail.recipients for mail in server.received] == [["admin@example.com"]] * 2
    subject = f"IIT ML Service - Backup Success: {schedule_id}"
    assert [mail.mail["Subject"] for mail in server.received] == [subject] * 2
