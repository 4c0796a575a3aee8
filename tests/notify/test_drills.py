"""What is told of drills, and to whom."""

from __future__ import annotations

import pytest

from holdfast.events import DrillFailed, DrillFinished
from notify.conftest import MakePost
from notify.servers import MailServer, WebServer, free_port

GOOD = DrillFinished("full_20240101_020000", 61.04, 48.26, 104857600, 1, None)
BAD = DrillFailed(
    "full_20240101_020000",
    "the drill's command ./predict ended with status 1: password=hunter2",
    "Its own output says why.",
    "ops@example.com",
)


def test_a_good_drill_is_told_with_its_measures(post: MakePost) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(GOOD)
    [received] = server.received
    assert received.recipients == ["admin@example.com"]
    assert b"Subject: IIT ML Service - Restore Drill Success: full_20240101_020000" in received.content
    assert received.text.splitlines() == [
        "The rehearsed restore of backup full_20240101_020000 completed successfully.",
        "Content: 104857600 bytes",
        "Duration of the drill: 61.0 seconds",
        "Estimated duration of a restore: 48.3 seconds",
        "Warnings: 1",
    ]


def test_what_could_not_be_estimated_is_told_as_unknown(post: MakePost) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(DrillFinished("full_20240101_020000", 1, None, 1, 0))
    assert "Estimated duration of a restore: unknown" in server.received[0].text


def test_a_failed_drill_is_told_to_whom_the_schedule_names_without_secrets(post: MakePost) -> None:
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier(BAD)
    [received] = server.received
    assert received.recipients == ["ops@example.com"]
    assert b"Subject: IIT ML Service - Restore Drill Failure: full_20240101_020000" in received.content
    assert received.text.splitlines() == [
        "The rehearsed restore of backup full_20240101_020000 failed.",
        "Error: the drill's command ./predict ended with status 1: password=***",
        "Hint: Its own output says why.",
        "Nothing live was touched. Try again: holdfast drill full_20240101_020000",
    ]


@pytest.mark.parametrize("event", [GOOD, BAD])
def test_a_dead_mans_switch_hears_nothing_of_drills(
    post: MakePost, event: DrillFinished | DrillFailed
) -> None:
    with WebServer().running() as web:
        post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"{web.url}/ping").notifier(event)
    assert web.requests == []


@pytest.mark.parametrize("event", [GOOD, BAD])
def test_a_drill_that_could_not_be_told_is_told_later(
    post: MakePost, event: DrillFinished | DrillFailed
) -> None:
    made = post(SMTP_PORT=str(free_port()))
    made.notifier(event)
    assert len(made.waiting) == 1
    made.clock.forward(3600)
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier.retry()
    assert "Restore Drill" in str(server.received[0].mail["Subject"])
    assert made.waiting == []
