from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.repository.dedup._cut import cut
from repository.dedup import models
from repository.dedup.cutting import (
    DATABASE,
    KEY,
    KINDS,
    MIB,
    NPZ,
    SAFETENSORS,
    TORCH,
    cuts,
    new_bytes,
    tensors,
)
from repository.dedup.models import Tensor, noise

kinds = pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)


@kinds
@pytest.mark.parametrize("size", [1000, 65_536, 333_333, MIB, 4 * MIB])
def test_chunks_are_the_same_however_content_comes_in_pieces(content: bytes, size: int) -> None:
    usual = cuts(content)
    other = cuts(content, size)
    assert [(chunk.data, chunk.identity) for chunk in other] == [
        (chunk.data, chunk.identity) for chunk in usual
    ]


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60), max_size=12))
@example([b"", b"x", b""])
def test_arbitrary_content_in_arbitrary_pieces_comes_out_whole(parts: list[bytes]) -> None:
    assert b"".join(bytes(chunk.data) for chunk in cut(iter(parts), KEY)) == b"".join(parts)


def test_nothing_gives_no_chunk() -> None:
    assert cuts(b"") == []


@kinds
def test_a_file_cut_short_comes_out_whole(content: bytes) -> None:
    for end in (1, 4, 7, 8, 9, 12, 18, 30, 100, 5000, len(content) // 2, len(content) - 1):
        cuts(content[:end])


@kinds
def test_what_follows_a_file_comes_out_too(content: bytes) -> None:
    cuts(content + noise(50_000))


def test_a_tensor_begins_a_chunk_and_is_cut_at_every_mib() -> None:
    made = [chunk for chunk in cuts(SAFETENSORS) if chunk.tensor]
    for name, (_, shape, data) in tensors().items():
        parts = [chunk for chunk in made if chunk.tensor == f"{name}:F32:{shape[0]}"]
        assert [chunk.part for chunk in parts] == list(range(-(-len(data) // MIB)))
        assert [chunk.data for chunk in parts] == [data[at : at + MIB] for at in range(0, len(data), MIB)]
        assert {chunk.item_size for chunk in parts} == {4}


def test_what_the_safetensors_library_writes_is_understood() -> None:
    arrays = {
        "a": np.arange(300, dtype="<f4").reshape(10, 30),
        "b": np.arange(7, dtype="<i8"),
        "half": np.ones(5, "<f2"),
        "flags": np.ones(3, np.bool_),
        "scalar": np.array(2.5, "<f8"),
        "none": np.zeros((0, 4), "<f4"),
    }
    made = cuts(safetensors.numpy.save(arrays, {"format": "np"}))
    assert {chunk.tensor: (chunk.item_size, chunk.data) for chunk in made if chunk.tensor} == {
        "a:F32:10x30": (4, arrays["a"].tobytes()),
        "b:I64:7": (8, arrays["b"].tobytes()),
        "half:F16:5": (2, arrays["half"].tobytes()),
        "flags:BOOL:3": (1, arrays["flags"].tobytes()),
        "scalar:F64:": (8, arrays["scalar"].tobytes()),
    }


@pytest.mark.parametrize(
    ("dtype", "elements", "size", "item_size"),
    [("BF16", 6, 12, 2), ("F8_E4M3", 6, 6, 1), ("F4", 6, 3, 1), ("C64", 6, 48, 4), ("U64", 6, 48, 8)],
)
def test_the_item_size_follows_from_the_type(dtype: str, elements: int, size: int, item_size: int) -> None:
    made = cuts(models.safetensors({"a": Tensor(dtype, [elements], noise(size))}))
    assert [(chunk.tensor, chunk.item_size) for chunk in made if chunk.tensor] == [
        (f"a:{dtype}:6", item_size)
    ]


def test_a_changed_tensor_changes_its_own_chunks_only() -> None:
    before = tensors()
    after = before | {"layer.2.weight": Tensor("F32", [175_000], noise(700_000, 99))}
    new = new_bytes(cuts(models.safetensors(before)), cuts(models.safetensors(after)))
    assert new == 700_000


def test_a_tensor_gives_the_same_chunks_in_another_file_at_another_offset() -> None:
    before = tensors()
    after = {"inserted": Tensor("F32", [1001], noise(4004, 50)), **dict(reversed(before.items()))}
    made = cuts(models.safetensors(after, {"note": "moved"}))
    new = new_bytes(cuts(models.safetensors(before)), made)
    assert new == 4004 + sum(len(chunk.data) for chunk in made if not chunk.tensor)


def test_a_header_larger_than_any_buffer_is_understood() -> None:
    many = {f"model.layers.{n}.{'x' * 60}": Tensor("U8", [8], noise(8, n)) for n in range(9000)}
    content = models.safetensors(many)
    assert int.from_bytes(content[:8], "little") > MIB
    assert {chunk.tensor for chunk in cuts(content)} == {"", *(f"{name}:U8:8" for name in many)}


@pytest.mark.parametrize("size", [70_000, 600_000, 700_000, 1_000_000])
def test_long_metadata_does_not_hide_the_tensors(size: int) -> None:
    content = models.safetensors(tensors(2), {"note": "x" * size})
    assert {chunk.tensor for chunk in cuts(content)} == {
        "",
        "layer.0.weight:F32:786532",
        "layer.1.weight:F32:10",
    }


def test_gguf_tensors_are_cut_apart_with_their_padding() -> None:
    data = {"a": (0, [25], noise(100)), "b": (8, [32], noise(34)), "c": (30, [2, 3], noise(12))}
    for alignment in (None, 8, 4096):
        made = [chunk for chunk in cuts(models.gguf(data, alignment=alignment)) if chunk.tensor]
        assert [(chunk.tensor, chunk.item_size) for chunk in made] == [
            ("a:ggml0:25", 4),
            ("b:ggml8:32", 1),
            ("c:ggml30:2x3", 2),
        ]
        for chunk, (_, _, values) in zip(made, data.values(), strict=True):
            assert chunk.data == values + bytes(-len(values) % (alignment or 32))


def test_gguf_tensors_keep_their_chunks_when_the_metadata_grows() -> None:
    data = {"a": (0, [500_000], noise(2_000_000)), "b": (12, [256], noise(1_200_000, 1))}
    words = [f"word {n}" for n in range(40_000)]
    before = cuts(models.gguf(data, vocabulary=words))
    after = cuts(models.gguf(data, vocabulary=words, name="another, longer name"))
    assert new_bytes(before, after) < 300_000


def test_stored_members_of_a_zip_are_cut_from_their_beginning() -> None:
    made = cuts(TORCH)
    with zipfile.ZipFile(io.BytesIO(TORCH)) as archive:
        member = archive.read("model/data/0")
    assert [chunk.part for chunk in made if chunk.tensor == "data/0:zip:"] == [0, 1, 2]
    assert b"".join(chunk.data for chunk in made if chunk.tensor == "data/0:zip:").startswith(member)

    moved = models.torch_zip(
        {"data.pkl": noise(777), "data/0": noise(2 * MIB + 12), "data/1": noise(50)}, "v2"
    )
    assert new_bytes(made, cuts(moved)) < 3000
    assert {chunk.tensor for chunk in cuts(NPZ)} >= {"a.npy:zip:", "b.npy:zip:"}


def test_an_array_is_one_tensor() -> None:
    for dtype, item_size in (("<f4", 4), ("<f8", 8), ("<i2", 2), ("<c16", 8), ("?", 1), ("<u1", 1)):
        array = np.zeros((3, 5), dtype)
        (header, data) = cuts(models.npy(array))
        assert (header.tensor, data.data, data.item_size) == ("", array.tobytes(), item_size)
        assert data.tensor.startswith("npy:")
        assert data.tensor.endswith(":3x5")


def test_a_database_is_cut_at_its_pages() -> None:
    for page_size, size in ((512, 16384), (4096, 16384), (32768, 32768), (65536, 65536)):
        made = cuts(models.database(9000, page_size))
        assert {len(chunk.data) for chunk in made[:-1]} == {size}


def test_a_changed_page_changes_one_chunk() -> None:
    changed = bytearray(DATABASE)
    changed[200_000] ^= 1
    assert new_bytes(cuts(DATABASE), cuts(bytes(changed))) == 16384


@pytest.mark.parametrize("name", ["naïve/模型", "a" * 5000, "\ud800lone", "\x00", ""])
def test_any_name_makes_a_label_that_can_be_written(name: str) -> None:
    header = json.dumps({name: {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode()
    (label,) = {chunk.tensor for chunk in cuts(models.with_header(header, b"abc"))} - {""}
    label.encode()
    other = json.dumps({name + "b": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode()
    assert label not in {chunk.tensor for chunk in cuts(models.with_header(other, b"abc"))}


def in_pieces_of_zeros(head: bytes, size: int) -> Iterator[bytes]:
    yield head
    zeros = bytes(MIB)
    for _ in range(size // MIB):
        yield zeros


def huge_header(size: int) -> bytes:
    return models.with_header(
        json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode(), b""
    )


HEADS: dict[str, Callable[[int], bytes]] = {
    "safetensors": huge_header,
    "gguf": lambda size: models.gguf({"a": (0, [size], b"")}),
    "torch": lambda size: models.torch_zip({"data/0": b"x" * 1000})[:-200],
    "npy": lambda size: models.npy(np.zeros(1)),
    "sqlite": lambda size: models.database(10)[:100],
    "noise": lambda size: noise(100),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_memory_does_not_grow_with_the_content(head: Callable[[int], bytes]) -> None:
    size = 64 * MIB
    start = head(size)
    total = 0
    tracemalloc.start()
    try:
        for chunk in cut(in_pieces_of_zeros(start, size), KEY):
            total += len(chunk.data)
        # One piece is the source's.
        assert tracemalloc.get_traced_memory()[1] < 5 * MIB
    finally:
        tracemalloc.stop()
    assert total == size + len(start)


def test_a_file_is_told_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_bytes(SAFETENSORS)
    with path.open("rb") as file:
        assert {chunk.item_size for chunk in cut(iter(lambda: file.read(MIB), b""), KEY)} == {1, 4}
