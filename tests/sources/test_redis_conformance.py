from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from conformance.source import SECRET, SourceConformance
from holdfast.clock import Clock
from holdfast.sources.base import Restorable, Source
from holdfast.sources.redis import RedisSource, RedisSwaps, RedisTarget
from holdfast.sources.redis._rdb import RdbReader
from holdfast.transaction import Kinds
from sources.redis_server import RedisServer, contents, server, shared_redis

__all__ = ["server", "shared_redis"]

LIVE = 3
FAR_MS = 4_102_444_800_000  # 2100


class TestAsReplica(SourceConformance):
    """Dumped by replication, at a TCP port."""

    recognizes_unchanged = False
    redis: RedisServer

    @pytest.fixture
    def root(self, server: RedisServer, tmp_path: Path) -> Path:
        self.redis = server
        self.prepare()
        root = tmp_path / "service"
        root.mkdir()
        self.make(root)
        return root

    def prepare(self) -> None:
        with self.redis.client(0) as other:
            other.set("other", "database")

    def url(self) -> URL:
        return self.redis.url(LIVE)

    def kinds(self, root: Path) -> Kinds:
        return {"redis": RedisSwaps(lambda: [self.url()], timeout=5)}

    def make(self, root: Path) -> None:
        with self.redis.client(LIVE) as client:
            client.set("secret", SECRET)
            client.hset("user:1", mapping={"age": 41, "name": "Ada"})
            client.set("session", "of somebody", pxat=FAR_MS)
            client.rpush("recent", *range(20))

    def change(self, root: Path) -> None:
        with self.redis.client(LIVE) as client:
            client.hset("user:1", "age", 42)
            client.delete("recent")

    def remove(self, root: Path) -> None:
        with self.redis.client(LIVE) as client:
            client.flushdb()

    def source(self, root: Path, clock: Clock) -> Source:
        return RedisSource("features", self.url(), timeout=5, clock=clock)

    def target(self, root: Path) -> Restorable:
        return RedisTarget(self.url(), {}, timeout=5)

    def state(self, root: Path) -> object:
        return contents(self.redis, LIVE) or None

    def left_over(self, root: Path) -> list[str]:
        with self.redis.client() as client:
            return sorted(set(client.info("keyspace")) - {"db0", f"db{LIVE}"})

    def same(self, one: bytes, other: bytes) -> bool:
        return keys_of(one) == keys_of(other)


class TestBehindASocket(TestAsReplica):
    def url(self) -> URL:
        return make_url(f"unix://{self.redis.path}?db={LIVE}")


class TestWhileWritersWait(TestAsReplica):
    """With a user who may not replicate."""

    def prepare(self) -> None:
        super().prepare()
        with self.redis.client() as client:
            client.acl_setuser(
                "app",
                enabled=True,
                passwords=["+open sesame"],
                keys=["*"],
                categories=["+@all"],
                commands=["-psync", "-sync"],
            )

    def url(self) -> URL:
        return self.redis.url(LIVE, user="app", password="open%20sesame")


def keys_of(dump: bytes) -> set[tuple[int | None, bytes]]:
    reader = RdbReader(iter([dump]))
    reader.read_header()
    return {(key.expiry_ms, key.raw) for key in reader.read_keys()}
