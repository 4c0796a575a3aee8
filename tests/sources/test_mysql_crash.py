"""A process that is killed between any two statements of a switch loses nothing; the next one puts it right."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from forks import run_child
from holdfast.events import ignore
from holdfast.sources.mysql import MySqlSwap, MySqlSwaps, MySqlTarget
from holdfast.transaction import Transaction, recover
from kill_points import kill_points
from sources.mysql_restores import back_up, long_after, stage
from sources.mysql_server import Server, description
from sources.mysql_server import server as server

LIVE = "crash"
_CHANGING = re.compile(r"\s*(CREATE|DROP|ALTER|RENAME|REPLACE|DELETE|LOCK|UNLOCK)\b")


def make(server: Server, *, number: int) -> None:
    """A small database. Some of its programs are the same whatever the number, others are not."""
    server.drop(LIVE)
    server.run(f"CREATE DATABASE {LIVE} COLLATE {'utf8mb4_bin' if number % 2 else 'utf8mb4_unicode_ci'}")
    server.run(
        "CREATE TABLE ledger (id INT PRIMARY KEY)",
        f"CREATE TABLE only{number} (id INT, FOREIGN KEY (id) REFERENCES ledger (id))",
        f"INSERT INTO ledger VALUES ({number})",
        "CREATE VIEW same AS SELECT id FROM ledger",
        f"CREATE VIEW differs AS SELECT id + {number} AS x FROM same",
        f"CREATE PROCEDURE differs() SELECT {number}",
        "CREATE FUNCTION same() RETURNS INT DETERMINISTIC RETURN 1",
        "CREATE TRIGGER same BEFORE INSERT ON ledger FOR EACH ROW SET @a = 1",
        f"CREATE TRIGGER own{number} BEFORE INSERT ON only{number} FOR EACH ROW SET @a = {number}",
        f"CREATE EVENT event{number} ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01' DO SET @a = 1",
        f"CREATE VIEW only{3 - number} AS SELECT 1 AS one",  # a table's name in the other one
        database=LIVE,
    )


class Kill:
    """Kills this process as it sends its `at`-th changing statement: before that, or just after."""

    def __init__(self, at: int, *, sent: bool) -> None:
        self._left = at
        self._sent = sent
        self._send = pymysql.connections.Connection._execute_command
        pymysql.connections.Connection._execute_command = self  # type: ignore[method-assign,assignment]

    def __get__(self, connection: Any, kind: Any) -> Callable[[int, Any], None]:
        return lambda command, sql: self._execute(connection, command, sql)

    def _execute(self, connection: Any, command: int, sql: Any) -> None:
        text = sql.decode("utf-8", "replace") if isinstance(sql, bytes) else str(sql)
        strikes = False
        if _CHANGING.match(text):
            self._left -= 1
            strikes = self._left == 0
        if strikes and not self._sent:
            os.kill(os.getpid(), signal.SIGKILL)
        self._send(connection, command, sql)
        if strikes:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(action: Callable[[], None], at: int, *, sent: bool) -> bool:
    def until_killed() -> None:
        Kill(at, sent=sent)
        action()

    return run_child(until_killed) == signal.SIGKILL


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("was_there", [True, False])
def test_killed_at_some_of_the_statements(server: Server, was_there: bool, sent: bool) -> None:
    kill_everywhere(server, was_there, sent, every=14)


@pytest.mark.torture
@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("was_there", [True, False])
def test_killed_at_every_statement(server: Server, was_there: bool, sent: bool) -> None:
    kill_everywhere(server, was_there, sent, every=1)


def kill_everywhere(server: Server, was_there: bool, sent: bool, *, every: int) -> None:
    server.drop(LIVE, *server.schemas("^crash__holdfast"))
    url = server.url(LIVE)
    make(server, number=2)
    new = description(server, LIVE)
    backup = back_up(url)
    make(server, number=1)
    if not was_there:
        server.drop(LIVE)
    old = description(server, LIVE)
    journal = json.dumps(stage(backup, url, create_database=True).to_journal())

    def swap() -> MySqlSwap:
        return MySqlSwaps(lambda: [url], timeout=20).from_journal(json.loads(journal))

    def points() -> Iterator[int]:
        return kill_points(1 + sent, every=every, seed=was_there)

    def check(expected: object, where: str) -> None:
        assert description(server, LIVE) == expected, where

    for at in points():
        if not killed(lambda: swap().apply(), at, sent=sent):
            break
        # Where the tables were not moved yet, the service goes on with them.
        went_on = was_there and server.rows("SELECT id FROM ledger", LIVE) == [(1,)]
        if went_on:
            server.run("INSERT INTO ledger VALUES (7)", database=LIVE)
        swap().revert()
        if went_on:
            assert server.rows("SELECT id FROM ledger", LIVE) == [(1,), (7,)], "a later write is lost"
            server.run("DELETE FROM ledger WHERE id = 7", database=LIVE)
        check(old, f"apply was killed at statement {at}")
    assert at > 10
    check(new, "apply came to its end")

    def undo() -> MySqlSwap:
        return swap().reversed()  # type: ignore[return-value]

    for at in points():
        if not killed(lambda: undo().apply(), at, sent=sent):
            break
        undo().revert()
        undo().revert()
        check(new, f"undo was killed at statement {at}")
    assert at > 10
    check(old, "undo came to its end")
    undo().revert()
    check(new, "undo was reverted")

    for at in points():
        if not killed(lambda: swap().revert(), at, sent=sent):
            break
        swap().revert()
        check(old, f"revert was killed at statement {at}")
        swap().revert()
        check(old, f"revert was killed at statement {at}, and ran twice")
        swap().apply()
        check(new, f"apply after a revert that was killed at statement {at}")
    assert at > 5
    check(old, "revert came to its end")

    for at in points():
        if not killed(lambda: swap().discard(), at, sent=sent):
            break
        swap().discard()
        assert server.schemas("^crash__holdfast") == []
        journal = json.dumps(stage(backup, url, create_database=True).to_journal())
    check(old, "discarded")
    assert server.schemas("^crash__holdfast") == []
    server.drop(LIVE)


@pytest.mark.parametrize("at", [1, 6, 11, 14, 19])
def test_killed_while_it_stages(server: Server, tmp_path: Path, at: int) -> None:
    kill_staging(server, tmp_path, at)


@pytest.mark.torture
@pytest.mark.parametrize("at", range(1, 20))
def test_killed_at_every_statement_while_it_stages(server: Server, tmp_path: Path, at: int) -> None:
    kill_staging(server, tmp_path, at)


def kill_staging(server: Server, tmp_path: Path, at: int) -> None:
    server.drop(LIVE, *server.schemas("^crash__holdfast"))
    url = server.url(LIVE)
    make(server, number=2)
    backup = back_up(url)
    before = description(server, LIVE)
    kinds = {"mysql": MySqlSwaps(lambda: [url], timeout=20)}

    def restore() -> None:
        with Transaction.begin(tmp_path, kinds, verb="restore", subject="x", clock=long_after) as transaction:
            target = MySqlTarget(url, backup.moment, timeout=20, create_database=False)
            target.stage(iter([backup.entry]), backup.read, transaction, ignore)

    tmp_path.chmod(0o700)
    assert killed(restore, at, sent=at % 2 == 0)
    recovery = recover(tmp_path, kinds, long_after())
    assert recovery is not None
    assert recovery.warnings == ()
    assert server.schemas("^crash__holdfast") == []
    assert description(server, LIVE) == before
    server.drop(LIVE)
