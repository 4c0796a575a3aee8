"""Where the blocks of a gzip stream lie."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from holdfast.errors import CorruptBackup
from holdfast.repository.archive._gzip_block import MAX_RAW, max_packed

HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""RFC 1952, section 2.3: deflate, no flags, no time, so that equal input gives equal output; system unknown."""

_MAX_OFFSET = 1 << 63


class BlockIndex:
    """The lengths of consecutive blocks: a sequence of pairs ``(compressed length, raw length)``, in bytes.

    Takes 16 bytes of memory a block. The first block lies at ``start`` of the compressed stream and at 0 of the
    raw one.
    """

    def __init__(self, blocks: Iterable[tuple[int, int]] = (), *, start: int = len(HEADER)) -> None:
        """Raises CorruptBackup for lengths that no block can have."""
        if not 0 <= start < _MAX_OFFSET:
            raise CorruptBackup(f"an index says that its first block lies at {start}")
        self._packed = array("Q", [start])
        self._raw = array("Q", [0])
        for compressed_length, raw_length in blocks:
            self.append(compressed_length, raw_length)

    def append(self, compressed_length: int, raw_length: int) -> None:
        """Add the block that follows the last one. Raises CorruptBackup for lengths that no block can have."""
        end = self._packed[-1] + compressed_length
        possible = 1 <= raw_length <= MAX_RAW and 1 <= compressed_length <= max_packed(raw_length)
        if not possible or max(end, self._raw[-1] + raw_length) >= _MAX_OFFSET:
            raise CorruptBackup(
                f"an index lists a block of {compressed_length} bytes that holds {raw_length}"
            )
        # The raw array decides how many blocks there are, so it grows last: a reader in another thread
        # never sees half a block.
        self._packed.append(end)
        self._raw.append(self._raw[-1] + raw_length)

    def __len__(self) -> int:
        return len(self._raw) - 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"there is no block {number}")
        return (
            self._packed[number + 1] - self._packed[number],
            self._raw[number + 1] - self._raw[number],
        )

    @property
    def compressed_end(self) -> int:
        """The offset in the compressed stream where the next block would begin."""
        return self._packed[-1]

    @property
    def raw_size(self) -> int:
        """How many raw bytes all blocks hold."""
        return self._raw[-1]

    def compressed_offset(self, number: int) -> int:
        """Where a block begins in the compressed stream."""
        return self._packed[number]

    def raw_offset(self, number: int) -> int:
        """Where a block begins in the raw stream."""
        return self._raw[number]

    def find(self, raw_offset: int) -> int:
        """The number of the block that holds a raw offset, which must be at least 0 and below ``raw_size``."""
        return bisect_right(self._raw, raw_offset) - 1
