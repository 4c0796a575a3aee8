"""A private Redis server for tests: in a directory of its own, with nothing of the machine's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
from sqlalchemy import URL, make_url

from holdfast.errors import HoldfastError
from holdfast.events import ignore
from holdfast.model import Entry
from holdfast.sources.redis import RedisSource

PATIENCE = 30
"""Seconds for what a server does at once."""


class RedisServer:
    """A running ``redis-server``. Listens at a socket, and at a TCP port of 127.0.0.1."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.path = directory / "redis.sock"
        self.port = free_port()
        self._options = options
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.directory / "redis.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *("redis-server", "--dir", str(self.directory), "--unixsocket", str(self.path)),
                    *("--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"),
                    *("--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes"),
                    *self._options,
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.client() as client:
                    client.execute_command("PING")
            except redis.AuthenticationError:
                return process
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    raise AssertionError((self.directory / "redis.log").read_text()) from None
                time.sleep(0.01)
            else:
                return process

    def client(self, database: int = 0, **options: object) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.path), db=database, **options)

    def url(self, database: int = 0, *, user: str = "", password: str = "", options: str = "") -> URL:
        login = f"{user}:{password}@" if password else ""
        return make_url(f"redis://{login}127.0.0.1:{self.port}/{database}{options}")

    def reset(self) -> None:
        """Empties all, and takes back what a test has configured."""
        with self.client() as client:
            client.execute_command("CLIENT", "UNPAUSE")
            client.flushall()
            client.execute_command("FUNCTION", "FLUSH")
            for name in client.execute_command("ACL", "USERS"):
                if name != b"default":
                    client.execute_command("ACL", "DELUSER", name)
            for name, value in (
                ("repl-diskless-sync", "yes"),
                ("rdb-key-save-delay", "0"),
                ("maxmemory", "0"),
                ("maxmemory-policy", "noeviction"),
            ):
                client.config_set(name, value)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)


def free_port() -> int:
    """Low enough for a node of a cluster, which listens at 10,000 more as well."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


@contextmanager
def running(*options: str, dump: bytes | None = None) -> Iterator[RedisServer]:
    """A server. `dump`: the file that it starts from."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine: apt-get install redis-server")
    # Not in pytest's own directory: the name of a socket may have some 100 bytes.
    with tempfile.TemporaryDirectory(prefix="holdfast-redis-") as name:
        if dump is not None:
            Path(name, "dump.rdb").write_bytes(dump)
        server = RedisServer(Path(os.path.realpath(name)), *options)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def server(shared_redis: RedisServer) -> RedisServer:
    """A server with nothing in it."""
    shared_redis.reset()
    return shared_redis


Contents = dict[bytes, tuple[bytes, int]]
"""For each key its type and value, as DUMP gives it, and its PEXPIRETIME."""


def contents(server: RedisServer, database: int = 0) -> Contents:
    """What a logical database holds."""
    with server.client(database) as client:
        return {
            key: (client.execute_command("DUMP", key), client.execute_command("PEXPIRETIME", key))
            for key in client.scan_iter(count=1000)
        }


def values(server: RedisServer, database: int = 0) -> dict[bytes, object]:
    """What a logical database holds, whatever its encoding: in Redis's own digest of each value."""
    with server.client(database) as client:
        return {
            key: (
                client.type(key),
                client.execute_command("DEBUG", "DIGEST-VALUE", key),
                client.execute_command("PEXPIRETIME", key),
            )
            for key in client.scan_iter(count=1000)
        }


def dump(source: RedisSource) -> tuple[Entry, bytes]:
    """What a source gives for a backup."""
    (item,) = source.scan(ignore)
    entry, content = item.open()
    assert content is not None
    assert content.stream is not None
    return entry, b"".join(map(bytes, content.stream))


NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def source_of(url: URL, *, timeout: float = 5) -> RedisSource:
    return RedisSource("features", url, timeout=timeout, clock=lambda: NOON)


def fenced(server: RedisServer, *commands: str, database: int = 0) -> URL:
    """The URL of a user who lacks some commands."""
    with server.client() as client:
        client.acl_setuser(
            "app",
            enabled=True,
            passwords=["+hidden-word"],
            keys=["*"],
            categories=["+@all"],
            commands=commands,
        )
    return server.url(database, user="app", password="hidden-word")


def told(error: HoldfastError) -> str:
    """All that a person or a log gets to see of an error."""
    seen = f"{error} {error!r} {error.hint}"
    cause = error.__cause__
    while cause is not None:
        seen += f" {cause} {cause!r}"
        cause = cause.__cause__
    return seen
