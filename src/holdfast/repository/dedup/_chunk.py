"""What cutting yields, and the two ways to cut a range: by content, and at fixed lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from holdfast.repository.dedup._cdc import MIN_CHUNK, cut_by_content
from holdfast.repository.dedup._stream import ByteStream

MAX_CHUNK = 1 << 20
"""No chunk is longer."""


class Chunk(NamedTuple):
    """A piece of content."""

    data: memoryview
    """Valid until the next chunk is asked for."""
    item_size: int = 1
    """Bytes of one item of the tensor; 1 where this is no tensor, or one of bytes."""
    tensor: str = ""
    """Name, type and shape of the tensor that this is a part of; "" where it is none. With `part` it finds the same
    part in another version of the model."""
    part: int = 0
    """Which part of the tensor, or of the range that is cut at fixed lengths, this is, from 0."""


def by_content(stream: ByteStream, length: int | None, key: bytes) -> Iterator[Chunk]:
    """The next `length` bytes (all that is left if None) as chunks that end where the content says so."""
    if length is not None and length <= 0:
        return
    short = MIN_CHUNK if length is None else min(MIN_CHUNK, length)
    start = stream.peek(short + 1)
    if len(start) <= short or length == short:
        # Most files are small: the chunker, with its buffers, would take longer than they do.
        if start:
            yield Chunk(stream.take(min(len(start), short)))
        return
    end = None if length is None else stream.at + length

    def readinto(buffer: memoryview) -> int:
        return stream.readinto(buffer if end is None else buffer[: end - stream.at])

    for data in cut_by_content(readinto, key):
        yield Chunk(data)


def fixed(
    stream: ByteStream, length: int | None, size: int, item_size: int = 1, tensor: str = ""
) -> Iterator[Chunk]:
    """The next `length` bytes (all that is left if None) as chunks of `size` bytes, the last one smaller."""
    part = 0
    while length is None or length > 0:
        data = stream.take(size if length is None else min(size, length))
        if not data:
            return
        if length is not None:
            length -= len(data)
        yield Chunk(data, item_size, tensor, part)
        part += 1
