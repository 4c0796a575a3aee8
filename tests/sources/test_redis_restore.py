from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from conformance.places import Places
from holdfast.clock import system_clock
from holdfast.errors import CorruptBackup, DatabaseError, NoSpace, RestoreError
from holdfast.events import Event, Noted, ignore
from holdfast.model import Entry
from holdfast.sources.redis import RedisSource, RedisSwap, RedisSwaps, RedisTarget
from holdfast.sources.redis._crc64 import crc64
from holdfast.transaction import Swap, Transaction, discard, kept, recover, undo
from sources.redis_data import FAR_MS, fill
from sources.redis_server import (
    RedisServer,
    contents,
    dump,
    fenced,
    running,
    server,
    shared_redis,
    source_of,
    told,
    values,
)

__all__ = ["server", "shared_redis"]

ENTRY = Entry("database/features.dump", "file", mode=0o600)
MOMENT = {"server_version": "9.9.9"}


def stage(
    url: URL, content: bytes, places: Places | None = None, events: list[Event] | None = None
) -> list[Swap]:
    target = RedisTarget(url, MOMENT, timeout=5)

    def read(entry: Entry) -> Iterator[bytes]:
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]

    emit = ignore if events is None else events.append
    return target.stage(iter([ENTRY]), read, places or Places(), emit)


def used(server: RedisServer) -> set[str]:
    with server.client() as client:
        return set(client.info("keyspace"))


def test_every_type_comes_back(server: RedisServer) -> None:
    with server.client(3) as client:
        fill(client)
        expected = values(server, 3)
        _, content = dump(source_of(server.url(3)))
        client.flushdb()
        client.set("newer", 1)
    (swap,) = stage(server.url(3), content)
    assert set(values(server, 3)) == {b"newer"}
    swap.apply()
    assert values(server, 3) == expected


def test_a_dump_of_one_number_goes_back_to_another(server: RedisServer) -> None:
    with server.client(3) as client:
        client.set("key", "value")
    _, content = dump(source_of(server.url(3)))
    (swap,) = stage(server.url(7), content)
    swap.apply()
    assert contents(server, 7) == contents(server, 3)


def test_restore_and_undo_go_through_a_transaction(server: RedisServer, tmp_path: Path) -> None:
    url = fenced(server)
    kinds = {"redis": RedisSwaps(lambda: [url], timeout=5)}
    state = tmp_path / "state"
    with server.client() as client:
        client.set("key", "old")
    _, content = dump(source_of(url))
    with server.client() as client:
        client.set("key", "new")
        client.set("more", 1)
    before = contents(server)
    with Transaction.begin(state, kinds, verb="restore", subject="full", clock=system_clock) as transaction:
        target = RedisTarget(url, {}, timeout=5)
        swaps = target.stage(iter([ENTRY]), lambda entry: iter([content]), transaction, ignore)
        assert transaction.apply(swaps) == ()
    assert set(contents(server)) == {b"key"}
    journal = (state / "restore.json").read_text()
    assert "hidden-word" not in journal
    undo(state, kinds, system_clock)
    assert contents(server) == before
    undo(state, kinds, system_clock)
    assert set(contents(server)) == {b"key"}
    assert kept(state) is not None
    assert discard(state, kinds).warnings == ()
    assert used(server) == {"db0"}


def test_a_second_restore_frees_what_the_first_one_kept(server: RedisServer, tmp_path: Path) -> None:
    kinds = {"redis": RedisSwaps(lambda: [server.url()], timeout=5)}
    with server.client() as client:
        client.set("key", "old")
    _, content = dump(source_of(server.url()))
    for _ in range(3):
        with Transaction.begin(
            tmp_path, kinds, verb="restore", subject="x", clock=system_clock
        ) as transaction:
            target = RedisTarget(server.url(), {}, timeout=5)
            swaps = target.stage(iter([ENTRY]), lambda entry: iter([content]), transaction, ignore)
            assert transaction.apply(swaps) == ()
        assert len(used(server)) == 2


def test_a_restore_that_fails_leaves_nothing(server: RedisServer, tmp_path: Path) -> None:
    kinds = {"redis": RedisSwaps(lambda: [server.url()], timeout=5)}
    with server.client() as client:
        client.mset({f"key {number}": number for number in range(2000)})
    _, content = dump(source_of(server.url()))
    before = contents(server)

    def restore() -> None:
        with Transaction.begin(
            tmp_path, kinds, verb="restore", subject="x", clock=system_clock
        ) as transaction:
            target = RedisTarget(server.url(), {}, timeout=5)
            target.stage(iter([ENTRY]), lambda entry: iter([content[:-100]]), transaction, ignore)

    with pytest.raises(CorruptBackup, match="ends in the middle"):
        restore()
    assert recover(tmp_path, kinds, system_clock()) is None
    assert contents(server) == before
    assert used(server) == {"db0"}


