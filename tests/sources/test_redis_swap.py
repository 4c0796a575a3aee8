from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url

from conformance.places import Places
from forks import run_child
from holdfast.clock import system_clock
from holdfast.errors import NothingToUndo, RestoreError
from holdfast.events import ignore
from holdfast.model import Entry
from holdfast.sources.redis import RedisSwap, RedisSwaps, RedisTarget
from holdfast.sources.redis._connection import Session
from holdfast.transaction import Kinds, Transaction, discard, recover, undo
from sources.redis_server import PATIENCE, RedisServer, dump, fenced, server, shared_redis, source_of

__all__ = ["server", "shared_redis"]

ENTRY = Entry("database/features.dump", "file", mode=0o600)


def kinds_of(*urls: URL) -> Kinds:
    return {"redis": RedisSwaps(lambda: urls, timeout=5)}


def staged(server: RedisServer) -> RedisSwap:
    """A swap that would make the live database hold `key` = ``restored`` in place of ``live``."""
    with server.client() as client:
        client.set("key", "restored")
        _, content = dump(source_of(server.url()))
        client.set("key", "live")
    (swap,) = RedisTarget(server.url(), {}, timeout=5).stage(
        iter([ENTRY]), lambda entry: iter([content]), Places(), ignore
    )
    assert isinstance(swap, RedisSwap)
    return swap


def held(server: RedisServer, database: int = 0) -> dict[bytes, bytes]:
    with server.client(database) as client:
        return {key: client.get(key) for key in client.scan_iter()}


def test_connected_clients_see_the_restored_data_with_their_next_command(server: RedisServer) -> None:
    with server.client() as client:
        swap = staged(server)
        assert client.get("key") == b"live"
        swap.apply()
        assert client.get("key") == b"restored"
        swap.revert()
        assert client.get("key") == b"live"


def test_the_live_database_never_shows_a_marker(server: RedisServer) -> None:
    swap = staged(server)
    stop = threading.Event()
    seen: set[tuple[bytes, ...]] = set()

    def look() -> None:
        with server.client() as client:
            while not stop.is_set():
                seen.add(tuple(client.keys()))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(300):
            swap.apply()
            swap.revert()
    finally:
        stop.set()
        looker.join(PATIENCE)
    assert seen == {(b"key",)}


def test_a_spare_database_that_was_emptied_is_not_swapped_in(server: RedisServer) -> None:
    swap = staged(server)
    with server.client(swap.spare) as client:
        client.flushdb()
        client.set("key", "somebody's")
    with pytest.raises(RestoreError, match="does not hold any more"):
        swap.apply()
    swap.revert()
    swap.discard()
    assert held(server) == {b"key": b"live"}
    assert held(server, swap.spare) == {b"key": b"somebody's"}


def test_an_undo_of_what_was_emptied_says_so(server: RedisServer) -> None:
    swap = staged(server)
    swap.apply()
    with server.client(swap.spare) as client:
        client.flushdb()
    with pytest.raises(NothingToUndo):
        swap.reversed().apply()
    assert held(server) == {b"key": b"restored"}


def test_what_a_later_swap_keeps_is_not_discarded_with_an_earlier_one(server: RedisServer) -> None:
    swap = staged(server)
    swap.apply()
    back = swap.reversed()
    back.apply()
    again = back.reversed()
    swap.discard()
    again.apply()
    assert held(server) == {b"key": b"restored"}


def test_a_right_that_is_missing_leaves_all_as_it_was(server: RedisServer) -> None:
    swap = staged(server)
    before = held(server, swap.spare).keys()
    for command in ("swapdb", "move", "rename"):
        url = fenced(server, f"-{command}")
        fenced_swap = kinds_of(url)["redis"].from_journal(swap.to_journal())
        with pytest.raises(RestoreError, match=f"{command.upper()}: "):
            fenced_swap.apply()
        assert held(server) == {b"key": b"live"}
        assert held(server, swap.spare).keys() == before


@pytest.mark.parametrize(
    "change",
    [
        {"live": -1},
        {"live": "0"},
        {"live": True},
        {"spare": 1 << 40},
        {"spare": 0, "live": 0},
        {"generation": 1.5},
        {"generation": -1},
        {"run": "x"},
        {"run": "0123456789abcdef\n"},
        {"run": None},
        {"address": {}},
        {"address": {"dialect": "redis", "host": 1, "port": 1, "database": ""}},
    ],
)
def test_a_journal_is_not_believed(change: dict[str, Any]) -> None:
    state = {
        "address": {"dialect": "redis", "host": "h", "port": 1, "database": "0"},
        "live": 0,
        "spare": 1,
        "run": "0123456789abcdef",
        "generation": 0,
    }
    swaps = RedisSwaps(list, timeout=5)
    assert swaps.from_journal(state).to_journal() == state
    with pytest.raises((KeyError, TypeError, ValueError)):
        swaps.from_journal(state | change)


