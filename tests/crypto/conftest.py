"""What the tests of this package share: age files in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from holdfast.crypto import Identity, OpeningReader, Recipient, SealingWriter
from holdfast.streams import RandomAccess


@dataclass(frozen=True)
class _Bytes:
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


@pytest.fixture(scope="session")
def source() -> Callable[[bytes], RandomAccess]:
    """Bytes as something to read at random."""
    return _Bytes


@pytest.fixture(scope="session")
def seal() -> Callable[..., bytes]:
    """Encrypt all at once, with as little work for a passphrase as the format allows."""

    def seal(plaintext: bytes, *recipients: Recipient, work_factor: int = 1) -> bytes:
        out = io.BytesIO()
        with SealingWriter(out, recipients, work_factor) as writer:
            writer.write(plaintext)
        return out.getvalue()

    return seal


@pytest.fixture(scope="session")
def unseal() -> Callable[[bytes, Sequence[Identity]], bytes]:
    """Decrypt all at once."""

    def unseal(sealed: bytes, identities: Sequence[Identity]) -> bytes:
        reader = OpeningReader(_Bytes(sealed), identities)
        return reader.read_at(0, reader.size)

    return unseal
