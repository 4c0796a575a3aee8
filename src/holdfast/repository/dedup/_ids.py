"""Names of chunks: BLAKE3, keyed, so that nobody without the key can tell whether a file is in a backup."""

from __future__ import annotations

from typing import TypeAlias

from blake3 import blake3

ID_LENGTH = 32
KEY_LENGTH = 32

Bytes: TypeAlias = bytes | bytearray | memoryview


def chunk_id(id_key: bytes, data: Bytes) -> bytes:
    """The id of a chunk: 32 bytes (https://github.com/BLAKE3-team/BLAKE3-specs, keyed hash mode)."""
    return blake3(data, key=id_key).digest()


def key_name(id_key: bytes) -> bytes:
    """What tells one id key from another, and does not give it away: 16 bytes."""
    return blake3(b"name", key=id_key).digest(length=16)