def test_a_server_that_is_not_configured_any_more_is_an_error(server: RedisServer) -> None:
    swap = staged(server)
    others = [server.url(1), *([server.url().set(drivername="postgresql")])]
    revived = RedisSwaps(lambda: others, timeout=5).from_journal(swap.to_journal())
    with pytest.raises(RestoreError, match="not configured any more"):
        revived.revert()


def test_databases_behind_one_socket_are_told_apart(server: RedisServer) -> None:
    urls = [make_url(f"unix://{server.path}?db={number}") for number in (1, 2)]
    with server.client(2) as client:
        client.set("key", "two")
    _, content = dump(source_of(urls[1]))
    (swap,) = RedisTarget(urls[1], {}, timeout=5).stage(
        iter([ENTRY]), lambda entry: iter([content]), Places(), ignore
    )
    revived = RedisSwaps(lambda: urls, timeout=5).from_journal(swap.to_journal())
    revived.apply()
    revived.discard()
    assert held(server, 2) == {b"key": b"two"}


class Killed:
    """Kills this process, which is a child, at the n-th point: before a command is sent, or once it was."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0

    def install(self) -> None:
        send = Session.send

        def counted(session: Session, commands: Any) -> None:
            self.point()
            send(session, commands)
            self.point()

        Session.send = counted  # type: ignore[method-assign]

    def point(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def restore(server: RedisServer, state: Path, content: bytes) -> None:
    kinds = kinds_of(server.url())
    with Transaction.begin(state, kinds, verb="restore", subject="x", clock=system_clock) as transaction:
        target = RedisTarget(server.url(), {}, timeout=5)
        swaps = target.stage(iter([ENTRY]), lambda entry: iter([content]), transaction, ignore)
        transaction.apply(swaps)


def killings(action: Callable[[], object], *, least: int) -> Iterator[int]:
    """Runs it in children that are killed ever later, until one gets to its end: after `least` others."""
    at = 0
    while True:
        at += 1

        def child(at: int = at) -> None:
            Killed(at).install()
            action()

        survived = run_child(child) == 0
        yield at
        if survived:
            assert at > least
            return


def used(server: RedisServer) -> set[str]:
    with server.client() as client:
        return set(client.info("keyspace"))


def test_a_restore_that_is_killed_at_any_command_leaves_the_old_data_or_the_new(
    server: RedisServer, tmp_path: Path
) -> None:
    kinds = kinds_of(server.url())
    with server.client() as client:
        client.set("key", "restored")
        _, content = dump(source_of(server.url()))
    state = tmp_path / "state"
    seen = set()

    def prepare() -> None:
        server.reset()
        with server.client() as client:
            client.set("key", "live")
            client.set("another", "key")

    prepare()
    for _ in killings(lambda: restore(server, state, content), least=20):
        recover(state, kinds, system_clock())
        held_now = held(server)
        assert held_now in ({b"key": b"live", b"another": b"key"}, {b"key": b"restored"})
        seen.add(len(held_now))
        if len(held_now) == 1:
            discard(state, kinds)
        assert used(server) == {"db0"}
        assert recover(state, kinds, system_clock()) is None
        prepare()
    assert seen == {1, 2}


def test_an_undo_that_is_killed_at_any_command_leaves_the_one_or_the_other(
    server: RedisServer, tmp_path: Path
) -> None:
    kinds = kinds_of(server.url())
    with server.client() as client:
        client.set("key", "restored")
        _, content = dump(source_of(server.url()))
        client.set("key", "live")
    state = tmp_path / "state"
    restore(server, state, content)
    for _ in killings(lambda: undo(state, kinds, system_clock), least=2):
        recover(state, kinds, system_clock())
        assert held(server) in ({b"key": b"live"}, {b"key": b"restored"})
        assert len(used(server)) == 2
        before = held(server)
        undo(state, kinds, system_clock)
        assert held(server) != before
        if held(server) == {b"key": b"live"}:
            undo(state, kinds, system_clock)
    discard(state, kinds)
    assert used(server) == {"db0"}


def test_discarding_that_is_killed_at_any_command_is_finished_later(
    server: RedisServer, tmp_path: Path
) -> None:
    kinds = kinds_of(server.url())
    with server.client() as client:
        client.set("key", "restored")
        _, content = dump(source_of(server.url()))
        client.set("key", "live")
    state = tmp_path / "state"
    restore(server, state, content)
    for _ in killings(lambda: discard(state, kinds), least=2):
        recover(state, kinds, system_clock())
        assert used(server) == {"db0"}
        assert held(server) == {b"key": b"restored"}
        restore(server, state, content)
    discard(state, kinds)
    assert used(server) == {"db0"}
