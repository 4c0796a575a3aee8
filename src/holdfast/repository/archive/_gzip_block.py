"""One block of a gzip stream: compressed apart from its neighbors, and opened again before it is let go.

A block is raw deflate (RFC 1951) that refers to nothing before it and ends with a sync flush: an empty stored
block, whose last four bytes are ``00 00 FF FF``, on a byte boundary. So blocks can be glued in any order into one
deflate stream, and each can be inflated alone.

Three ways to write a block, whichever suits its bytes:

* *stored*, where compression gains less than one percent;
* *fast* (ISA-L), where only the frequencies of bytes can be used: searching weights for repetitions takes seven
  times as long and gains nothing;
* *squeezed* (zlib-ng), where searching for repetitions pays.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, cast

from isal import isal_zlib
from zlib_ng import zlib_ng

from holdfast.errors import CorruptBackup, RepositoryError

MAX_RAW = 16 << 20
"""No block holds more raw bytes than this."""

# The type stub of isal declares an instance where there is a class.
InflateError = cast("type[Exception]", isal_zlib.error)

RAW_DEFLATE = -15  # how zlib's interface asks for no header, no trailer and the full 32 KiB window
_SYNC_TAIL = b"\x00\x00\xff\xff"

# Level -> the level of zlib-ng, above those of ISA-L. zlib-ng 1 expands weights. Its 5 and 6 gain 1 % on rows over
# its 4, for 10 and 45 % more time, its 8 takes ten times as long as its 7 on the indexes of a database, and its 9 is
# both slower and larger than its 8. So the highest levels differ in little but what follows.
_ISAL = (1, 2)
_SEARCH = {3: 2, 4: 3, 5: 3, 6: 4, 7: 4, 8: 4, 9: 4}
# zlib-ng 7 takes twice as long as 4. It gains 10 % on the indexes of a database, 2 % on rows, less on text: from this
# level on, it is used where a sample says that it pays.
_TRY_DEEPER = 8
_DEEPER = 7
# Rows that are mostly blanks: 8 gains 3 % over 4 for twice the time, which is little where so little is left.
_TRY_DEEPEST = 9
_DEEPEST = 8
# The ISA-L level for weights: 2 is smaller by a twentieth of a percent, and a tenth slower.
_FAST = 1

_WORTH_COMPRESSING = 0.99
_WORTH_SEARCHING = 0.98
_WORTH_DEEPER = 0.94
_WORTH_DEEPEST = 0.99
_REPETITIVE = 0.05
_SAMPLE_SIZE = 16 << 10

# glibc gives memory above a threshold back to the system when it is freed, and faults it in again, page by page,
# for the next block: a fifth of the time on weights. Freeing one large allocation, never touched, raises the
# threshold to its size (mallopt(3), M_MMAP_THRESHOLD).
bytearray(8 << 20)

_Bytes: TypeAlias = bytes | bytearray | memoryview


class Packed(NamedTuple):
    """A finished block: its compressed bytes, and the length and CRC-32 of its raw bytes."""

    data: bytes
    raw_length: int
    crc: int


def max_packed(raw_length: int) -> int:
    """The most bytes that a block of so many raw bytes may take: stored, with room for what other writers add.

    RFC 1951, section 3.2.4: five bytes for every 65,535 stored; writers with smaller buffers use more.
    """
    return raw_length + (raw_length >> 8) + 64


def pack(raw: bytes | bytearray, level: int) -> Packed:
    """Compress one block at a ``level`` of 0 to 9, inflate it again and compare.

    Raises RepositoryError when it does not come back as it went in.
    """
    data = _compress(raw, level)
    try:
        intact = unpack(data, len(raw)) == raw
    except CorruptBackup:
        intact = False
    if not intact:
        raise RepositoryError(
            f"a compressed block of {len(raw)} bytes did not inflate to what it was made from",
            hint="The memory or the processor of this machine is faulty: test both, then back up again.",
        )
    return Packed(data, len(raw), isal_zlib.crc32(raw))


def unpack(data: bytes, raw_length: int) -> bytes:
    """Inflate one block, which must hold exactly ``raw_length`` bytes (at least 1) and end in a sync flush.

    Never allocates more than the declared length. Raises CorruptBackup.
    """
    inflater = isal_zlib.decompressobj(wbits=RAW_DEFLATE)
    try:
        raw = inflater.decompress(data, raw_length)
        more = inflater.decompress(inflater.unconsumed_tail, 1)
    except InflateError as error:
        raise CorruptBackup(f"a compressed block is damaged: {error}") from error
    if len(raw) != raw_length or more:
        raise CorruptBackup(f"a compressed block does not hold the {raw_length} bytes it declares")
    if inflater.eof or not data.endswith(_SYNC_TAIL):
        raise CorruptBackup("a compressed block does not end where its index says")
    return raw


def _compress(raw: bytes | bytearray, level: int) -> bytes:
    if level == 0:
        return _squeeze(raw, 0)
    if level in _SEARCH and (sample := _searchable_sample(raw)) is not None:
        data = _squeeze(raw, _search_level(sample, level))
    else:
        data = _fast(raw, level if level in _ISAL else _FAST)
    return data if len(data) < _WORTH_COMPRESSING * len(raw) else _squeeze(raw, 0)


def _searchable_sample(raw: bytes | bytearray) -> memoryview | None:
    """The first of three samples that looking for repetitions makes smaller than the frequencies of bytes do."""
    view = memoryview(raw)
    last = max(0, len(raw) - _SAMPLE_SIZE)
    for start in sorted({0, last // 2, last}):
        sample = view[start : start + _SAMPLE_SIZE]
        by_frequency = _squeeze(sample, 1, zlib_ng.Z_HUFFMAN_ONLY)
        if len(_fast(sample, _FAST)) < _WORTH_SEARCHING * len(by_frequency):
            return sample
    return None


def _search_level(sample: memoryview, level: int) -> int:
    """The level of zlib-ng for a block that the sample is from."""
    usual = _SEARCH[level]
    if level < _TRY_DEEPER:
        return usual
    size, deeper = (len(_squeeze(sample, each)) for each in (usual, _DEEPER))
    if level >= _TRY_DEEPEST and size < _REPETITIVE * len(sample):
        deepest = len(_squeeze(sample, _DEEPEST))
        if deepest < _WORTH_DEEPEST * min(size, deeper):
            return _DEEPEST
    return _DEEPER if deeper < _WORTH_DEEPER * size else usual


def _fast(raw: _Bytes, level: int) -> bytes:
    compressor = isal_zlib.compressobj(level, wbits=RAW_DEFLATE)
    return compressor.compress(raw) + compressor.flush(isal_zlib.Z_SYNC_FLUSH)


def _squeeze(raw: _Bytes, level: int, strategy: int = zlib_ng.Z_DEFAULT_STRATEGY) -> bytes:
    compressor = zlib_ng.compressobj(level, wbits=RAW_DEFLATE, strategy=strategy)
    return compressor.compress(raw) + compressor.flush(zlib_ng.Z_SYNC_FLUSH)