def test_the_last_empty_database_is_taken(server: RedisServer) -> None:
    for number in (0, 13, 15):
        with server.client(number) as client:
            client.set("somebody's", number)
    _, content = dump(source_of(server.url()))
    (swap,) = stage(server.url(), content)
    assert isinstance(swap, RedisSwap)
    assert swap.spare == 14
    (second,) = stage(server.url(), content)
    assert isinstance(second, RedisSwap)
    assert second.spare == 12


def test_a_user_who_may_not_see_the_configuration_gets_a_spare_one(server: RedisServer) -> None:
    with server.client() as client:
        client.set("key", 1)
    url = fenced(server, "-config", "-info")
    (swap,) = stage(url, dump(source_of(server.url()))[1])
    swap.apply()
    assert set(contents(server)) == {b"key"}


def test_without_an_empty_database_nothing_is_restored() -> None:
    with running("--databases", "2") as server:
        for number in (0, 1):
            with server.client(number) as client:
                client.set("key", number)
        _, content = dump(source_of(server.url()))
        before = contents(server, 1)
        with pytest.raises(RestoreError, match="no empty logical database"):
            stage(server.url(), content)
        assert contents(server, 1) == before


def test_keys_that_expired_since_the_backup_stay_away_and_are_counted(server: RedisServer) -> None:
    with server.client() as client:
        client.set("stays", 1)
        client.set("expires", 2, pxat=FAR_MS)
    _, content = dump(source_of(server.url()))
    past = content.replace(FAR_MS.to_bytes(8, "little"), (1_000_000).to_bytes(8, "little"))[:-8]
    events: list[Event] = []
    places = Places()
    (swap,) = stage(server.url(), past + crc64(past).to_bytes(8, "little"), places, events)
    swap.apply()
    assert set(contents(server)) == {b"stays"}
    (event,) = events
    assert isinstance(event, Noted)
    assert event.message.startswith("1 of 2 keys")


def test_what_expires_keeps_its_moment(server: RedisServer) -> None:
    with server.client() as client:
        client.set("expires", 2, pxat=FAR_MS + 123)
        _, content = dump(source_of(server.url()))
        client.flushdb()
        (swap,) = stage(server.url(), content)
        swap.apply()
        assert client.execute_command("PEXPIRETIME", "expires") == FAR_MS + 123


def rdb(body: bytes, *, version: int = 9) -> bytes:
    data = b"REDIS%04d" % version + b"\xfe\0" + body + b"\xff"
    return data + crc64(data).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends in the middle"),
        (b"SQLite format 3\0" * 10, "no RDB file"),
        (rdb(b"\0\1k\1x") + b"more", "goes on behind the end"),
        (rdb(b"\0\1k\1x\0\1k\1y"), "has key k twice"),
        (rdb(b"\x10\1k\5abcde"), "does not take the value of key k"),
        (rdb(b"\xf5\4code\0\1k\1x"), "belongs to a whole server"),
        (rdb(b"\0\1k\1x")[:-1] + b"?", "checksum"),
    ],
)
def test_a_dump_that_is_not_sound_is_refused(server: RedisServer, content: bytes, message: str) -> None:
    places = Places()
    with pytest.raises(CorruptBackup, match=message):
        stage(server.url(), content, places)
    for swap in places.registered:
        swap.discard()
    assert used(server) == set()


def test_an_error_at_the_very_end_of_reading_is_heard(server: RedisServer) -> None:
    def read(entry: Entry) -> Iterator[bytes]:
        yield rdb(b"\0\1k\1x")
        raise CorruptBackup("its digest is another one")

    with pytest.raises(CorruptBackup, match="digest"):
        RedisTarget(server.url(), {}, timeout=5).stage(iter([ENTRY]), read, Places(), ignore)


@pytest.mark.parametrize("entries", [[], [ENTRY, ENTRY], [ENTRY._replace(kind="dir")]])
def test_a_backup_with_anything_but_one_dump_is_refused(server: RedisServer, entries: list[Entry]) -> None:
    with pytest.raises(CorruptBackup, match="one dump"):
        RedisTarget(server.url(), {}, timeout=5).stage(
            iter(entries), lambda entry: iter([]), Places(), ignore
        )


def test_a_dump_of_a_newer_server_is_refused_with_both_versions(server: RedisServer) -> None:
    with server.client() as client:
        own = (
            int.from_bytes(client.execute_command("DUMP", "k")[-10:-8], "little") if client.set("k", 1) else 0
        )
        version = client.info("server")["redis_version"]
    if own >= 12:
        pytest.skip("this server reads every version that is known here")
    with pytest.raises(
        RestoreError, match=rf"Redis 9\.9\.9 \(RDB version 12\).*Redis {version} \(RDB version {own}\)"
    ):
        stage(server.url(), rdb(b"\0\1k\1x", version=12))


