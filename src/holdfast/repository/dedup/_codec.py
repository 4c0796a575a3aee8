"""A block of one class of content, compressed by what it holds.

===== ============ ==============================================================================================
byte  codec        encoded
===== ============ ==============================================================================================
0     stored       the bytes as they are
1     zstd         one zstd frame (RFC 8878) that declares its length
2     planes       a header, the bytes after the last whole item, then the planes, the lowest byte's first
3     delta planes the same, of the differences to a base of equal length
===== ============ ==============================================================================================

The header of planes, little-endian: item size (1, 2, 4 or 8), flags (bit 0: items are rotated; codec 2 only), and
for each plane how it is coded (0 stored, 1 a zstd frame) in one byte and its encoded length in four.

Blocks are coded and opened by any number of threads at once, nearly all the time without the GIL.
"""

from __future__ import annotations

import struct

import numpy as np

from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._planes import (
    ITEM_SIZES,
    Items,
    Plane,
    differences,
    items,
    merge,
    split,
    undo_differences,
)
from holdfast.repository.dedup._probe import WORTH, Coder, Way, choose
from holdfast.repository.dedup._zstd import MAX_RAW, Buffer, compress, decompress

STORED, ZSTD, PLANES, DELTA_PLANES = range(4)

MAX_BLOCK = MAX_RAW
"""No block holds more raw bytes than this."""

_HEADER = struct.Struct("<BB")
_PLANE = struct.Struct("<BI")
_ROTATED = 1


def encode(raw: memoryview, item_size: int, base: memoryview | None = None) -> tuple[int, bytes]:
    """The codec byte and the encoded bytes, never longer than `raw`: it is stored where nothing gains 2 %.

    `raw` is contiguous, at most MAX_BLOCK bytes, and begins with a whole item. `item_size` is the tensor's (1, 2, 4
    or 8 bytes); 1 also means that it is not known, and then planes are used where they clearly pay. `base`, as long
    as `raw`, is an earlier version of it, used where it saves a tenth of what would remain without it; `decode`
    needs it if the codec byte is DELTA_PLANES, and not otherwise.

    Raises ValueError for arguments beyond that.
    """
    raw = raw.cast("B")
    if len(raw) > MAX_BLOCK or item_size not in ITEM_SIZES:
        raise ValueError(f"a block of {len(raw)} bytes, in items of {item_size}, cannot be encoded")
    if base is not None:
        base = base.cast("B")
        if len(base) != len(raw):
            raise ValueError(f"a block of {len(raw)} bytes cannot differ from a base of {len(base)}")
    if not raw:
        return STORED, b""
    codec, encoded = _encoded(raw, choose(raw, item_size, base), base)
    return (codec, encoded) if len(encoded) <= WORTH * len(raw) else (STORED, bytes(raw))


def decode(codec: int, encoded: Buffer, raw_size: int, base: Buffer | None = None) -> bytes | memoryview:
    """The `raw_size` bytes of a block, as `encode` was given them.

    Memory: a few times `raw_size` at most, whatever `encoded` says.
    Raises CorruptBackup for anything that `encode` does not make: of another length, damaged, of an unknown codec,
    without the base that it needs or with one of another length.
    """
    if not 0 <= raw_size <= MAX_BLOCK:
        raise CorruptBackup(f"a block says that it holds {raw_size} bytes")
    encoded = memoryview(encoded).cast("B")
    if codec == STORED:
        if len(encoded) != raw_size:
            raise CorruptBackup(f"a stored block of {len(encoded)} bytes should hold {raw_size}")
        return bytes(encoded)
    if codec == ZSTD:
        return decompress(encoded, raw_size)
    if codec == PLANES:
        return _from_planes(encoded, raw_size, None)
    if codec == DELTA_PLANES:
        if base is None:
            raise CorruptBackup("a block is a difference to another one, which is missing")
        base = memoryview(base).cast("B")
        if len(base) != raw_size:
            raise CorruptBackup(f"a block of {raw_size} bytes is a difference to one of {len(base)}")
        return _from_planes(encoded, raw_size, base)
    raise CorruptBackup(
        f"a block is coded in an unknown way ({codec})",
        hint="A later version of Holdfast may have written it: update, then try again.",
    )


def _encoded(raw: memoryview, way: Way, base: memoryview | None) -> tuple[int, bytes]:
    if not any(way.coders):
        return STORED, bytes(raw)
    if not way.item_size:
        (effort,) = way.coders
        assert effort is not None
        return ZSTD, compress(raw, effort)
    values = items(raw, way.item_size)
    if way.difference:
        assert base is not None
        values = differences(values, items(base, way.item_size))
    coded = [
        _code(plane, coder)
        for plane, coder in zip(split(values, rotated=way.rotated), way.coders, strict=True)
    ]
    header = _HEADER.pack(way.item_size, _ROTATED if way.rotated else 0)
    sizes = b"".join([_PLANE.pack(kind, len(data)) for kind, data in coded])
    tail = raw[len(values) * way.item_size :]
    return DELTA_PLANES if way.difference else PLANES, b"".join(
        [header, sizes, tail, *(data for _, data in coded)]
    )


def _code(plane: Plane, coder: Coder) -> tuple[int, Buffer]:
    if coder is not None:
        data = compress(plane, coder)
        if len(data) < len(plane):
            return ZSTD, data
    return STORED, plane


def _from_planes(encoded: memoryview, raw_size: int, base: memoryview | None) -> bytes | memoryview:
    try:
        item_size, flags = _HEADER.unpack_from(encoded)
        if item_size not in ITEM_SIZES or flags & ~(_ROTATED if base is None else 0):
            raise CorruptBackup(f"a block has planes of an unknown kind ({item_size}, {flags})")
        sizes = [
            _PLANE.unpack_from(encoded, _HEADER.size + _PLANE.size * place) for place in range(item_size)
        ]
    except struct.error as error:
        raise CorruptBackup("a block ends within the header of its planes") from error
    count, left_over = divmod(raw_size, item_size)
    start = _HEADER.size + _PLANE.size * item_size
    tail = encoded[start : start + left_over]
    if count == 0 or start + left_over + sum(size for _, size in sizes) != len(encoded):
        raise CorruptBackup("a block is not as long as the header of its planes says")
    start += left_over
    planes: list[Plane] = []
    for kind, size in sizes:
        planes.append(_plane(kind, encoded[start : start + size], count))
        start += size
    values: Items = merge(planes, rotated=bool(flags & _ROTATED))
    if base is not None:
        values = undo_differences(values if values.flags.writeable else values.copy(), items(base, item_size))
    whole = values.data.cast("B")
    return b"".join([whole, tail]) if left_over else whole


def _plane(kind: int, data: memoryview, count: int) -> Plane:
    if kind == ZSTD:
        return np.frombuffer(decompress(data, count), np.uint8)
    if kind != STORED or len(data) != count:
        raise CorruptBackup(f"a plane of {count} bytes is coded in an unknown way, or of another length")
    return np.frombuffer(data, np.uint8)
