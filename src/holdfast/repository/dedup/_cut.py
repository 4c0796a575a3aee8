"""Cuts content into chunks, in the way that suits what it is.

What it is shows in its first bytes, never in a name. All bytes come out, in order, whatever a header says: what makes
no sense is cut as content of no known form.

* **safetensors, GGUF, .npy**: the header by content, then each tensor from its own beginning in chunks of 1 MiB. The
  same tensor gives the same chunks wherever it lies, and items stay whole.
* **SQLite**: at multiples of 16 KiB, or of the page size if that is larger. Pages change in place, so places tell
  more than content. When 1 % of the rows change, all over the table, half of the chunks are new; of 64 KiB, nine in
  ten.
* **zip** (`.pt`, `.npz`): members that are stored as they are, each from its own beginning.
* **Anything else**: by content.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.repository.dedup._cdc import MIN_CHUNK, cut_by_content
from holdfast.repository.dedup._chunk import MAX_CHUNK, Chunk, by_content, fixed
from holdfast.repository.dedup._headers import HEADER_STEP, header_reader
from holdfast.repository.dedup._layout import Extent, HeaderReader, Layout
from holdfast.repository.dedup._stream import ByteStream
from holdfast.repository.dedup._zip import cut_zip, looks_like_zip

__all__ = ["MAX_CHUNK", "Chunk", "cut", "is_one_chunk"]

_SQLITE_MAGIC = b"SQLite format 3\0"
_SQLITE_CHUNK = 16 << 10
# The file format says 1 for 64 KiB: https://www.sqlite.org/fileformat.html#page_size
_SQLITE_PAGES = {1 << power for power in range(9, 16)}
_LARGEST_PAGE = 64 << 10
_MAGIC = 18


def cut(pieces: Iterator[bytes | memoryview], key: bytes) -> Iterator[Chunk]:
    """Chunks of at most MAX_CHUNK bytes, none empty, whose data in order is that of `pieces`.

    A piece need only be valid until the next one is asked for. The same content and `key` (32 bytes, secret) give the
    same chunks, however it is divided into pieces. Holds some 2 MiB at most, and the tensors' names.
    """
    stream = ByteStream(pieces)
    start = stream.peek(_MAGIC)
    if reader := header_reader(start):
        return _by_header(stream, reader, key)
    if bytes(start[:16]) == _SQLITE_MAGIC:
        page = int.from_bytes(start[16:18], "big")
        page = page if page in _SQLITE_PAGES else _LARGEST_PAGE
        return fixed(stream, None, max(_SQLITE_CHUNK, page))
    if looks_like_zip(start):
        return cut_zip(stream, key)
    return by_content(stream, None, key)


def is_one_chunk(data: bytes) -> bool:
    """Whether `cut` would make one chunk of this content: so it is with nearly every small file."""
    return (
        0 < len(data) <= MIN_CHUNK
        and not looks_like_zip(start := memoryview(data)[:_MAGIC])
        and header_reader(start) is None
    )


def _by_header(stream: ByteStream, reader: HeaderReader, key: bytes) -> Iterator[Chunk]:
    header = _Header(stream, reader, key)
    yield from header.chunks()
    for extent in sorted(header.layout.extents, key=_begin) if header.layout else ():
        if extent.begin >= stream.at:
            yield from by_content(stream, extent.begin - stream.at, key)
            yield from fixed(stream, extent.end - extent.begin, MAX_CHUNK, extent.item_size, extent.tensor)
    yield from by_content(stream, None, key)


def _begin(extent: Extent) -> int:
    return extent.begin


class _Header:
    """The header of a file, read while it is cut. Everything, where it turns out to be none."""

    def __init__(self, stream: ByteStream, reader: HeaderReader, key: bytes) -> None:
        self.layout: Layout | None = None
        self._stream = stream
        self._reader: HeaderReader | None = reader
        self._key = key

    def chunks(self) -> Iterator[Chunk]:
        for data in cut_by_content(self._readinto, self._key):
            yield Chunk(bytes(data))

    def _readinto(self, buffer: memoryview) -> int:
        if self.layout is not None:
            return self._stream.readinto(buffer[: self.layout.header_end - self._stream.at])
        if self._reader is None:
            return self._stream.readinto(buffer)
        begin = self._stream.at
        fed = buffer[:HEADER_STEP]
        fed = fed[: self._stream.readinto(fed)]
        try:
            self.layout = self._reader.feed(fed)
        except ValueError:
            self._reader = None
        if self.layout is not None:
            beyond = fed[self.layout.header_end - begin :]
            self._stream.put_back(bytes(beyond))
            return len(fed) - len(beyond)
        return len(fed)
