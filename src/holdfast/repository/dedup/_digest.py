"""What the content of a file goes by: the id of its chunk, or, of several chunks, BLAKE3 of their ids in order.

Every byte has been hashed for these ids. To hash it all once more, for a digest that others know, would take longer
than all else that is done with weights. The same content has the same digest where it is cut alike, under one id key.
"""

from __future__ import annotations

from blake3 import blake3

from holdfast.repository._manifest import ChunkRef
from holdfast.repository.dedup._ids import key_name


def digest_kind(id_key: bytes) -> str:
    """What can be compared with one another: see `holdfast.repository.base.StoredBackup.digests`."""
    return f"chunks under {key_name(id_key).hex()}"


class ContentDigest:
    """The digest and the size of a file, of which chunk after chunk is told."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of the chunks so far."""
        self._count = 0
        self._first = ""
        self._hash: blake3 | None = None

    def add(self, chunk: ChunkRef) -> None:
        self.size += chunk.length
        self._count += 1
        if self._count == 1:
            self._first = chunk.id
            return
        if self._hash is None:
            self._hash = blake3(bytes.fromhex(self._first))
        self._hash.update(bytes.fromhex(chunk.id))

    def hexdigest(self) -> str:
        if self._count == 1:
            return self._first
        return (self._hash or blake3()).hexdigest()
