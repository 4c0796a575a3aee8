from __future__ import annotations

import random
import sqlite3
import tracemalloc
import zlib
from contextlib import closing, suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup, RepositoryError
from holdfast.repository.archive import _gzip_block
from holdfast.repository.archive._gzip_block import max_packed, pack, unpack


def database() -> tuple[bytes, bytes]:
    """The pages of a table, and of an index over it."""
    chance = random.Random(1)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE prediction (user_id INTEGER, model TEXT, score REAL, created TEXT)")
        connection.executemany(
            "INSERT INTO prediction VALUES (?, ?, ?, ?)",
            (
                (
                    chance.randrange(20000),
                    f"model-{chance.randrange(40)}",
                    chance.random(),
                    f"2026-01-{1 + i // 2000}",
                )
                for i in range(30000)
            ),
        )
        connection.commit()
        table = connection.serialize()
        connection.execute("CREATE INDEX by_user ON prediction (user_id)")
        return table, connection.serialize()[len(table) :]


def log_lines(count: int) -> bytes:
    chance = random.Random(2)
    words = ["".join(chance.choices("aeilmnorst", k=chance.randint(2, 9))) for _ in range(2000)]
    frequency = [1 / (i + 1) for i in range(len(words))]
    return b"".join(
        b'{"time": %.3f, "level": "%s", "request_id": "%016x", "message": "%s"}\n'
        % (
            1.7e9 + 0.3 * i + chance.random(),
            chance.choice([b"INFO", b"INFO", b"DEBUG", b"WARNING"]),
            chance.getrandbits(64),
            " ".join(chance.choices(words, frequency, k=8)).encode(),
        )
        for i in range(count)
    )


def bf16_weights(count: int) -> bytes:
    floats = np.random.default_rng(3).normal(0, 0.02, count).astype(np.float32)
    return (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes()


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=3000), st.integers(1, 40), st.integers(0, 9))
def test_any_block_at_any_level_comes_back(data: bytes, repeat: int, level: int) -> None:
    raw = data * repeat
    packed = pack(raw, level)
    assert unpack(packed.data, packed.raw_length) == raw
    assert packed.crc == zlib.crc32(raw)
    assert len(packed.data) <= max_packed(len(raw))
    # An ordinary inflater agrees, and the block leaves the stream open for the next one.
    inflater = zlib.decompressobj(wbits=-15)
    assert inflater.decompress(packed.data) == raw
    assert not inflater.eof


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.integers(0, 9), st.data())
def test_a_damaged_block_is_refused_or_has_the_declared_length(
    data: bytes, level: int, draw: st.DataObject
) -> None:
    packed = bytearray(pack(data * 5, level).data)
    bit = draw.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << bit % 8
    with suppress(CorruptBackup):
        assert len(unpack(bytes(packed), 5 * len(data))) == 5 * len(data)


@pytest.mark.parametrize("level", range(10))
def test_a_block_that_lies_about_its_length_is_refused(level: int) -> None:
    raw = log_lines(50)
    data = pack(raw, level).data
    for length in (1, len(raw) - 1, len(raw) + 1, 16 << 20):
        with pytest.raises(CorruptBackup):
            unpack(data, length)


@pytest.mark.parametrize("level", range(10))
def test_a_block_that_is_cut_short_or_runs_on_is_refused(level: int) -> None:
    raw = log_lines(20)
    data = pack(raw, level).data
    for end in range(len(data)):
        with pytest.raises(CorruptBackup):
            unpack(data[:end], len(raw))
    for more in (b"\0", b"\x03\x00", pack(b"next", level).data):
        with pytest.raises(CorruptBackup):
            unpack(data + more, len(raw))


def test_a_bomb_is_never_inflated_beyond_the_declared_length() -> None:
    bomb = pack(bytes(16 << 20), 9).data
    assert len(bomb) < 32 << 10
    tracemalloc.start()
    try:
        with pytest.raises(CorruptBackup):
            unpack(bomb, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 << 10


def test_level_zero_stores() -> None:
    raw = log_lines(5000)
    assert raw[1000:2000] in pack(raw, 0).data


def test_no_level_makes_larger_blocks_than_the_one_before() -> None:
    samples = (log_lines(6000), *database())
    sizes = [sum(len(pack(raw, level).data) for raw in samples) for level in range(10)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[9] <= sizes[6] < sizes[3] < sizes[1] < sizes[0]


@pytest.mark.parametrize("level", [1, 4, 6, 9])
def test_text_is_about_as_small_as_gzip_makes_it_at_that_level_or_at_6(level: int) -> None:
    raw = log_lines(8000)
    assert len(pack(raw, level).data) < 1.02 * len(zlib.compress(raw, min(level, 6)))


@pytest.mark.parametrize("level", range(1, 10))
def test_weights_are_no_larger_than_what_gzip_9_makes_of_them(level: int) -> None:
    raw = bf16_weights(500_000)
    assert len(pack(raw, level).data) < len(zlib.compress(raw, 9))


@pytest.mark.parametrize("level", range(10))
def test_what_cannot_be_compressed_is_stored(level: int) -> None:
    raw = random.Random(4).randbytes(1 << 20)
    data = pack(raw, level).data
    assert raw[5000:9000] in data
    assert len(data) <= len(raw) + 128


@pytest.mark.parametrize("text_first", [True, False])
def test_repetitions_count_where_text_and_weights_share_a_block(text_first: bool) -> None:
    parts = [log_lines(3000), bf16_weights(350_000)]
    raw = b"".join(parts if text_first else reversed(parts))
    assert len(pack(raw, 9).data) < len(pack(raw, 2).data)


@pytest.mark.parametrize("fault", [b"\x00", b""], ids=["another byte", "a missing byte"])
def test_a_block_that_does_not_inflate_to_its_source_is_never_released(
    monkeypatch: pytest.MonkeyPatch, fault: bytes
) -> None:
    compress = _gzip_block._compress

    def faulty(raw: bytes | bytearray, level: int) -> bytes:
        data = compress(raw, level)
        return data[:500] + fault + data[501:]

    raw = random.Random(5).randbytes(5000)
    raw = raw.replace(b"\0", b"\1")
    monkeypatch.setattr(_gzip_block, "_compress", faulty)
    with pytest.raises(RepositoryError, match="did not inflate to what it was made from") as raised:
        pack(raw, 9)
    assert "memory" in raised.value.hint
