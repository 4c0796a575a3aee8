"""What the content of a file goes by: BLAKE3 of the ids of its chunks, in order.

Every byte has been hashed for these ids. To hash it all once more, for a digest that others know, would take longer
than all else that is done with weights. The same content has the same digest where it is cut alike, under one id key.
"""

from __future__ import annotations

from blake3 import blake3

from holdfast.repository._manifest import ChunkRef


class ContentDigest:
    """The digest and the size of a file, of which chunk after chunk is told."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of the chunks so far."""
        self._hash = blake3()

    def add(self, chunk: ChunkRef) -> None:
        self._hash.update(bytes.fromhex(chunk.id))
        self.size += chunk.length

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
