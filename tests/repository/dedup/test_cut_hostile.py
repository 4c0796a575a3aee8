"""Headers that lie. Whatever they say, all bytes come out in order: `cuts` checks that."""

from __future__ import annotations

import json
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.repository.dedup._cut import cut
from repository.dedup import models
from repository.dedup.cutting import KEY, KINDS, MIB, cuts
from repository.dedup.models import noise

DATA = noise(100_000)


def entry(begin: object, end: object, *, shape: object = None, dtype: object = "U8") -> dict[str, object]:
    if shape is None and isinstance(begin, int) and isinstance(end, int):
        shape = [end - begin]
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def labels(header: object, data: bytes = DATA) -> set[str]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return {chunk.tensor for chunk in cuts(models.with_header(text, data))} - {""}


def test_gaps_are_cut_by_content_between_tensors() -> None:
    assert labels({"a": entry(50, 100), "b": entry(60_000, 99_000)}) == {"a:U8:50", "b:U8:39000"}


def test_of_tensors_that_overlap_the_first_one_counts() -> None:
    assert labels({"a": entry(0, 1000), "b": entry(999, 2000), "c": entry(2000, 3000)}) == {
        "a:U8:1000",
        "c:U8:1000",
    }


def test_a_tensor_that_reaches_beyond_the_end_ends_there() -> None:
    for end in (100_001, 1 << 40, (1 << 63) - 1):
        assert labels({"a": entry(0, end)}) == {f"a:U8:{end}"}
    assert labels({"a": entry(1 << 40, 1 << 41)}) == set()


@pytest.mark.parametrize(
    "lie",
    [
        entry(-5, 20),
        entry(20, 5),
        entry(0, 1 << 70),
        entry(0, 1.5),
        entry(False, True, shape=[1]),
        entry("0", "5"),
        entry(0, 5, shape=[6]),
        entry(0, 5, shape=[-1, -5]),
        entry(0, 5, shape=[[5]]),
        entry(0, 5, shape="5"),
        entry(0, 5, dtype=7),
        entry(0, 5, shape=[5] + [1] * 100),
        entry(0, 0, shape=[2**62] * 60),
        {"dtype": "U8", "shape": [5]},
        {"dtype": "U8", "shape": [5], "data_offsets": [0, 5, 5]},
        [],
        None,
        5,
    ],
)
def test_an_entry_that_makes_no_sense_is_passed_over(lie: object) -> None:
    assert labels({"lie": lie, "true": entry(40, 90)}) == {"true:U8:50"}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"{}",
        b"{ }   ",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b"{" * 50_000,
        b'{"a":' * 50_000,
        b'{"a":' + b"[" * 200_000,
        b'{"a":"' + b"x" * 1_200_000 + b'"}',
        b'{"a":' + b"9" * 10_000 + b"}",
        b'{"a":{}}{"b":{}}',
        b'{"a":\xff\xfe}',
        b'{"a":NaN}',
        b'{1:{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}',
        b"{" + b" " * 300_000,
    ],
)
def test_a_header_that_is_no_json_object_is_cut_by_content(header: bytes) -> None:
    assert labels(header) == set()


def test_a_length_beyond_reason_is_no_safetensors() -> None:
    for length in (0, 1, (16 << 20) + 1, 1 << 40, (1 << 64) - 1):
        cuts(struct.pack("<Q", length) + b'{"a":' + DATA)


def gguf_head(tensors: int, pairs: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + rest


KEY_A = struct.pack("<Q", 1) + b"a"


@pytest.mark.parametrize(
    "head",
    [
        gguf_head((1 << 64) - 1, 0),
        gguf_head(0, (1 << 64) - 1),
        gguf_head(1, 0, struct.pack("<Q", (1 << 64) - 1)),
        gguf_head(1, 0, KEY_A + struct.pack("<I", 0xFFFFFFFF)),
        gguf_head(1, 0, KEY_A + struct.pack("<IQIQ", 1, 5, 0, (1 << 64) - 1)),
        gguf_head(0, 1, KEY_A + struct.pack("<I", 99)),
        gguf_head(0, 1, KEY_A + struct.pack("<IQ", 8, (1 << 64) - 1)),
        gguf_head(0, 1, KEY_A + struct.pack("<IIQ", 9, 10, (1 << 64) - 1)),
        gguf_head(0, 1, KEY_A + struct.pack("<IIQ", 9, 8, 60 << 20)),
        gguf_head(0, 1, KEY_A + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 10_000),
        gguf_head(0, 1, struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 0)),
        gguf_head(0, 1, struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 0xFFFFFFFF)),
        gguf_head(0, 0),
    ],
)
def test_a_gguf_header_beyond_reason_is_cut_by_content(head: bytes) -> None:
    assert {chunk.tensor for chunk in cuts(head + DATA)} == {""}


def test_gguf_tensors_at_the_same_place_are_cut_once() -> None:
    record = b"".join(
        struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 8, 0, offset)
        for name, offset in ((b"a", 0), (b"b", 0), (b"c", 1 << 60), (b"d", 3))
    )
    cuts(gguf_head(4, 0, record) + DATA)


def test_lies_in_the_headers_of_a_zip_lose_nothing() -> None:
    def member(flags: int, method: int, size: int, names: int = 1, extra: bytes = b"") -> bytes:
        return struct.pack(
            "<4s5H3I2H", b"PK\3\4", 20, flags, method, 0, 0, 0, size, size, names, len(extra)
        ) + (b"n" * min(names, 1) + extra)

    zip64 = struct.pack("<HHQQ", 1, 16, 1 << 62, 1 << 62)
    for head in (
        member(0, 0, 1 << 31),
        member(0, 0, 0) * 500,
        member(8, 0, 0) * 500,
        member(0, 8, 7),
        member(8, 8, 0),
        member(0, 0, 5, 60_000),
        member(0, 0, 0xFFFFFFFF, 1, zip64),
        member(0, 0, 0xFFFFFFFF, 1, zip64[:7]),
        member(0, 99, 1 << 31),
        b"PK\3\4",
    ):
        cuts(head + DATA)
        cuts(head)


@settings(max_examples=250)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_damaged_header_loses_no_byte(kind: str, data: st.DataObject) -> None:
    content = bytearray(KINDS[kind][:150_000])
    head = st.integers(0, min(700, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(head)
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=9))
    cuts(bytes(content), data.draw(st.sampled_from([1000, 65_536, MIB])))


@settings(max_examples=150)
@given(
    st.binary(max_size=300),
    st.sampled_from(["{", "GGUF\3\0\0\0", "PK\3\4", "SQLite format 3\0", "\x93NUMPY\1\0"]),
)
def test_bytes_that_begin_like_a_known_form_come_out_whole(rest: bytes, start: str) -> None:
    content = start.encode("latin-1") + rest
    if start == "{":
        content = struct.pack("<Q", len(content)) + content
    cuts(content)


@pytest.mark.parametrize(
    "member",
    [
        b'"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},',
        b'"a":[[],[],[],[],[],[],[],[],[],[],[],[],[],[],[]],',
        b'"a":' + b"[[]" + b",[]" * 200_000 + b"],",
    ],
)
def test_a_header_made_to_fill_memory_does_not(member: bytes) -> None:
    header = b"{" + member * (4_000_000 // len(member))
    content = struct.pack("<Q", len(header)) + header
    tracemalloc.start()
    try:
        assert sum(len(chunk.data) for chunk in cut(iter([content]), KEY)) == len(content)
        assert tracemalloc.get_traced_memory()[1] < 30 * MIB
    finally:
        tracemalloc.stop()
