from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from holdfast.clock import system_clock
from holdfast.errors import ConfigError, DatabaseError, SourceMissing
from holdfast.events import Event, Warned, ignore
from holdfast.sources.redis._pause import _has_duplicates
from sources.redis_data import FAR_MS, fill
from sources.redis_server import (
    PATIENCE,
    RedisServer,
    dump,
    fenced,
    free_port,
    running,
    server,
    shared_redis,
    source_of,
    told,
    values,
)

__all__ = ["server", "shared_redis"]


@pytest.fixture(params=["diskless", "through a file", "while writers wait"])
def any_url(request: pytest.FixtureRequest, server: RedisServer) -> Callable[[int], URL]:
    """A database's URL, for each way to a dump."""
    if request.param == "while writers wait":
        return lambda database: fenced(server, "-psync", "-sync", database=database)
    with server.client() as client:
        client.config_set("repl-diskless-sync", "yes" if request.param == "diskless" else "no")
    return server.url


def test_a_redis_server_starts_from_the_dump_alone(
    server: RedisServer, any_url: Callable[[int], URL]
) -> None:
    with server.client(2) as client:
        encodings = fill(client)
        assert {key: client.object("ENCODING", key).decode() for key in encodings} == encodings
    with server.client(1) as client:
        client.set("of another database", "x" * 100_000)
    expected = values(server, 2)
    _, content = dump(source_of(any_url(2)))
    with running(dump=content) as started:
        assert values(started, 2) == expected
        with started.client() as client:
            assert set(client.info("keyspace")) == {"db2"}
            assert client.execute_command("PEXPIRETIME", "x") == -2


def test_a_value_far_larger_than_a_piece_is_carried_in_pieces(
    server: RedisServer, any_url: Callable[[int], URL]
) -> None:
    with server.client() as client:
        client.set("big", bytes(range(256)) * 40_000)
        client.config_set("rdbcompression", "no")
    try:
        (item,) = source_of(any_url(0)).scan(ignore)
        _, content = item.open()
        assert content is not None
        assert content.stream is not None
        sizes = [len(piece) for piece in content.stream]
    finally:
        with server.client() as client:
            client.config_set("rdbcompression", "yes")
    assert sum(sizes) > 10_000_000
    assert max(sizes) <= 1 << 20


def test_the_same_keys_make_the_same_dump(server: RedisServer) -> None:
    with server.client() as client:
        fill(client)
    assert dump(source_of(server.url()))[1] == dump(source_of(server.url()))[1]


def test_the_moment_says_which_one_it_is(server: RedisServer) -> None:
    with server.client(4) as client:
        client.mset({f"key {number}": number for number in range(10)})
        client.set("expires", 1, pxat=FAR_MS)
        version = client.info("server")["redis_version"]
    source = source_of(server.url(4))
    assert source.record().moment == {}
    dump(source)
    with server.client() as client:
        replication = client.info("replication")
    assert source.record().moment == {
        "time": "2026-11-23T12:00:00",
        "database": 4,
        "server_version": version,
        "way": "replication",
        "replication_id": replication["master_replid"],
        "offset": source.record().moment["offset"],
        "rdb_version": source.record().moment["rdb_version"],
        "keys": 11,
        "expires": 1,
    }
    assert isinstance(source.record().moment["offset"], int)
    assert source.record().kind == "redis"
    paused = source_of(fenced(server, "-psync", database=4))
    dump(paused)
    moment = paused.record().moment
    assert (moment["way"], moment["replication_id"], moment["keys"], moment["expires"]) == (
        "pause",
        None,
        11,
        1,
    )


def test_keys_that_are_written_together_are_dumped_together(
    server: RedisServer, any_url: Callable[[int], URL]
) -> None:
    with server.client() as client:
        client.mset({f"ballast {number}": "x" * 500 for number in range(5000)})
        client.mset({"left": 0, "right": 0})
    stop = threading.Event()
    written = []

    def write() -> None:
        with server.client() as client:
            count = 0
            while not stop.is_set():
                count += 1
                with client.pipeline(transaction=True) as pipeline:
                    pipeline.set("left", count)
                    for number in range(20):
                        pipeline.rpush(f"pair {number}", count)
                    pipeline.set("right", count)
                    pipeline.execute()
            written.append(count)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        dumps = [dump(source_of(any_url(0)))[1] for _ in range(3)]
    finally:
        stop.set()
        writer.join(PATIENCE)
    assert written[0] > 0
    with running(dump=dumps[-1]) as started, started.client() as client:
        count = int(client.get("left"))
        assert client.get("right") == b"%d" % count
        assert {client.llen(f"pair {number}") for number in range(20)} == {count}


def test_writers_go_on_after_a_pause(server: RedisServer) -> None:
    with server.client(socket_timeout=PATIENCE) as client:
        client.set("key", 1)
        dump(source_of(fenced(server, "-psync"), timeout=600))
        assert client.set("key", 2)


