"""A process that is killed at any statement of a PostgreSQL restore leaves the old database or the new one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conformance.source import drain
from forks import run_child
from holdfast.clock import system_clock
from holdfast.sources import _program
from holdfast.sources.postgres import _connection as _postgres_connection
from holdfast.transaction import Swap, Transaction, discard, recover, undo
from kill_points import kill_points
from sources.postgres_restores import Backup, backup, kinds, places_in, revived, stage
from sources.postgres_server import PostgresServer, database_fixture, postgres_fixture

__all__ = ["database_fixture", "drain", "postgres_fixture"]

TIMED = 8
"""So often a long run kills a restore by a timer, which strikes while the server, or a program, is at work for it."""

USERS = ["postgres", "tenant"]
"""One restores beside the live database, the other into it."""


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "temp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest, postgres: PostgresServer, database: str) -> str:
    name: str = request.param
    postgres.role("tenant")
    postgres.run("postgres", f'ALTER DATABASE "{database}" OWNER TO "{name}"')
    postgres.run(database, "CREATE TABLE item (text text); INSERT INTO item VALUES ('new')", user=name)
    return name


def grow_old(server: PostgresServer, database: str, user: str) -> None:
    """Makes the live database differ from the backup."""
    server.run(database, "UPDATE item SET text = 'old'; CREATE TABLE extra (id int)", user=user)


def state(server: PostgresServer, database: str) -> str:
    [(text,)] = server.run(database, "SELECT text FROM item")
    has_extra = bool(server.run(database, "SELECT 1 FROM pg_class WHERE relname = 'extra'"))
    assert has_extra == (text == "old")
    return str(text)


def run_until(action: Callable[[], object], point: int) -> bool:
    """Runs `action` in a child that is killed at its `point`-th point: before and after each statement, and before
    each piece that a program is fed. Returns whether it was killed."""

    def attempt() -> None:
        seen = 0

        def step() -> None:
            nonlocal seen
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        run, feed = _postgres_connection.Session.run, _program.Program.feed

        def counted_run(self: Any, *arguments: Any) -> Any:
            step()
            rows = run(self, *arguments)
            step()
            return rows

        def counted_pieces(pieces: Any) -> Iterator[Any]:
            for piece in pieces:
                if piece != b"\n":
                    step()
                yield piece
            step()

        _postgres_connection.Session.run = counted_run  # type: ignore[method-assign]
        _program.Program.feed = lambda self, pieces: feed(self, counted_pieces(pieces))  # type: ignore[method-assign]
        action()

    return run_child(attempt) != 0


VICTIMS: dict[str, tuple[Callable[[Swap], None], Callable[[Swap], None], Callable[[Swap], None], str]] = {
    # what comes before each time, what is killed, what puts it right, and what is live then
    "apply": (lambda swap: None, lambda swap: swap.apply(), lambda swap: swap.revert(), "old"),
    "revert": (lambda swap: swap.apply(), lambda swap: swap.revert(), lambda swap: swap.revert(), "old"),
    "undo": (
        lambda swap: None,
        lambda swap: swap.reversed().apply(),
        lambda swap: swap.reversed().revert(),
        "new",
    ),
    "revert of undo": (
        lambda swap: swap.reversed().apply(),
        lambda swap: swap.reversed().revert(),
        lambda swap: swap.reversed().revert(),
        "new",
    ),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_swap_that_is_killed_can_be_reverted(
    postgres: PostgresServer, database: str, user: str, victim: str
) -> None:
    # In place each step takes several programs.
    kill_swap(postgres, database, user, victim, every=3 if user == "postgres" else 12)


@pytest.mark.torture
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_swap_that_is_killed_at_any_statement_can_be_reverted(
    postgres: PostgresServer, database: str, user: str, victim: str
) -> None:
    kill_swap(postgres, database, user, victim, every=1)


def kill_swap(server: PostgresServer, database: str, user: str, victim: str, *, every: int) -> None:
    url = server.url(database, user=user)
    swap = stage(url, prepare(server, database, user))
    before, killed, repair, expected = VICTIMS[victim]
    if expected == "new":
        swap.apply()
    for point in kill_points(0, every=every, seed=victim):
        before(revived(url, swap))
        was_killed = run_until(lambda: killed(revived(url, swap)), point)
        for _ in range(2):
            repair(revived(url, swap))
            assert state(server, database) == expected, f"killed at {point}"
        names = [name for name in server.databases() if name.startswith(database)]
        assert len(names) == (2 if user == "postgres" else 1), f"killed at {point}"
        if not was_killed:
            break
    assert point > 10


@pytest.mark.parametrize("victim", ["apply", "revert", "undo"])
def test_a_database_that_was_not_there_is_not_there_again(
    postgres: PostgresServer, database: str, victim: str
) -> None:
    kill_creation(postgres, database, victim, every=4)


@pytest.mark.torture
@pytest.mark.parametrize("victim", ["apply", "revert", "undo"])
def test_a_database_that_was_not_there_is_not_there_again_after_any_statement(
    postgres: PostgresServer, database: str, victim: str
) -> None:
    kill_creation(postgres, database, victim, every=1)


def kill_creation(server: PostgresServer, database: str, victim: str, *, every: int) -> None:
    url = server.url(database)
    server.run(database, "CREATE TABLE item (text text); INSERT INTO item VALUES ('new')")
    taken = backup(url)
    server.drop(database)
    swap = stage(url, taken, create_database=True)
    before, killed, repair, expected = VICTIMS[victim]
    if expected == "new":
        swap.apply()
    for point in kill_points(0, every=every, seed=victim):
        before(revived(url, swap))
        was_killed = run_until(lambda: killed(revived(url, swap)), point)
        for _ in range(2):
            repair(revived(url, swap))
            assert server.has(database) == (expected == "new"), f"killed at {point}"
        if not was_killed:
            break
    assert point > 10
    if expected == "old":
        swap.apply()
    assert state(server, database) == "new"


def prepare(server: PostgresServer, database: str, user: str) -> Backup:
    taken = backup(server.url(database, user=user))
    grow_old(server, database, user)
    return taken


def test_a_restore_that_is_killed_is_recovered_by_the_next_command(
    postgres: PostgresServer, database: str, user: str, temp: Path, tmp_path: Path
) -> None:
    killed_anywhere(postgres, database, user, temp, tmp_path / "state", every=25, timed=[3, 6])


@pytest.mark.torture
def test_a_restore_that_is_killed_at_any_statement_is_recovered_by_the_next_command(
    postgres: PostgresServer, database: str, user: str, temp: Path, tmp_path: Path
) -> None:
    killed_anywhere(postgres, database, user, temp, tmp_path / "state", every=1, timed=range(1, TIMED + 1))


def killed_anywhere(
    server: PostgresServer,
    database: str,
    user: str,
    temp: Path,
    state_dir: Path,
    *,
    every: int,
    timed: Iterable[int],
) -> None:
    """`timed`: after so many parts of `TIMED` of its time a restore is killed by a timer."""
    url = server.url(database, user=user)
    server.run(
        database, "CREATE TABLE big AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n", user=user
    )
    taken = prepare(server, database, user)
    known = kinds(url)

    def whole_restore() -> None:
        with Transaction.begin(
            state_dir, known, verb="restore", subject="full_20240101_020000", clock=system_clock
        ) as transaction:
            transaction.apply([stage(url, taken, transaction)])

    def check_recovered(when: str) -> None:
        recover(state_dir, known, system_clock())
        if state(server, database) == "new":
            undo(state_dir, known, system_clock)
            assert state(server, database) == "old", when
            discard(state_dir, known)
        assert [name for name in server.databases() if name.startswith(database)] == [database], when
        assert places_in(temp) == [], when
        assert recover(state_dir, known, system_clock() + timedelta(days=1)) is None

    for point in kill_points(0, every=every, seed=user):
        was_killed = run_until(whole_restore, point)
        check_recovered(f"killed at {point}")
        if not was_killed:
            break
    assert point > 50
    started = time.monotonic()
    whole_restore()
    seconds = time.monotonic() - started
    check_recovered("not killed")
    for number in timed:

        def struck(after: float = seconds * number / TIMED) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, after)
            whole_restore()

        run_child(struck)
        check_recovered(f"killed after {number}/{TIMED} of {seconds} s")
