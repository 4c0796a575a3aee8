from __future__ import annotations

import json
import random
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._codec import (
    DELTA_PLANES,
    MAX_BLOCK,
    PLANES,
    STORED,
    ZSTD,
    decode,
    encode,
)
from repository.dedup.models import database, noise

BLOCK = 1 << 20
ITEM_SIZES = (1, 2, 4, 8)


def weights(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, count).astype("<f4")


def bf16(numbers: np.ndarray) -> bytes:
    return (numbers.view("<u4") >> 16).astype("<u2").tobytes()


def tuned(numbers: np.ndarray) -> np.ndarray:
    return numbers + np.random.default_rng(9).normal(0, 2e-4, len(numbers)).astype("<f4")


def log_lines(count: int) -> bytes:
    chance = random.Random(2)
    return b"".join(
        json.dumps({"time": 1.7e9 + n, "id": f"{chance.getrandbits(64):016x}", "path": "/predict"}).encode()
        for n in range(count)
    )


def coded(raw: bytes, item_size: int, base: bytes | None = None) -> tuple[int, bytes]:
    """Encodes, and checks what is promised of every block."""
    codec, encoded = encode(memoryview(raw), item_size, None if base is None else memoryview(base))
    assert decode(codec, encoded, len(raw), base) == raw
    if codec != DELTA_PLANES:
        assert decode(codec, encoded, len(raw)) == raw
    assert len(encoded) <= len(raw)
    assert codec == STORED or len(encoded) <= 0.98 * len(raw)
    return codec, encoded


# Short runs repeated, so that every codec comes about; and lengths that no item size divides.
CONTENT = st.builds(
    lambda data, repeat, rest: data * repeat + rest,
    st.binary(max_size=40),
    st.sampled_from([1, 7, 300]),
    st.binary(max_size=9),
)


@given(CONTENT, st.sampled_from(ITEM_SIZES))
def test_any_block_comes_back(raw: bytes, item_size: int) -> None:
    coded(raw, item_size)


@given(
    CONTENT, st.sampled_from(ITEM_SIZES), st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 255)))
)
def test_any_block_comes_back_from_its_base(
    base: bytes, item_size: int, changes: list[tuple[int, int]]
) -> None:
    raw = bytearray(base)
    for place, change in changes:
        if raw:
            raw[place % len(raw)] ^= change
    coded(bytes(raw), item_size, base)


