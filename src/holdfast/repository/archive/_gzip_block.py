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

from typing import NamedTuple, Protocol, cast

from isal import isal_zlib
from zlib_ng import zlib_ng

from holdfast.errors import CorruptBackup, RepositoryError

MAX_RAW = 16 << 20
"""No block holds more raw bytes than this."""

_RAW_DEFLATE = -15  # how zlib's interface asks for no header, no trailer and the full 32 KiB window
_SYNC_TAIL = b"\x00\x00\xff\xff"

# Levels 1 and 2 are ISA-L's. For the others, a pair of zlib-ng's levels: for most blocks, and for those that are easy
# to compress, where searching harder is cheap. zlib-ng 1 expands weights, its 8 takes ten times as long as its 7 on
# the indexes of a database, and its 9 is both slower and larger than its 8.
_SEARCH = {3: (3, 3), 4: (4, 4), 5: (4, 5), 6: (5, 5), 7: (5, 6), 8: (6, 6), 9: (6, 7)}
_EASY = 1 / 3
_FAST = 2  # the ISA-L level that is smallest on weights
_WORTH_COMPRESSING = 0.99
_WORTH_SEARCHING = 0.98
_SAMPLES = 3
_SAMPLE_SIZE = 16 << 10

# glibc gives memory above a threshold back to the system when it is freed, and faults it in again, page by page, for
# the next block: a fifth of the time on weights. Freeing one large allocation, never touched, raises the threshold
# to its size (mallopt(3), M_MMAP_THRESHOLD).
bytearray(8 << 20)


class _Compressor(Protocol):
    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes: ...
    def flush(self, mode: int, /) -> bytes: ...


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
            f"A compressed block of {len(raw)} bytes did not inflate to what it was made from.",
            hint="The memory or the processor of this machine is faulty. Test both, and take the backup again.",
        )
    return Packed(data, len(raw), isal_zlib.crc32(raw))


def unpack(data: bytes, raw_length: int) -> bytes:
    """Inflate one block, which must hold exactly ``raw_length`` bytes (at least 1) and end in a sync flush.

    Never allocates more than the declared length. Raises CorruptBackup.
    """
    inflater = isal_zlib.decompressobj(wbits=_RAW_DEFLATE)
    try:
        raw = inflater.decompress(data, raw_length)
        more = inflater.decompress(inflater.unconsumed_tail, 1)
    except InflateError as error:
        raise CorruptBackup(f"A compressed block is damaged: {error}.") from error
    if len(raw) != raw_length or more:
        raise CorruptBackup(f"A compressed block does not hold the {raw_length} bytes it declares.")
    if inflater.eof or not data.endswith(_SYNC_TAIL):
        raise CorruptBackup("A compressed block does not end where its index says.")
    return raw


# The type stub of isal declares an instance where there is a class.
InflateError = cast("type[Exception]", isal_zlib.error)


def _compress(raw: bytes | bytearray, level: int) -> bytes:
    if level:
        ratio = _searched_ratio(raw) if level in _SEARCH else None
        compressor: _Compressor
        if ratio is None:
            compressor = isal_zlib.compressobj(min(level, _FAST), wbits=_RAW_DEFLATE)
        else:
            compressor = zlib_ng.compressobj(_SEARCH[level][ratio < _EASY], wbits=_RAW_DEFLATE)
        data = _finish(compressor, raw)
        if len(data) < _WORTH_COMPRESSING * len(raw):
            return data
    return _finish(zlib_ng.compressobj(0, wbits=_RAW_DEFLATE), raw)


def _searched_ratio(raw: bytes | bytearray) -> float | None:
    """Compress a few samples with and without looking for repetitions.

    Returns the ratio of compressed to raw size of the first sample where looking for them pays, None where none does.
    """
    view = memoryview(raw)
    stride = len(raw) // _SAMPLES
    starts = range(0, _SAMPLES * stride, stride) if stride > _SAMPLE_SIZE else (0,)
    for start in starts:
        sample = view[start : start + _SAMPLE_SIZE]
        searched = len(_finish(isal_zlib.compressobj(_FAST, wbits=_RAW_DEFLATE), sample))
        huffman = zlib_ng.compressobj(1, wbits=_RAW_DEFLATE, strategy=zlib_ng.Z_HUFFMAN_ONLY)
        if searched < _WORTH_SEARCHING * len(_finish(huffman, sample)):
            return searched / len(sample)
    return None


def _finish(compressor: _Compressor, raw: bytes | bytearray | memoryview) -> bytes:
    return compressor.compress(raw) + compressor.flush(zlib_ng.Z_SYNC_FLUSH)
