"""zstd frames of known length, with compressors that each thread keeps for itself.

The zstandard package releases the GIL while it compresses and decompresses; its objects must not be shared.
"""

from __future__ import annotations

import enum
import threading
from typing import Any, TypeAlias

import zstandard

from holdfast.errors import CorruptBackup

MAX_RAW = 4 << 20
"""No frame holds more raw bytes than this."""

# glibc gives memory above a threshold back to the system when it is freed, and faults it in again, page by page,
# for the next block: a third of the time on weights. Freeing one large allocation, never touched, raises the
# threshold to its size (mallopt(3), M_MMAP_THRESHOLD).
bytearray(8 << 20)

Buffer: TypeAlias = Any
"""bytes, bytearray, memoryview or a contiguous array of uint8 (Python 3.11 has no name for it)."""


class Effort(enum.Enum):
    """How hard to look for repetitions."""

    FREQUENCIES = enum.auto()
    """Hardly: what it gains comes from the frequencies of bytes (Huffman codes). For planes of weights."""
    REPETITIONS = enum.auto()
    """For text, rows, and integers."""


def _parameters(effort: Effort) -> zstandard.ZstdCompressionParameters:
    options: dict[str, int] = {"write_content_size": 1, "write_checksum": 0, "write_dict_id": 0}
    if effort is Effort.FREQUENCIES:
        # A table of 64 places finds runs, and nothing else takes time.
        options |= {"strategy": zstandard.STRATEGY_FAST, "min_match": 7, "hash_log": 6, "target_length": 0}
        return zstandard.ZstdCompressionParameters.from_level(1, source_size=1 << 20, **options)
    # Of rows and text, as small as level 3 within 2 % in three quarters of its time.
    options["min_match"] = 6
    return zstandard.ZstdCompressionParameters.from_level(2, source_size=1 << 20, **options)


class _Own(threading.local):
    """What belongs to one thread."""

    def __init__(self) -> None:
        self.compressors = {
            effort: zstandard.ZstdCompressor(compression_params=_parameters(effort)) for effort in Effort
        }
        # A frame is opened into a buffer of its declared length, which is checked before. Only a frame that lies
        # about its own length needs a window beside it, and gets no larger one than this.
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_RAW)


_own = _Own()


def compress(data: Buffer, effort: Effort) -> bytes:
    """One frame, which declares how long `data` is."""
    return _own.compressors[effort].compress(data)


def decompress(frame: Buffer, raw_size: int) -> bytes:
    """The `raw_size` bytes (1 to MAX_RAW) of one frame. Allocates no more than that and MAX_RAW.

    Raises CorruptBackup for anything else than one whole frame that declares and holds so many bytes.
    """
    try:
        if not 0 < raw_size <= MAX_RAW or zstandard.frame_content_size(frame) != raw_size:
            raise CorruptBackup(f"a zstd frame does not declare the {raw_size} bytes that it should hold")
        raw = _own.decompressor.decompress(frame, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise CorruptBackup(f"a zstd frame is damaged: {error}") from error
    if len(raw) != raw_size:
        raise CorruptBackup(f"a zstd frame does not hold the {raw_size} bytes it declares")
    return raw
