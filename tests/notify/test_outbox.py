from __future__ import annotations

import json
import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from holdfast.durable import file_lock
from holdfast.notify import Message, _notifier
from notify.conftest import MakePost, Post
from notify.said import failed, finished
from notify.servers import MailServer, free_port


@pytest.fixture
def down(post: MakePost) -> Post:
    """Its mail server is not there."""
    return post(SMTP_PORT=str(free_port()), SMTP_PASSWORD="hidden-a", ENCRYPTION_KEY="hidden-b")


def tries_of(post: Post) -> int:
    [waiting] = post.waiting
    tries = json.loads(waiting.read_text())["tries"]
    assert isinstance(tries, int)
    return tries


def test_what_waits_is_private_and_holds_no_secret(down: Post) -> None:
    down.notifier(failed("cannot connect to postgresql://u:hidden-c@host/db with hidden-b"))
    [waiting] = down.waiting
    assert stat.S_IMODE(down.outbox.stat().st_mode) == 0o700
    assert stat.S_IMODE(waiting.stat().st_mode) == 0o600
    assert "hidden" not in waiting.read_text() + " ".join(down.warnings)
    assert "postgresql://***@host/db" in waiting.read_text()


def test_it_is_tried_again_at_growing_intervals(down: Post) -> None:
    down.notifier(finished())
    moments = []
    for minute in range(0, 24 * 60, 5):
        before = tries_of(down)
        down.notifier.retry()
        if tries_of(down) > before:
            moments.append(minute)
        down.clock.forward(300)
    assert moments[:6] == [5, 15, 35, 75, 155, 275]
    assert {later - earlier for earlier, later in pairwise(moments[5:])} == {120}
    assert len(down.warnings) == 1


def test_it_is_given_up_after_a_day_with_a_warning(down: Post) -> None:
    down.notifier(finished())
    down.clock.forward(24 * 3600 + 1)
    down.notifier.retry()
    assert down.waiting == []
    assert len(down.warnings) == 2
    assert "within 24 hours" in down.warnings[1]
    assert "mail to admin@example.com" in down.warnings[1]


def test_a_clock_that_is_set_back_keeps_nothing_waiting(down: Post) -> None:
    down.notifier(finished())
    down.clock.forward(-30 * 24 * 3600)
    down.notifier.retry()
    assert tries_of(down) == 2
    for _ in range(100):
        down.clock.forward(7200)
        down.notifier.retry()
    assert down.waiting == []


def test_there_is_a_limit_to_what_waits_and_the_oldest_goes_first(down: Post) -> None:
    item = None
    for number in range(203):
        down.clock.forward(1)
        down.notifier.send(Message("test", f"number {number}", "text\n"))
        item = number
    assert item == 202
    assert len(down.waiting) == 200
    subjects = [json.loads(path.read_text())["message"]["subject"] for path in down.waiting]
    assert (subjects[0], subjects[-1]) == ("number 3", "number 202")
    assert any("'number 0' by mail is dropped" in warning for warning in down.warnings)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"name": 1}',
        b"\xff",
        b"x" * (300 << 10),
    ],
)
def test_a_file_that_is_none_of_ours_is_removed_and_the_others_are_sent(
    post: MakePost, content: bytes
) -> None:
    made = post(SMTP_PORT=str(free_port()))
    made.notifier(finished())
    [good] = made.waiting
    foreign = made.outbox / f"20200101T000000-{'0' * 32}.json"
    foreign.write_bytes(content)
    foreign.chmod(0o600)
    made.clock.forward(300)
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier.retry()
    assert len(server.received) == 1
    assert not foreign.exists()
    assert not good.exists()


@pytest.mark.parametrize("key", ["channel", "created", "due", "tries", "message"])
def test_an_altered_item_is_removed(down: Post, key: str) -> None:
    down.notifier(finished())
    [waiting] = down.waiting
    data = json.loads(waiting.read_text())
    for value in (None, -1, {"kind": "other"}, "x" * 10 if key != "channel" else 5):
        waiting.write_text(json.dumps(data | {key: value}))
        waiting.chmod(0o600)
        down.notifier.retry()
        assert not waiting.exists()


def test_a_file_that_others_could_have_written_is_not_believed(post: MakePost) -> None:
    made = post(SMTP_PORT=str(free_port()))
    made.notifier(finished())
    [waiting] = made.waiting
    waiting.chmod(0o666)
    made.clock.forward(300)
    with MailServer().running() as server:
        post(SMTP_PORT=str(server.port)).notifier.retry()
    assert server.received == []
    assert made.waiting == []


def test_a_link_in_the_outbox_is_not_followed(down: Post, tmp_path: Path) -> None:
    down.notifier(finished())
    [waiting] = down.waiting
    elsewhere = tmp_path / "elsewhere.json"
    waiting.rename(elsewhere)
    waiting.symlink_to(elsewhere)
    down.notifier.retry()
    assert elsewhere.exists()
    assert not os.path.lexists(waiting)


def test_an_outbox_that_others_may_write_to_is_not_used_and_there_is_one_try(post: MakePost) -> None:
    with MailServer().running() as server:
        made = post(SMTP_PORT=str(server.port))
        made.outbox.mkdir(parents=True)
        for directory in (made.outbox.parent.parent.parent, made.outbox.parent.parent, made.outbox.parent):
            directory.chmod(0o700)
        made.outbox.chmod(0o777)
        made.notifier(finished())
        made.notifier.retry()
    assert len(server.received) == 1
    assert made.waiting == []
    assert "may be written by, another user" in made.warnings[0]


def test_nothing_is_sent_twice_while_another_process_delivers(post: MakePost) -> None:
    with MailServer().running() as server:
        made = post(SMTP_PORT=str(server.port))
        made.notifier(finished())
        with file_lock(made.outbox / ".lock"):
            made.notifier(finished("second"))
            made.notifier.retry()
            assert len(server.received) == 1
            assert len(made.waiting) == 1
        made.notifier.retry()
    assert len(server.received) == 2
    assert made.waiting == []


def test_a_call_ends_when_its_time_is_up_and_the_next_one_goes_on(
    post: MakePost, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = post(SMTP_PORT=str(free_port()))
    for number in range(3):
        made.notifier(finished(str(number)))
        made.clock.forward(1)
    made.clock.forward(300)
    monkeypatch.setattr(_notifier, "_BUDGET", 0.0)
    with MailServer().running() as server:
        again = post(SMTP_PORT=str(server.port))
        for expected in (1, 2, 3):
            again.notifier.retry()
            assert len(server.received) == expected
    assert made.waiting == []


def test_what_is_not_configured_any_more_is_dropped_with_a_warning(down: Post, post: MakePost) -> None:
    down.notifier(finished())
    silent = post(NOTIFICATION_EMAIL="")
    silent.notifier.retry()
    assert silent.waiting == []
    assert "mail is not configured any more" in silent.warnings[0]


def test_no_outbox_is_made_where_nothing_is_configured(post: MakePost) -> None:
    made = post(NOTIFICATION_EMAIL="")
    made.notifier(finished())
    assert not made.outbox.exists()