def test_a_server_without_memory_says_so_and_undo_still_works(server: RedisServer) -> None:
    with server.client() as client:
        client.set("key", "x" * 2_000_000)
        _, content = dump(source_of(server.url()))
        (swap,) = stage(server.url(), content)
        client.config_set("maxmemory", 1_000_000)
        places = Places()
        with pytest.raises(NoSpace, match="no memory left"):
            stage(server.url(), content, places)
        for registered in places.registered:
            registered.discard()
        swap.apply()
        swap.revert()
        swap.apply()
        swap.reversed().apply()
        swap.reversed().discard()
        assert set(contents(server)) == {b"key"}


def test_no_live_key_is_thrown_away_to_make_room(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("rdbcompression", "no")
        client.mset({f"key {number}": f"{number}" * 20_000 for number in range(200)})
        _, content = dump(source_of(server.url()))
        client.config_set("rdbcompression", "yes")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 6_000_000)
        with pytest.raises(NoSpace, match="would throw live keys away"):
            stage(server.url(), content)
        assert client.dbsize() == 200
        assert client.info("stats")["evicted_keys"] == 0


def test_a_replica_takes_no_restore(server: RedisServer) -> None:
    with running("--replicaof", f"127.0.0.1 {server.port}") as replica:
        with pytest.raises(RestoreError, match=r"(?i)read.only") as caught:
            stage(replica.url(), rdb(b"\0\1k\1x"))
        assert "master" in caught.value.hint


def test_a_node_of_a_cluster_takes_no_restore() -> None:
    with running("--cluster-enabled", "yes") as server, pytest.raises(RestoreError, match="Redis Cluster"):
        stage(server.url(), rdb(b"\0\1k\1x"))


def test_a_user_who_may_not_restore_is_told_which_command(server: RedisServer) -> None:
    with pytest.raises(RestoreError, match="'restore' command") as caught:
        stage(fenced(server, "-restore"), rdb(b"\0\1k\1x"))
    assert "hidden-word" not in told(caught.value)
    (swap,) = stage(fenced(server, "-swapdb"), rdb(b"\0\1k\1x"))
    with pytest.raises(RestoreError, match=r"SWAPDB: .*can't run this command") as caught:
        swap.apply()
    assert "ACL SETUSER" in caught.value.hint
    swap.revert()
    assert contents(server) == {}


def test_a_server_that_is_killed_while_it_is_restored_to_is_an_error(tmp_path: Path) -> None:
    with running() as server:
        content = rdb(b"".join(b"\0\x04%04d\1x" % number for number in range(5000)))

        def read(entry: Entry) -> Iterator[bytes]:
            yield content[: len(content) // 2]
            server.kill()
            yield content[len(content) // 2 :]

        with pytest.raises(RestoreError, match="Database restore failed"):
            RedisTarget(server.url(), {}, timeout=5).stage(iter([ENTRY]), read, Places(), ignore)


def test_a_check_names_what_is_missing(server: RedisServer) -> None:
    with server.client() as client:
        client.set("key", 1)

    def check(*commands: str) -> dict[str, str]:
        source = RedisSource("features", fenced(server, *commands), timeout=5, clock=system_clock)
        return {finding.detail: finding.state for finding in source.check()}

    everything = check()
    assert set(everything.values()) == {"ok"}
    assert any("as a replica" in detail for detail in everything)
    assert any("database 15 is empty" in detail for detail in everything)
    assert "ok" in {state for detail, state in check("-psync").items() if "while writers wait" in detail}
    assert {state for detail, state in check("-psync", "-client|pause").items() if "neither" in detail} == {
        "FAILED"
    }
    lacking = {
        detail: state for detail, state in check("-swapdb", "-flushdb").items() if "SWAPDB, FLUSHDB" in detail
    }
    assert set(lacking.values()) == {"warning"}
    unknown = {detail: state for detail, state in check("-acl").items() if "does not tell" in detail}
    assert "warning" in unknown.values()
    with server.client() as client:
        assert set(client.info("keyspace")) == {"db0"}


def test_a_check_warns_of_a_server_without_an_empty_database() -> None:
    with running("--databases", "1") as server:
        with server.client() as client:
            client.set("key", 1)
        findings = list(source_of(server.url()).check())
    assert [finding.state for finding in findings if "no logical database is empty" in finding.detail] == [
        "warning"
    ]


def test_a_check_of_an_unreachable_server_fails() -> None:
    with running() as server:
        url = server.url()
    with pytest.raises(DatabaseError):
        list(source_of(url).check())
