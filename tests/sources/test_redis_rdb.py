from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup
from holdfast.sources.redis._crc64 import crc64
from holdfast.sources.redis._rdb import PIECE_BYTES, Key, RdbReader, encode_key, write_rdb
from holdfast.sources.redis._values import STRING_LIMIT
from sources.redis_data import FAR_MS, fill
from sources.redis_server import RedisServer, dump, server, shared_redis, source_of

__all__ = ["server", "shared_redis"]

LZF_KEY = b"\xc3\x09\x1f" + b"\x01aa" + b"\xe0\x12\x00" + b"\x01aa"
"""Two letters, the last one 27 times over, two letters: 31 in all."""


def read(data: bytes, *, size: int = 1 << 30, database: int | None = None) -> list[Key]:
    reader = RdbReader((data[at : at + size] for at in range(0, len(data), size)), database)
    reader.read_header()
    return list(reader.read_keys())


def file(body: bytes, *, version: int = 9) -> bytes:
    data = b"REDIS%04d" % version + body + b"\xff"
    return data + crc64(data).to_bytes(8, "little")


def in_database(record: bytes, number: int = 0) -> bytes:
    return file(bytes([254, number]) + record)


def test_the_checksum_has_its_published_value() -> None:
    assert crc64(b"123456789") == 0xE9C6D914C4B8D9CA


@pytest.mark.parametrize("size", [0, 1, 1499, 1500, 1501, 7004, 65_537, 131_072, 131_073, 400_001])
def test_the_checksum_of_a_whole_is_that_of_its_parts(size: int) -> None:
    data = random.Random(size).randbytes(size)
    in_parts = 0
    for start in range(0, size, 1000):  # below what is folded
        in_parts = crc64(data[start : start + 1000], in_parts)
    assert crc64(data) == in_parts
    assert crc64(data[size // 3 :], crc64(data[: size // 3])) == in_parts


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_every_type_is_found_whole_however_it_arrives(server: RedisServer, size: int) -> None:
    with server.client() as client:
        fill(client)
        if size < 4096:
            client.delete("incompressible", "list:plain", "list:long", "hash:large", "stream", "zset:large")
        expected = {name: client.execute_command("DUMP", name) for name in client.scan_iter()}
    _, data = dump(source_of(server.url()))
    version = int(data[5:9])
    keys = read(data, size=size)
    assert {key.name: key.payload(version) for key in keys} == expected
    assert {key.name for key in keys if key.expiry_ms == FAR_MS} == {b"expires"}


def test_what_dump_gives_becomes_what_an_rdb_file_has(server: RedisServer) -> None:
    with server.client() as client:
        fill(client)
        encoded = [
            encode_key(name, None, client.execute_command("DUMP", name)) for name in client.scan_iter()
        ]
    data = b"".join(write_rdb(10, "7.0.0", 3, iter(encoded)))
    assert [key.raw for key in read(data)] == [key.raw for key in encoded]


def test_pieces_are_of_one_size_but_for_the_end() -> None:
    keys = [
        encode_key(b"%d" % size, None, string(b"x" * size)) for size in (10, 3_000_000, 500_000, 700_000, 1)
    ]
    pieces = [len(piece) for piece in write_rdb(9, "", 0, iter(keys))]
    assert set(pieces[:-2]) == {PIECE_BYTES}
    assert max(pieces[-2:]) <= PIECE_BYTES


def test_a_flipped_bit_is_found() -> None:
    data = in_database(b"\0\1a\5hello")
    assert read(data)[0].raw == b"\0\1a\5hello"
    broken = bytearray(data)
    broken[-10] ^= 1
    with pytest.raises(CorruptBackup, match="checksum"):
        read(bytes(broken))


def test_a_file_without_a_checksum_is_read() -> None:
    data = in_database(b"\0\1a\5hello")
    assert len(read(data[:-8] + bytes(8))) == 1


@pytest.mark.parametrize("size", range(1, 30))
def test_a_file_that_is_cut_off_is_no_file(size: int) -> None:
    data = in_database(b"\xfc" + FAR_MS.to_bytes(8, "little") + b"\0\1a\5hello")
    with pytest.raises(CorruptBackup):
        read(data[:-size])


def test_expiry_in_seconds_and_hints_of_eviction_are_understood() -> None:
    keys = read(in_database(b"\xfd\1\0\0\0\0\1a\1x\xf8\x41\0\0\1b\1x\xf9\7\0\1c\1x"))
    assert [(key.name, key.expiry_ms, key.raw) for key in keys] == [
        (b"a", 1000, b"\0\1a\1x"),
        (b"b", None, b"\0\1b\1x"),
        (b"c", None, b"\0\1c\1x"),
    ]


def test_a_compressed_name_is_shown_as_it_is() -> None:
    assert read(in_database(b"\0" + LZF_KEY + b"\1x"))[0].name == b"a" * 31


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (b"\x03\1k\1\1m\3" + b"1.5", None),
        (b"\x03\1k\1\1m\xfe", None),
        (b"\x09\1k\5" + b"\1\1a\1\0", None),
        (b"\x0e\1k\2\1a\1b", None),
        (b"\x18\1k" + bytes(8) + b"\2\0\1a\1b\5\1c\1d", None),
        (b"\x19\1k" + bytes(8) + b"\3abc", None),
        (b"\x16\1k\1x", "key k in database 0 is of type 22, which"),
        (b"\x08\1k\1x", "key k in database 0 is of type 8, which"),
        (b"\x63\1k\1x", "key k in database 0 is of type 99, which"),
    ],
)
def test_types_of_other_versions_are_carried_or_refused_by_name(old: bytes, message: str | None) -> None:
    data = in_database(old + b"\0\4next\1x")
    if message is None:
        assert [key.name for key in read(data)] == [b"k", b"next"]
    else:
        with pytest.raises(CorruptBackup, match=message):
            read(data)


