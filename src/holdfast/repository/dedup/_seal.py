"""Sealed pieces: AES-256-GCM under a key of a run, each bound to its object and its place in it.

Packs are sealed under the run's data key. Index objects are sealed under a key that whoever has the id key can
derive: hosts that write and cannot read tell each other by them what is stored.

A nonce must never serve twice under one key. It is made of the number of the object in its run and the place of the
piece in the object, so a run must never use the number of a pack or an index object again, not even when the first
attempt was given up: what was uploaded by then may have been seen.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, Protocol

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast.repository.dedup._ids import Bytes

TAG_LENGTH: Final = 16
TABLE_POSITION: Final = (1 << 64) - 1
INDEX_POSITION: Final = (1 << 64) - 2

BLOCK: Final = b"B"
TABLE: Final = b"T"
INDEX: Final = b"I"

_HEADER = struct.Struct("<8s16sI")
_NONCE = struct.Struct("<IQ")
HEADER_LENGTH: Final = _HEADER.size
"""Bytes of the header with which packs and index objects begin."""


def header(magic: bytes, run: str, number: int) -> bytes:
    """What an object begins with: its kind and version, its run, its number."""
    return _HEADER.pack(magic, bytes.fromhex(run), number)


class PieceKeys(Protocol):
    """What pieces of a run are sealed with."""

    @property
    def run(self) -> str: ...

    @property
    def data_key(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class IndexKeys:
    """What a run's index objects are sealed with. ``repr`` shows no key."""

    run: str
    data_key: bytes = field(repr=False)

    @classmethod
    def derive(cls, id_key: bytes, run: str) -> IndexKeys:
        """Those of a run whose chunks are named with `id_key`. No two runs share one, so no nonce serves twice."""
        material = id_key + bytes.fromhex(run)
        return cls(run, blake3(material, derive_key_context="holdfast 2026 index objects of a run").digest())


class Sealer:
    """Seals and opens the pieces of one object. Safe to use from several threads."""

    def __init__(self, keys: PieceKeys, magic: bytes, number: int) -> None:
        """`number`: that of the object, among those of its kind in its run."""
        self.header = header(magic, keys.run, number)
        self._number = number
        self._cipher = AESGCM(keys.data_key)

    def seal(self, kind: bytes, position: int, plaintext: Bytes) -> bytes:
        """Ciphertext and tag. No position may be sealed twice, whatever its kind."""
        return self._cipher.encrypt(_NONCE.pack(self._number, position), plaintext, self.header + kind)

    def open(self, kind: bytes, position: int, sealed: Bytes) -> bytes | None:
        """The plaintext; None when it was not sealed with this key, for this place, or is damaged."""
        try:
            return self._cipher.decrypt(_NONCE.pack(self._number, position), sealed, self.header + kind)
        except InvalidTag:
            return None