@pytest.mark.parametrize(("dtype", "nans"), [("<u2", 0x7F80), ("<u2", 0x7C00), ("<u4", 0x7F800000)])
def test_every_not_a_number_keeps_its_payload(dtype: str, nans: int) -> None:
    bits = np.dtype(dtype).itemsize * 8
    every = np.random.default_rng(1).integers(0, 1 << bits, 40_000, dtype=dtype) | np.array(nans, dtype)
    if bits == 16:
        every = np.concatenate([np.arange(1 << 16, dtype=dtype), every])
    base = np.roll(every, 1)
    for raw in (every.tobytes(), np.sort(every).tobytes()):
        coded(raw, bits // 8)
        coded(raw, bits // 8, base.tobytes())


@pytest.mark.parametrize("extra", [0, 1, 3, 7])
@pytest.mark.parametrize("item_size", [2, 4, 8])
def test_a_block_need_not_hold_whole_items(item_size: int, extra: int) -> None:
    raw = np.arange(20_000, dtype=f"<u{item_size}").tobytes() + noise(extra)
    codec, encoded = coded(raw, item_size)
    assert codec == PLANES
    assert encoded[0] == item_size


@pytest.mark.parametrize("size", range(20))
def test_tiny_blocks_come_back(size: int) -> None:
    for item_size in ITEM_SIZES:
        coded(bytes(size), item_size)
        coded(noise(size), item_size, bytes(size))


def test_weights_are_coded_in_planes_and_not_larger_than_measured() -> None:
    numbers = weights(BLOCK // 2)
    codec, encoded = coded(bf16(numbers), 2)
    assert (codec, len(encoded) / BLOCK) == (PLANES, pytest.approx(0.664, abs=0.002))
    codec, encoded = coded(numbers[: BLOCK // 4].tobytes(), 4)
    assert (codec, len(encoded) / BLOCK) == (PLANES, pytest.approx(0.832, abs=0.002))


def test_weights_of_an_undeclared_type_are_found_out() -> None:
    for raw in (bf16(weights(BLOCK // 2)), weights(BLOCK // 4).tobytes()):
        assert coded(raw, 1)[0] == PLANES


def test_text_and_rows_are_not_taken_apart() -> None:
    for raw in (log_lines(4000), database(20_000)):
        codec, encoded = coded(raw, 1)
        assert codec == ZSTD
        assert len(encoded) < len(raw) / 2


def test_what_cannot_shrink_is_stored() -> None:
    for item_size in ITEM_SIZES:
        raw = noise(BLOCK)
        assert coded(raw, item_size) == (STORED, raw)


def test_a_fine_tuned_tensor_is_coded_as_a_difference() -> None:
    base = weights(BLOCK // 2)
    raw = bf16(tuned(base))
    codec, encoded = coded(raw, 2, bf16(base))
    assert codec == DELTA_PLANES
    assert len(encoded) < 0.5 * len(coded(raw, 2)[1])


def test_a_base_that_does_not_help_is_not_needed_for_decoding() -> None:
    raw = bf16(weights(BLOCK // 2))
    for base in (noise(BLOCK), bf16(weights(BLOCK // 2, seed=5))):
        assert coded(raw, 2, base) == coded(raw, 2)


def test_the_largest_block_comes_back_and_a_larger_one_is_refused() -> None:
    coded(bf16(weights(MAX_BLOCK // 2)), 2)
    with pytest.raises(ValueError, match="cannot be encoded"):
        encode(memoryview(bytes(MAX_BLOCK + 1)), 1)
    with pytest.raises(CorruptBackup, match="says that it holds"):
        decode(STORED, bytes(MAX_BLOCK + 1), MAX_BLOCK + 1)


def test_arguments_that_no_caller_may_give_are_refused() -> None:
    with pytest.raises(ValueError, match="items of 3"):
        encode(memoryview(bytes(9)), 3)
    with pytest.raises(ValueError, match="a base of 8"):
        encode(memoryview(bytes(9)), 1, memoryview(bytes(8)))


def test_threads_share_nothing() -> None:
    blocks = [(bf16(weights(200_000, seed)), 2) for seed in range(8)] + [(log_lines(3000), 1)] * 8
    alone = [encode(memoryview(raw), item_size) for raw, item_size in blocks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda block: encode(memoryview(block[0]), block[1]), blocks * 4))
        assert together == alone * 4
        back = pool.map(
            lambda pair: decode(*pair[0], len(pair[1][0])), zip(together, blocks * 4, strict=True)
        )
        assert list(back) == [raw for raw, _ in blocks * 4]


def refused(codec: int, encoded: bytes, raw_size: int, base: bytes | None = None) -> None:
    """Damage is refused, or opens to something of the declared size, which the chunk's id then tells apart."""
    with suppress(CorruptBackup):
        assert len(decode(codec, encoded, raw_size, base)) == raw_size


@given(
    st.integers(0, 255), st.binary(max_size=200), st.integers(-5, 300), st.none() | st.binary(max_size=300)
)
def test_hostile_bytes_raise_nothing_else(
    codec: int, encoded: bytes, raw_size: int, base: bytes | None
) -> None:
    refused(codec, encoded, raw_size, base)
    refused(codec % 4, encoded, raw_size, base)


@settings(max_examples=300)
@given(st.sampled_from([ZSTD, PLANES, DELTA_PLANES]), st.data())
def test_a_damaged_block_is_refused_or_has_the_declared_length(codec: int, data: st.DataObject) -> None:
    numbers = weights(1500)
    base = bf16(numbers)
    raw, against = {
        ZSTD: (log_lines(40), None),
        PLANES: (base, None),
        DELTA_PLANES: (bf16(tuned(numbers)), base),
    }[codec]
    made, encoded = coded(raw, 1 if codec == ZSTD else 2, against)
    assert made == codec
    damaged = bytearray(encoded)
    # The headers are where damage is interesting.
    places = st.integers(0, 30) | st.integers(0, len(damaged) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(places)] = data.draw(st.integers(0, 255))
    refused(codec, bytes(damaged), len(raw), against)
    refused(codec, encoded[: data.draw(places)], len(raw), against)
    with pytest.raises(CorruptBackup):
        decode(codec, encoded + b"\0", len(raw), against)


def planes(item_size: int, flags: int, parts: list[tuple[int, bytes]], tail: bytes = b"") -> bytes:
    sizes = b"".join(struct.pack("<BI", kind, len(data)) for kind, data in parts)
    return bytes([item_size, flags]) + sizes + tail + b"".join(data for _, data in parts)


GOOD = planes(2, 0, [(0, b"aaaa"), (0, b"bbbb")], b"t")


def test_the_format_is_as_described() -> None:
    assert decode(PLANES, GOOD, 9) == b"ababababt"
    assert decode(PLANES, planes(2, 1, [(0, b"\3"), (0, b"\2")]), 2) == b"\x01\x81"
    assert decode(DELTA_PLANES, planes(1, 0, [(0, b"\0\1\2\3")]), 4, b"\5\5\5\5") == b"\5\4\6\3"


@pytest.mark.parametrize(
    ("codec", "encoded", "raw_size", "base"),
    [
        (STORED, b"abc", 4, None),
        (4, GOOD, 9, None),
        (ZSTD, b"", 0, None),
        (PLANES, b"", 0, None),
        (PLANES, GOOD, 0, None),
        (PLANES, GOOD, 8, None),
        (PLANES, GOOD, 10, None),
        (PLANES, GOOD + b"x", 9, None),
        (PLANES, planes(3, 0, [(0, b"a")] * 3), 3, None),
        (PLANES, planes(0, 0, []), 0, None),
        (PLANES, planes(2, 2, [(0, b"aaaa"), (0, b"bbbb")]), 8, None),
        (PLANES, planes(2, 0, [(0, b"aaaaa"), (0, b"bbb")]), 8, None),
        (PLANES, planes(2, 0, [(2, b"aaaa"), (0, b"bbbb")]), 8, None),
        (PLANES, planes(8, 0, [(0, b"")] * 8, b"1234567"), 7, None),
        (DELTA_PLANES, GOOD, 9, None),
        (DELTA_PLANES, GOOD, 9, b"12345678"),
        (DELTA_PLANES, planes(2, 1, [(0, b"aaaa"), (0, b"bbbb")]), 8, b"12345678"),
    ],
)
def test_blocks_that_contradict_themselves_are_refused(
    codec: int, encoded: bytes, raw_size: int, base: bytes | None
) -> None:
    with pytest.raises(CorruptBackup):
        decode(codec, encoded, raw_size, base)


# Frames written by hand (RFC 8878, section 3.1.1): 0xFD2FB528, a descriptor, a window or a content size, blocks.
MAGIC = b"\x28\xb5\x2f\xfd"
RUN_OF_128_KIB = struct.pack("<I", (131072 << 3) | (1 << 1))[:3] + b"A"


@pytest.mark.parametrize(
    "frame",
    [
        # declares 2^40 bytes
        MAGIC + b"\xe0" + struct.pack("<Q", 1 << 40) + RUN_OF_128_KIB * 100,
        # declares nothing, and a window of 1 GiB
        MAGIC + b"\x00\xa0" + RUN_OF_128_KIB * 100,
        # declares what it should hold and holds far more, with a window of 1 GiB
        MAGIC + b"\x80\xa0" + struct.pack("<I", 1000) + RUN_OF_128_KIB * 1000,
        # declares what it should hold and holds far more
        MAGIC + b"\xa0" + struct.pack("<I", 1000) + RUN_OF_128_KIB * 1000,
        # two frames, the first as it should be
        zstandard.compress(b"A" * 1000) + zstandard.compress(bytes(1 << 26)),
        # bytes that a reader may skip
        b"\x50\x2a\x4d\x18" + struct.pack("<I", 8) + bytes(8),
    ],
)
def test_a_bomb_takes_no_memory(frame: bytes) -> None:
    plane = planes(1, 0, [(1, frame)])
    decode(STORED, b"", 0)
    for codec, encoded in ((ZSTD, frame), (PLANES, plane)):
        tracemalloc.start()
        try:
            with pytest.raises(CorruptBackup):
                decode(codec, encoded, 1000)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()