def module_value(name: str = "ReJSON-RL") -> bytes:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    number = 0
    for letter in name:
        number = number << 6 | letters.index(letter)
    parts = b"\1\7\2\x41\0\3" + bytes(4) + b"\4" + bytes(8) + b"\5\3abc\0"
    return b"\x81" + (number << 10 | 3).to_bytes(8, "big") + parts


def test_a_key_of_a_module_is_refused_by_name() -> None:
    with pytest.raises(CorruptBackup, match="key doc in database 0 is of type ReJSON-RL"):
        read(in_database(b"\7\3doc" + module_value()))
    value = b"\7" + module_value() + bytes(10)
    with pytest.raises(CorruptBackup, match="key doc is of type ReJSON-RL"):
        encode_key(b"doc", None, value)


def test_what_other_databases_and_the_server_have_is_passed_over() -> None:
    body = b"\xfa\3aux\1x\xf7" + module_value() + b"\xf5\4code\xfe\1\xfb\1\0\7\3doc" + module_value()
    data = file(body + b"\xfe\2\xfb\1\1\xf4\1\2\3\0\1k\1x")
    reader = RdbReader(iter([data]), 2)
    reader.read_header()
    assert [key.name for key in reader.read_keys()] == [b"k"]
    assert reader.functions == 1
    assert reader.module_data == {"ReJSON-RL"}


def test_a_value_beyond_the_limit_of_redis_is_refused_by_name() -> None:
    with pytest.raises(CorruptBackup, match="key k in database 0 has a value of more than 512 MiB"):
        read(in_database(b"\0\1k\x80" + (STRING_LIMIT * 3 // 2).to_bytes(4, "big")))


def test_two_databases_are_more_than_a_dump_may_have() -> None:
    with pytest.raises(CorruptBackup, match="more than one logical database"):
        read(file(b"\xfe\0\0\1a\1x\xfe\1\0\1a\1x"))


@pytest.mark.parametrize("header", [b"REDIS0004", b"REDIS0013", b"VALKEY080", b"REDISabcd", b"RED", b""])
def test_a_file_of_another_kind_or_version_is_refused(header: bytes) -> None:
    with pytest.raises(CorruptBackup):
        read(header + bytes(20))


@pytest.mark.parametrize(
    "record",
    [
        b"\0\1k\x81" + b"\xff" * 8,
        b"\0\x81" + b"\xff" * 8,
        b"\0\1k\x80" + (STRING_LIMIT * 3).to_bytes(4, "big"),
        b"\0\1k\xc3\1\x81" + b"\x0f" * 8 + b"a",
        b"\2\1k\x81" + b"\xff" * 8 + b"\1a" * 1000,
        b"\x0f\1k\0\0\0\0\x81" + b"\xff" * 8,
        b"\x15\1k" + bytes(9) + b"\1\1g\0\0\0\0\1\1c" + bytes(16) + b"\x81" + b"\xff" * 8,
    ],
)
def test_lengths_that_nobody_could_have_written_are_refused_without_waiting_for_them(record: bytes) -> None:
    with pytest.raises(CorruptBackup):
        read(in_database(record))


@given(data=st.binary(max_size=300))
def test_noise_is_only_ever_corrupt(data: bytes) -> None:
    only_corrupt(b"REDIS0010\xfe\0" + data)


@given(
    kind=st.integers(0, 30),
    data=st.lists(st.one_of(st.binary(max_size=12), st.integers(0, 70).map(lambda n: bytes([n])))),
)
def test_values_of_noise_are_only_ever_corrupt(kind: int, data: list[bytes]) -> None:
    only_corrupt(in_database(bytes([kind]) + b"\1k" + b"".join(data)))


@settings(max_examples=200)
@given(data=st.data())
def test_damage_in_a_real_dump_is_only_ever_corrupt(sample: bytes, data: st.DataObject) -> None:
    broken = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(9, len(broken) - 9))] = data.draw(st.integers(0, 255))
    kept = bytes(broken[: data.draw(st.integers(0, len(broken)))])
    only_corrupt(kept)
    only_corrupt(bytes(broken[:-8]) + bytes(8))


@pytest.fixture(scope="session")
def sample(shared_redis: RedisServer) -> bytes:
    shared_redis.reset()
    with shared_redis.client() as client:
        fill(client)
        client.delete("incompressible", "list:plain", "list:long", "hash:large", "zset:large", "set:large")
    return dump(source_of(shared_redis.url()))[1]


def only_corrupt(data: bytes) -> None:
    try:
        for key in read(data):
            assert isinstance(key.name, bytes)
    except CorruptBackup:
        pass


def string(data: bytes) -> bytes:
    return b"\0\x80" + len(data).to_bytes(4, "big") + data + bytes(10)
