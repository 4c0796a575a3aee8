"""What cutting yields, and the two ways to cut a range: by content, and at fixed lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from holdfast.repository.dedup._cdc import MIN_CHUNK, cut_by_content
from holdfast.repository.dedup._stream import ByteStream

MAX_CHUNK = 1 << 20
"""No chunk is longer."""
_GROUP = 1 << 20
"""Bytes from which chunks make a group."""
_READ = 1 << 20
"""Bytes that are read at a time, of what is cut at fixed lengths."""


class Chunk(NamedTuple):
    """A piece of content."""

    data: bytes | memoryview
    """Stays as it is. It may be a part of `_READ` bytes, which stay in memory as long as it does."""
    item_size: int = 1
    """Bytes of one item of the tensor; 1 where this is no tensor, or one of bytes."""
    tensor: str = ""
    """Name, type and shape of the tensor that this is a part of; "" where it is none. With `part` it finds the same
    part in another version of the model."""
    part: int = 0
    """Which part of the tensor, or of the range that is cut at fixed lengths, this is, from 0."""


def in_groups(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks, some MiB together: what is done with each by another thread is done with all of them at once."""
    group: list[Chunk] = []
    size = 0
    for chunk in chunks:
        group.append(chunk)
        size += len(chunk.data)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def by_content(stream: ByteStream, length: int | None, key: bytes) -> Iterator[Chunk]:
    """The next `length` bytes (all that is left if None) as chunks that end where the content says so."""
    if length is not None and length <= 0:
        return
    short = MIN_CHUNK if length is None else min(MIN_CHUNK, length)
    start = stream.peek(short + 1)
    if len(start) <= short or length == short:
        # Most files are small: the chunker, with its buffers, would take longer than they do.
        if start:
            yield Chunk(bytes(stream.take(min(len(start), short))))
        return
    end = None if length is None else stream.at + length

    def readinto(buffer: memoryview) -> int:
        return stream.readinto(buffer if end is None else buffer[: end - stream.at])

    for data in cut_by_content(readinto, key):
        yield Chunk(bytes(data))


def fixed(
    stream: ByteStream, length: int | None, size: int, item_size: int = 1, tensor: str = ""
) -> Iterator[Chunk]:
    """The next `length` bytes (all that is left if None) as chunks of `size` bytes, the last one smaller."""
    part = 0
    step = max(1, _READ // size) * size
    while length is None or length > 0:
        buffer = np.empty(step if length is None else min(step, length), np.uint8).data
        count = stream.readinto(buffer)
        for start in range(0, count, size):
            yield Chunk(buffer[start : min(start + size, count)], item_size, tensor, part)
            part += 1
        if count < len(buffer):
            return
        if length is not None:
            length -= count
