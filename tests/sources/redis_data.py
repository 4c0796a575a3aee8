"""Keys of every type and encoding that a Redis server makes."""

from __future__ import annotations

import random

import redis

FAR_MS = 4_102_444_800_000
"""In the year 2100."""


def fill(client: redis.Redis) -> dict[bytes, str]:
    """Puts them into a database; returns the encoding of each key that has one of interest."""
    random_bytes = random.Random(7).randbytes
    client.set("int8", 7)
    client.set("int16", -1000)
    client.set("int32", 100_000)
    client.set("int64", 1 << 40)
    client.set("short", "a feature")
    client.set("compressed", "abc" * 10_000)
    client.set("incompressible", random_bytes(3 << 20))
    client.set("empty", "")
    client.set(b"\x00\xff binary \r\n\xc3", b"\x00\xfe\xff")
    client.set(12345, "a name that is a number")
    client.set("k" * 200, "a name that is compressed")
    client.set("expires", "later", pxat=FAR_MS)
    client.rpush("list:small", *range(10))
    client.rpush("list:long", *(f"item {number}" * 20 for number in range(2000)))
    client.rpush("list:plain", random_bytes(100_000), "x" * 100_000)
    client.sadd("set:ints", *range(100))
    client.sadd("set:large ints", *range(1000))
    client.sadd("set:small", "a", "b")
    client.sadd("set:large", *(f"member {number}" for number in range(1000)))
    client.zadd("zset:small", {"a": 1.5, "b": float("-inf"), "c": float("inf")})
    client.zadd("zset:large", {f"member {number}": number / 7 for number in range(1000)})
    client.hset("hash:small", mapping={"a": 1, "b": "two"})
    client.hset(
        "hash:large", mapping={f"field {number}": random_bytes(number % 200) for number in range(1000)}
    )
    client.hset("hash:wide", mapping={"vector": random_bytes(20_000)})
    client.xgroup_create("stream:empty", "readers", mkstream=True)
    for number in range(500):
        client.xadd("stream", {"n": number, "text": "x" * (number % 50)})
    client.xdel("stream", client.xrange("stream", count=1)[0][0])
    client.xgroup_create("stream", "group", "0")
    client.xgroup_create("stream", "idle", "$")
    client.xreadgroup("group", "one", {"stream": ">"}, count=100)
    client.xreadgroup("group", "two", {"stream": ">"}, count=30)
    client.xgroup_createconsumer("stream", "idle", "nobody")
    client.pfadd("hyperloglog", *range(1000))
    client.geoadd("places", (13.36, 38.11, "Palermo"))
    client.setbit("bits", 100_000, 1)
    return {
        b"int64": "int",
        b"short": "embstr",
        b"compressed": "raw",
        b"list:small": "quicklist",
        b"list:long": "quicklist",
        b"set:ints": "intset",
        b"set:large": "hashtable",
        b"zset:small": "listpack",
        b"zset:large": "skiplist",
        b"hash:small": "listpack",
        b"hash:large": "hashtable",
        b"stream": "stream",
    }