def test_a_failed_dump_does_not_leave_writers_waiting(server: RedisServer) -> None:
    with server.client(socket_timeout=PATIENCE) as client:
        client.set("key", 1)
        with pytest.raises(DatabaseError, match=r"Database backup failed: .* key key: .*permissions"):
            dump(source_of(fenced(server, "-psync", "-dump"), timeout=600))
        assert client.set("key", 2)


def test_keys_that_take_longer_than_writers_may_wait_are_no_dump(server: RedisServer) -> None:
    with server.client() as client:
        client.mset({f"key {number}": number for number in range(20_000)})
    with pytest.raises(DatabaseError, match=r"Database backup failed: the writers .* waited for 0\.1 s"):
        dump(source_of(fenced(server, "-psync"), timeout=0.1))


def test_a_pause_that_somebody_ends_is_noticed(server: RedisServer) -> None:
    with server.client() as client:
        client.mset({f"key {number}": "x" * 1000 for number in range(30_000)})
    stop = threading.Event()

    def repeat(*command: str) -> None:
        with server.client() as client:
            while not stop.is_set():
                client.execute_command(*command)

    # Each waits for its own answer: who writes would never come to end the pause.
    threads = [
        threading.Thread(target=repeat, args=words) for words in (("CLIENT", "UNPAUSE"), ("INCR", "counter"))
    ]
    for thread in threads:
        thread.start()
    try:
        with pytest.raises(DatabaseError, match="was written to while its writers should have waited"):
            dump(source_of(fenced(server, "-psync"), timeout=PATIENCE))
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def test_a_user_with_no_way_to_one_moment_is_told_so(server: RedisServer) -> None:
    with server.client() as client:
        client.set("key", 1)
    with pytest.raises(DatabaseError, match="no way to a dump of one moment") as caught:
        dump(source_of(fenced(server, "-psync", "-client|pause")))
    assert "hidden-word" not in str(caught.value) + caught.value.hint
    assert "psync" in caught.value.hint


def test_a_name_that_a_server_gives_twice_is_found() -> None:
    # A real server does so only while its table shrinks, which cannot be brought about at will.
    with tempfile.TemporaryFile() as seen:
        for number in range(600_000):  # more than are compared at once
            seen.write(number.to_bytes(8, "little"))
        assert not _has_duplicates(seen)
        seen.seek(0, 2)
        seen.write((7).to_bytes(8, "little"))
        assert _has_duplicates(seen)


def test_a_dump_that_is_given_up_frees_the_server(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("rdbcompression", "no")
        client.mset({f"key {number}": "x" * 10_000 for number in range(1000)})
        (item,) = source_of(server.url()).scan(ignore)
        _, content = item.open()
        assert content is not None
        assert content.stream is not None
        next(content.stream)
        content.stream.close()
        client.config_set("rdbcompression", "yes")
        assert eventually(lambda: client.info("replication")["connected_slaves"] == 0)


def test_an_expired_key_that_is_not_yet_deleted_does_no_harm(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        try:
            client.mset({"a": 1, "b": 2})
            client.set("gone", 3, px=1)
            # SCAN would delete it; while writers wait it is only passed over.
            client.client_pause(60_000, all=False)
            assert eventually(lambda: client.ttl("gone") == -2)
            assert client.dbsize() == 3
            _, content = dump(source_of(fenced(server, "-psync")))
        finally:
            client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "1")
    with running(dump=content) as started, started.client() as client:
        assert sorted(client.keys()) == [b"a", b"b"]


def test_libraries_of_the_server_are_left_out_and_told(
    server: RedisServer, any_url: Callable[[int], URL]
) -> None:
    with server.client() as client:
        client.set("key", 1)
        client.function_load("#!lua name=tools\nredis.register_function('f', function() return 1 end)")
    events: list[Event] = []
    (item,) = source_of(any_url(0)).scan(events.append)
    _, content = item.open()
    assert content is not None
    assert content.stream is not None
    data = b"".join(map(bytes, content.stream))
    assert b"register_function" not in data
    (event,) = events
    assert isinstance(event, Warned)
    assert "1 function library" in event.message


@pytest.mark.parametrize("way", ["yes", "no"])
def test_a_server_that_is_killed_in_the_middle_gives_no_dump(way: str) -> None:
    with running("--repl-diskless-sync", way, "--rdb-key-save-delay", "50") as server:
        with server.client() as client:
            client.mset({f"key {number}": "x" * 10_000 for number in range(5000)})
            client.config_set("rdbcompression", "no")
            if way == "no":
                client.config_set("rdb-key-save-delay", "0")
        (item,) = source_of(server.url()).scan(ignore)
        _, content = item.open()
        assert content is not None
        assert content.stream is not None
        assert len(next(content.stream)) == 1 << 20
        # Its child, which writes the dump, ends with it: its output goes through the server.
        server.kill()
        with pytest.raises(DatabaseError, match=r"Database backup failed"):
            list(content.stream)


def test_a_database_that_is_flushed_after_the_look_is_no_dump(
    server: RedisServer, any_url: Callable[[int], URL]
) -> None:
    with server.client() as client, server.client(1) as other:
        client.set("key", 1)
        other.set("other", 1)
        (item,) = source_of(any_url(0)).scan(ignore)
        _, content = item.open()
        client.flushdb()
    assert content is not None
    assert content.stream is not None
    with pytest.raises(SourceMissing, match="has no keys"):
        list(content.stream)


def test_a_server_that_does_not_run_is_an_error_and_not_missing() -> None:
    for url in (f"redis://127.0.0.1:{free_port()}/0", "unix:///nowhere/redis.sock"):
        with pytest.raises(DatabaseError, match="Database backup failed"):
            list(source_of(make_url(url)).scan(ignore))


def test_a_server_that_never_answers_is_given_up() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = make_url(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        with pytest.raises(DatabaseError, match="Database backup failed"):
            list(source_of(url, timeout=0.2).scan(ignore))


def test_a_database_beyond_the_last_one_is_missing(server: RedisServer) -> None:
    with pytest.raises(SourceMissing):
        list(source_of(server.url(99)).scan(ignore))


def test_a_node_of_a_cluster_is_refused() -> None:
    with running("--cluster-enabled", "yes") as server, pytest.raises(DatabaseError, match="Redis Cluster"):
        list(source_of(server.url()).scan(ignore))


@pytest.mark.parametrize(
    "url", ["redis://h/many", "redis://h/1?db=x", "unix:///s?db=-1", "redis://h/99999999999"]
)
def test_a_url_that_names_no_logical_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="number of a logical database"):
        source_of(make_url(url))


def test_an_option_that_is_not_known_is_refused(server: RedisServer) -> None:
    with pytest.raises(ConfigError, match="tcp_speed"):
        list(source_of(server.url(options="?tcp_speed=9")).scan(ignore))


def test_a_database_in_the_query_is_the_one_that_is_dumped(server: RedisServer) -> None:
    with server.client(5) as client:
        client.set("in five", 1)
    source = source_of(server.url(0, options="?db=5"))
    assert b"in five" in dump(source)[1]


def test_without_the_client_of_redis_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError) as caught:
        list(source_of(make_url("redis://127.0.0.1/0")).scan(ignore))
    assert "holdfast[redis]" in caught.value.hint


