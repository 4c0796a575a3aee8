"""What a stored model file's header and chunk ids tell of its tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from holdfast.repository._manifest import ChunkRef
from holdfast.repository.base import Tensor
from holdfast.repository.dedup._cut import cut
from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._tensors import tensors_of
from repository.dedup import models

KEY = bytes(32)


class Stored:
    """Content as it is cut and named, and which of its chunks were read."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.read: list[ChunkRef] = []
        self.data: dict[str, bytes] = {}
        self.refs: list[ChunkRef] = []
        for chunk in cut(iter([content]), KEY):
            name = chunk_id(KEY, chunk.data).hex()
            self.data[name] = bytes(chunk.data)
            self.refs.append(ChunkRef(len(chunk.data), name, 0))

    def get(self, chunk: ChunkRef) -> bytes:
        self.read.append(chunk)
        return self.data[chunk.id]

    def tensors(self) -> list[Tensor] | None:
        return tensors_of(iter(self.refs), len(self.content), self.get)


def known(content: bytes) -> dict[str, tuple[str, str, bytes]]:
    found = Stored(content).tensors()
    assert found is not None
    return {tensor.name: (tensor.dtype, tensor.shape, tensor.content) for tensor in found}


def weights(count: int = 200) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {f"layer.{n:03}.weight": draw.normal(0, 1, (64, 48)).astype(np.float32) for n in range(count)}


def changed(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def test_the_tensors_of_a_file_that_the_library_wrote() -> None:
    found = known(
        save(
            {"a": np.ones((2, 3), np.float16), "b": np.zeros((), np.int64), "c": np.ones((0, 4), np.float32)}
        )
    )
    assert {name: form[:2] for name, form in found.items()} == {
        "a": ("F16", "2x3"),
        "b": ("I64", ""),
        "c": ("F32", "0x4"),
    }


def test_three_of_two_hundred_tensors_changed_and_only_the_header_is_read() -> None:
    before = weights()
    tuned = before | {name: before[name] + 1 for name in list(before)[7:190:80]}
    one, other = Stored(save(before)), Stored(save(tuned, {"step": "2000"}))
    assert changed(known(one.content), known(other.content)) == [
        "layer.007.weight",
        "layer.087.weight",
        "layer.167.weight",
    ]
    assert one.tensors() is not None
    header_end = 8 + int.from_bytes(one.content[:8], "little")
    assert sum(chunk.length for chunk in one.read) == header_end


def test_the_order_of_tensors_in_the_file_tells_nothing() -> None:
    tensors = {
        f"t{n}": models.Tensor("BF16", [700, n + 1], models.noise(1400 * (n + 1), n))
        for n in range(1000, 1006)
    }
    backwards = dict(reversed(tensors.items()))
    one, other = models.safetensors(tensors), models.safetensors(backwards, {"format": "pt"})
    assert one != other
    assert known(one) == known(other)
    gguf = {name: (1, [700, n], data.data) for n, (name, data) in enumerate(tensors.items())}
    assert known(models.gguf(gguf)) == known(models.gguf(dict(reversed(gguf.items())), name="other"))


def test_a_renamed_tensor_keeps_its_content() -> None:
    before = weights(5)
    after = {name.replace("002", "two"): array for name, array in before.items()}
    one, other = known(save(before)), known(save(after))
    assert changed(one, other) == ["layer.002.weight", "layer.two.weight"]
    assert one["layer.002.weight"] == other["layer.two.weight"]


def test_gguf_tells_types_by_their_names() -> None:
    data = {"q": (12, [256, 2], models.noise(288)), "f": (0, [3], bytes(12)), "new": (99, [4], bytes(4))}
    found = known(models.gguf(data, vocabulary=["token"] * 50_000, alignment=64))
    assert {name: form[:2] for name, form in found.items()} == {
        "q": ("Q4_K", "256x2"),
        "f": ("F32", "3"),
        "new": ("ggml99", "4"),
    }
    other = known(
        models.gguf({**data, "f": (0, [3], b"x" * 12)}, vocabulary=["token"] * 50_000, alignment=64)
    )
    assert changed(found, other) == ["f"]


def test_an_array_is_one_tensor() -> None:
    one, other = (known(models.npy(np.full((300, 7), value, np.float32))) for value in (1, 2))
    assert one["npy"][:2] == other["npy"][:2] == ("<f4", "300x7")
    assert changed(one, other) == ["npy"]


def test_a_name_that_is_too_long_is_shortened_and_still_tells_content() -> None:
    name = "x:y" * 200
    one, other = (known(save({name: np.full(9, value)})) for value in (1.0, 2.0))
    assert [len(label) for label in one] == [200]
    assert changed(one, other) == list(one)


def test_a_name_with_colons_is_told_whole() -> None:
    assert list(known(save({"a:b:c": np.ones(3)}))) == ["a:b:c"]


def member(begin: int, end: int) -> bytes:
    return b'{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}' % (end - begin, begin, end)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        models.noise(100_000),
        models.database(50),
        models.npz({"a": np.ones(9)}),
        models.with_header(b'{"a":' + member(0, 60) + b',"b":' + member(40, 100) + b"}", bytes(100)),
        models.with_header(b'{"a":' + member(0, 50) + b',"a":' + member(50, 100) + b"}", bytes(100)),
        models.with_header(b'{"a":' + member(0, 1 << 60) + b"}", bytes(100)),
        models.with_header(b'{"a":' + member(500, 600) + b"}", bytes(100)),
        models.with_header(b'{"a":' + b"[" * 100_000, bytes(100)),
        struct.pack("<Q", 16 << 20) + b'{"a":' + bytes(1 << 20),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60) + bytes(1000),
        b"\x93NUMPY\1\0" + struct.pack("<H", 60_000) + b"{" * 60_000,
    ],
)
def test_what_is_no_file_of_tensors_or_contradicts_itself_tells_nothing(content: bytes) -> None:
    assert Stored(content).tensors() is None


@given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=4))
def test_a_header_that_somebody_has_bent_never_does_harm(tail: bytes, place: int, bent: bytes) -> None:
    content = bytearray(save({"a": np.ones(20), "b": np.ones((2, 3))}) + tail)
    content[place : place + len(bent)] = bent
    stored = Stored(bytes(content))
    found = stored.tensors()
    assert found is None or len({tensor.name for tensor in found}) == len(found)
