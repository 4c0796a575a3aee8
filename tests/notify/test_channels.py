from __future__ import annotations

import json
import logging
import sys

import pytest

from holdfast.notify import faults
from notify.conftest import MakePost
from notify.said import UUID, disabled, failed, finished
from notify.servers import HOST, Certificates, MailServer, WebServer, free_port


def test_a_message_goes_through_every_apprise_url(post: MakePost) -> None:
    with WebServer().running() as web:
        urls = f"json://{HOST}:{web.port}/one json://{HOST}:{web.port}/two"
        post(NOTIFICATION_EMAIL="", BACKUP_APPRISE_URLS=urls).notifier(failed())
    assert [(request.method, request.path) for request in web.requests] == [
        ("POST", "/one"),
        ("POST", "/two"),
    ]
    sent = json.loads(web.requests[0].body)
    assert sent["title"] == f"IIT ML Service - Backup Failure: {UUID}"
    assert "Error: Database backup failed: main is locked" in sent["message"]
    assert sent["type"] == "failure"


def test_what_one_channel_refuses_the_others_deliver_and_only_it_is_tried_again(post: MakePost) -> None:
    web = WebServer({"/one": 500})
    with web.running(), MailServer().running() as server:
        urls = f"json://{HOST}:{web.port}/one json://{HOST}:{web.port}/two"
        made = post(SMTP_PORT=str(server.port), BACKUP_APPRISE_URLS=urls)
        made.notifier(finished())
        assert len(made.waiting) == 1
        assert len(made.warnings) == 1
        web.answers.clear()
        made.clock.forward(300)
        made.notifier.retry()
    assert [request.path for request in web.requests] == ["/one", "/two", "/one"]
    assert len(server.received) == 1
    assert made.waiting == []


def test_no_part_of_an_apprise_url_is_logged_or_kept(
    post: MakePost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"json://user:hiddenhidden@{HOST}:{free_port()}/hidden-token?x=1"
    made = post(NOTIFICATION_EMAIL="", BACKUP_APPRISE_URLS=url)
    made.notifier(finished())
    assert "Apprise URL 1 (json)" in made.warnings[0]
    assert "hidden" not in caplog.text + " ".join(made.warnings) + made.waiting[0].read_text()


def test_an_apprise_url_that_is_not_understood_is_told_by_its_scheme(post: MakePost) -> None:
    made = post(NOTIFICATION_EMAIL="", BACKUP_APPRISE_URLS="nosuch://hidden-token")
    made.notifier(finished())
    assert "begins with nosuch://" in made.warnings[0]
    assert "hidden" not in made.warnings[0]


def test_without_apprise_the_extra_is_named(post: MakePost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    made = post(NOTIFICATION_EMAIL="", BACKUP_APPRISE_URLS="json://localhost")
    made.notifier(finished())
    assert "holdfast[apprise]" in made.warnings[0]


def test_what_is_wrong_with_the_settings_can_be_told_without_sending(
    post: MakePost, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert faults(post().settings) == []
    assert "SMTP_PASSWORD" in faults(post(SMTP_USERNAME="robot").settings)[0]
    assert faults(post(BACKUP_APPRISE_URLS="json://localhost").settings) == []
    monkeypatch.setitem(sys.modules, "apprise", None)
    assert "holdfast[apprise]" in faults(post(BACKUP_APPRISE_URLS="json://localhost").settings)[0]


def test_a_dead_mans_switch_learns_of_success_and_failure(post: MakePost) -> None:
    with WebServer().running() as web:
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"{web.url}/ping/uuid")
        made.notifier(finished())
        made.notifier(failed())
        made.notifier(disabled())
    assert [(request.method, request.path) for request in web.requests] == [
        ("GET", "/ping/uuid"),
        ("GET", "/ping/uuid/fail"),
    ]


def test_the_query_of_a_ping_url_stays_behind_the_path(post: MakePost) -> None:
    with WebServer().running() as web:
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"{web.url}/ping/?create=1")
        made.notifier(failed())
    assert [request.path for request in web.requests] == ["/ping/fail?create=1"]


def test_a_ping_that_is_late_never_hides_what_came_after_it(post: MakePost) -> None:
    web = WebServer({"/hidden": 503, "/hidden/fail": 503})
    with web.running():
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"{web.url}/hidden")
        made.notifier(finished())
        made.notifier(failed())
        assert len(made.waiting) == 1
        web.answers.clear()
        web.requests.clear()
        made.clock.forward(300)
        made.notifier.retry()
    assert [request.path for request in web.requests] == ["/hidden/fail"]
    assert made.waiting == []
    assert "answered 503" in made.warnings[0]
    assert "hidden" not in " ".join(made.warnings)


def test_a_ping_follows_a_few_redirects(post: MakePost) -> None:
    web = WebServer({"/0": "/1", "/1": "/2", "/2": "/3", "/loop": "/loop"})
    with web.running():
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"{web.url}/0")
        made.notifier(finished())
        assert made.warnings == []
        assert web.requests[-1].path == "/3"
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"{web.url}/loop")
        made.notifier(finished())
    assert len(made.warnings) == 1
    assert len(web.requests) < 10


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_a_ping_leads_nowhere_but_to_the_web(post: MakePost, target: str) -> None:
    with WebServer({"/x": target}).running() as web:
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"{web.url}/x")
        made.notifier(finished())
    assert "answered 302" in made.warnings[0]


def test_a_ping_over_tls_stays_there(post: MakePost, certificates: Certificates) -> None:
    with WebServer().running() as plain, WebServer().running(tls=certificates.server) as web:
        web.answers = {"/down": f"{plain.url}/x"}
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"https://{HOST}:{web.port}/up")
        made.notifier(finished())
        assert made.warnings == []
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=f"https://{HOST}:{web.port}/down")
        made.notifier(finished())
    assert len(made.warnings) == 1
    assert plain.requests == []
    assert [request.path for request in web.requests] == ["/up", "/down"]


def test_a_ping_asks_for_a_good_certificate(post: MakePost, certificates: Certificates) -> None:
    with WebServer().running(tls=certificates.server) as web:
        url = f"https://{HOST}:{web.port}/hidden"
        made = post(NOTIFICATION_EMAIL="", BACKUP_PING_URL=url, trusting=False)
        made.notifier(finished())
    assert web.requests == []
    assert "cannot be reached" in made.warnings[0]
    assert "hidden" not in made.warnings[0]
