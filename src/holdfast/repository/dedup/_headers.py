"""Which headers are understood, by a file's first bytes."""

from __future__ import annotations

from holdfast.repository.dedup._gguf import GgufHeader, looks_like_gguf
from holdfast.repository.dedup._layout import HeaderReader
from holdfast.repository.dedup._npy import NpyHeader, looks_like_npy
from holdfast.repository.dedup._safetensors import SafetensorsHeader, looks_like_safetensors

HEADER_STEP = 64 << 10
"""Bytes that a reader is fed at a time."""


def header_reader(start: memoryview) -> HeaderReader | None:
    """What reads the header of a file of tensors that begins so (18 bytes suffice); None where it is none."""
    if looks_like_safetensors(start):
        return SafetensorsHeader()
    if looks_like_gguf(start):
        return GgufHeader()
    if looks_like_npy(start):
        return NpyHeader()
    return None