def test_a_server_that_computes_no_checksums_gives_a_dump_with_one() -> None:
    with running("--rdbchecksum", "no") as server:
        with server.client() as client:
            client.set("key", "value")
        _, content = dump(source_of(server.url()))
    with running(dump=content) as started:
        assert set(values(started)) == {b"key"}
    assert any(content[-8:])


def test_a_wrong_password_is_told_without_it(server: RedisServer) -> None:
    fenced(server)
    url = server.url(0, user="app", password="another-hidden-word")
    with pytest.raises(DatabaseError, match="Database backup failed") as caught:
        list(source_of(url).scan(ignore))
    assert "hidden-word" not in told(caught.value)


def test_a_server_that_repeats_the_password_is_not_believed() -> None:
    answers = b"-ERR unknown command 'AUTH', with args beginning with: 'hidden-word'\r\n"
    with answering(answers) as url, pytest.raises(DatabaseError) as caught:
        list(source_of(url.set(password="hidden-word", username="")).scan(ignore))
    assert "hidden-word" not in told(caught.value)


def test_a_connection_with_tls_checks_the_server(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    port = free_port()
    options = (
        "--tls-port",
        str(port),
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        str(certificates / "server.crt"),
    )
    try:
        context = running(*options, "--tls-key-file", str(certificates / "server.key"))
        with ExitStack() as stack:
            server = stack.enter_context(context)
            with server.client() as client:
                client.mset({f"key {number}": "x" * 1000 for number in range(3000)})
            url = make_url(f"rediss://localhost:{port}/0?ssl_ca_certs={certificates / 'ca.crt'}")
            assert b"key 2999" in dump(source_of(url))[1]
            with pytest.raises(DatabaseError, match=r"(?i)certificate"):
                dump(source_of(make_url(f"rediss://localhost:{port}/0")))
    except AssertionError as error:
        if "tls-port" not in str(error):
            raise
        pytest.skip("this redis-server is built without TLS")


def make_certificates(directory: Path) -> Path:
    from datetime import timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = system_clock()

    def certificate(
        name: str, issuer: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey
    ) -> bytes:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(by, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (directory / "ca.crt").write_bytes(certificate("authority", "authority", authority, authority))
    (directory / "server.crt").write_bytes(certificate("localhost", "authority", own, authority))
    (directory / "server.key").write_bytes(
        own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return directory


@contextmanager
def answering(answer: bytes) -> Iterator[URL]:
    """Something that gives every command the same answer."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(PATIENCE)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE)
                while connection.recv(4096):
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield make_url(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        finally:
            thread.join(PATIENCE)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True
