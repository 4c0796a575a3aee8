"""Cuts content, checks what is promised of every content, and has one of every kind to cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from holdfast.repository.dedup._cut import MAX_CHUNK, cut
from repository.dedup import models
from repository.dedup.models import Tensor, noise

KEY = b"k" * 32
MIB = 1 << 20


def pieces(content: bytes, size: int = MIB) -> Iterator[memoryview]:
    """As a reader gives them that has one buffer: a piece is gone when the next one is asked for."""
    buffer = bytearray(size)
    for start in range(0, len(content), size):
        piece = content[start : start + size]
        buffer[: len(piece)] = piece
        yield memoryview(buffer)[: len(piece)]
    buffer[:] = b"\xee" * size


class Cut:
    """Chunks, each copied before the next one is asked for."""

    def __init__(self, data: bytes, item_size: int, tensor: str, part: int) -> None:
        self.data, self.item_size, self.tensor, self.part = data, item_size, tensor, part

    @property
    def identity(self) -> tuple[str, int]:
        return self.tensor, self.part


def cuts(content: bytes, size: int = MIB, key: bytes = KEY) -> list[Cut]:
    """The chunks, after checking what is promised of every content."""
    made = [Cut(bytes(data), *rest) for data, *rest in cut(pieces(content, size), key)]
    assert b"".join(chunk.data for chunk in made) == content
    assert all(0 < len(chunk.data) <= MAX_CHUNK for chunk in made)
    assert all(chunk.item_size in (1, 2, 4, 8) and len(chunk.tensor) <= 200 for chunk in made)
    return made


def new_bytes(before: list[Cut], after: list[Cut]) -> int:
    have = {chunk.data for chunk in before}
    return sum(len(chunk.data) for chunk in after if chunk.data not in have)


def tensors(count: int = 6) -> dict[str, Tensor]:
    sizes = [3 * MIB + 400, 40, 700_000, MIB, 16, 2 * MIB + 4]
    return {
        f"layer.{n}.weight": Tensor("F32", [sizes[n % 6] // 4], noise(sizes[n % 6], n)) for n in range(count)
    }


SAFETENSORS = models.safetensors(tensors(), {"format": "pt"})
GGUF = models.gguf(
    {"token_embd": (0, [50_000], noise(200_000, 1)), "blk.0": (12, [32, 8], noise(1_500_000, 2))},
    vocabulary=[f"token{n}" for n in range(9000)],
)
TORCH = models.torch_zip({"data.pkl": noise(300), "data/0": noise(2 * MIB + 12), "data/1": noise(40)})
NPY = models.npy(np.arange(400_000, dtype="<f8"))
NPZ = models.npz({"a": np.arange(300_000, dtype="<f4"), "b": np.arange(9)})
DATABASE = models.database(12_000)
KINDS = {
    "safetensors": SAFETENSORS,
    "gguf": GGUF,
    "gguf 2": models.gguf({"a": (1, [8], noise(16))}, version=2),
    "torch": TORCH,
    "npy": NPY,
    "npz": NPZ,
    "compressed npz": models.npz({"a": np.arange(300_000, dtype="<f4")}, compressed=True),
    "sqlite": DATABASE,
    "noise": noise(1_500_000),
    "zeros": bytes(1_500_000),
}
