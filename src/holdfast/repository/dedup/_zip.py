"""Zip files whose members are stored as they are: those of torch.save (`.pt`) and numpy.savez (`.npz`).

Each member is cut from its own beginning, so the same tensor gives the same chunks wherever it lies, and its items
stay whole. The list of members stands at the end of a zip, too late for a stream, so the headers before the members
are followed instead: section 4.3.7 of https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from holdfast.repository.dedup._chunk import MAX_CHUNK, Chunk, by_content, fixed
from holdfast.repository.dedup._layout import tensor_label
from holdfast.repository.dedup._stream import ByteStream

# Signature, version needed, flags, method, time, date, CRC-32, compressed and raw size, lengths of name and extra.
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_SIGNATURE = b"PK\3\4"
_SIZE_FOLLOWS = 1 << 3
_STORED = 0
_ZIP64_SIZE = 0xFFFFFFFF
_ZIP64 = struct.Struct("<HHQQ")
# The start of a header: a version up to 6.3, and the method stored or deflated.
_NEXT = re.compile(rb"PK\x03\x04[\x00-\x3f][\x00-\x0b]..[\x00\x08]\x00", re.DOTALL)
_NEXT_LENGTH = 10


class _Member(NamedTuple):
    header_length: int
    stored: bool
    size: int | None
    """Bytes in the file; None when that is said only after them."""
    name: str


def looks_like_zip(start: memoryview) -> bool:
    """Whether the first bytes of a file are those of a zip with members."""
    return bytes(start[:4]) == _SIGNATURE


def cut_zip(stream: ByteStream, key: bytes) -> Iterator[Chunk]:
    """All that is left of `stream`. What does not follow the form is cut by content."""
    while (member := _member(stream)) is not None:
        yield Chunk(bytes(stream.take(member.header_length)))
        label = tensor_label(member.name, "zip", ())
        if member.stored and member.size is None:
            yield from _to_next_member(stream, label)
        elif member.stored:
            yield from fixed(stream, member.size, MAX_CHUNK, 1, label)
        elif member.size is not None:
            yield from by_content(stream, member.size, key)
        else:
            break
    yield from by_content(stream, None, key)


def _member(stream: ByteStream) -> _Member | None:
    start = stream.peek(_LOCAL_HEADER.size)
    if len(start) < _LOCAL_HEADER.size:
        return None
    signature, _, flags, method, _, _, _, size, raw_size, name_length, extra_length = _LOCAL_HEADER.unpack(
        start
    )
    if signature != _SIGNATURE:
        return None
    length = _LOCAL_HEADER.size + name_length + extra_length
    header = bytes(stream.peek(length))
    name = header[_LOCAL_HEADER.size : _LOCAL_HEADER.size + name_length].decode("utf-8", "replace")
    if _ZIP64_SIZE in (size, raw_size):
        size = _zip64_size(header[_LOCAL_HEADER.size + name_length :])
    # torch.save puts everything into one directory, named like the file.
    return _Member(
        length, method == _STORED, None if flags & _SIZE_FOLLOWS else size, name.partition("/")[2] or name
    )


def _zip64_size(extra: bytes) -> int | None:
    """The compressed size in the extra field, if that begins with one."""
    if len(extra) >= _ZIP64.size:
        kind, _, _, size = _ZIP64.unpack_from(extra)
        if kind == 1:
            return int(size)
    return None


def _to_next_member(stream: ByteStream, label: str) -> Iterator[Chunk]:
    """Torch writes the size of a member after it, so its end shows in the header of the next one.

    Where the same bytes stand in the data of a member, it is cut there too, which costs a chunk.
    """
    part = 0
    while window := stream.peek(MAX_CHUNK + _NEXT_LENGTH - 1):
        found = _NEXT.search(window)
        length = min(MAX_CHUNK, len(window)) if found is None else found.start()
        if length:
            yield Chunk(bytes(stream.take(length)), 1, label, part)
            part += 1
        if found is not None:
            return
