"""Reads a gzip file: at any offset with an index of its blocks, or from front to back without one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from isal import isal_zlib

from holdfast.errors import CorruptBackup
from holdfast.repository.archive._gzip_block import RAW_DEFLATE, InflateError, unpack
from holdfast.repository.archive._gzip_index import BlockIndex
from holdfast.repository.archive._gzip_writer import available_cores
from holdfast.streams import RandomAccess

_READ_SIZE = 1 << 20
_STEP = 64 << 10
_OUTPUT_SIZE = 1 << 20
_GZIP = 31  # how zlib's interface asks for a gzip header and a checked gzip trailer
_TRAILER_SIZE = 8


class GzipReader:
    """The raw stream of indexed blocks, at any offset.

    While reads move forward, ``threads`` threads read and inflate the blocks that come next. At most
    ``2 * threads + 2`` blocks are in memory. Checks that each block is sound deflate of the declared length, but no
    checksum: the manifest's digests do that. ``name`` is what errors call the file. For one calling thread.
    """

    def __init__(
        self,
        source: RandomAccess,
        blocks: BlockIndex,
        *,
        threads: int | None = None,
        name: str = "the archive",
    ) -> None:
        threads = threads or available_cores()
        self._source = source
        self._blocks = blocks
        self._name = name
        self._ahead = threads + 1
        self._capacity = 2 * threads + 2
        self._cache: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="gzip-inflate")
        self._number = -1  # the block that was asked for last, where it begins, and what it holds
        self._start = 0
        self._data = b""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` raw bytes from ``offset``; fewer only where the end comes first.

        Raises CorruptBackup for a damaged or truncated block.
        """
        begin = offset - self._start
        end = begin + length
        if 0 <= begin <= end <= len(self._data):
            return self._data[begin:end]
        return b"".join(self._pieces(offset, length, len(self._blocks)))

    def iter_at(self, offset: int, length: int) -> Iterator[memoryview]:
        """Give the raw bytes of a range, which may be large, piece by piece and without copying them.

        Raises CorruptBackup for a damaged or truncated block.
        """
        last = self._blocks.find(min(offset + length, self._blocks.raw_size) - 1)
        return self._pieces(offset, length, last + 1, sequential=True)

    def close(self) -> None:
        """End the threads and forget what is in memory. ``source`` stays open."""
        self._pool.shutdown(cancel_futures=True)
        self._cache.clear()
        self._number, self._start, self._data = -1, 0, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(
        self, offset: int, length: int, stop: int, *, sequential: bool = False
    ) -> Iterator[memoryview]:
        """Give a range block by block, reading ahead up to the block ``stop``."""
        if offset < 0 or length < 0:
            raise ValueError("an offset or a length is negative")
        end = min(offset + length, self._blocks.raw_size)
        while offset < end:
            number = self._blocks.find(offset)
            data = self._block(number, stop, sequential=sequential)
            start = self._blocks.raw_offset(number)
            piece = memoryview(data)[offset - start : end - start]
            offset += len(piece)
            yield piece

    def _block(self, number: int, stop: int, *, sequential: bool) -> bytes:
        if number == self._number:
            return self._data
        ahead = self._ahead if sequential or number == self._number + 1 else 0
        for wanted in range(number, min(stop, number + 1 + ahead)):
            if wanted not in self._cache:
                self._cache[wanted] = self._pool.submit(self._load, wanted)
            self._cache.move_to_end(wanted)
        self._cache.move_to_end(number)
        while len(self._cache) > self._capacity:
            _, oldest = self._cache.popitem(last=False)
            oldest.cancel()
        data = self._cache[number].result()
        self._number, self._start, self._data = number, self._blocks.raw_offset(number), data
        return data

    def _load(self, number: int) -> bytes:
        compressed_length, raw_length = self._blocks[number]
        offset = self._blocks.compressed_offset(number)
        data = self._source.read_at(offset, compressed_length)
        if len(data) != compressed_length:
            raise CorruptBackup(f"{self._name} is truncated: it ends inside the block at {offset}")
        try:
            return unpack(data, raw_length)
        except CorruptBackup as error:
            raise CorruptBackup(f"{self._name}, at {offset}: {error}") from error


def stream(source: RandomAccess, compressed_offset: int = 0, *, name: str = "the archive") -> Iterator[bytes]:
    """Inflate from the start of a block, or from the gzip header at 0, to the end, in pieces of at most 1 MiB.

    Needs no index. At 0 it reads gzip files that others made, too, of several members or padded with zeros, and
    checks each member's CRC-32 and length; elsewhere it cannot. Raises CorruptBackup for damage and truncation.
    ``name`` is what errors call the file.
    """
    compressed = _Input(source, compressed_offset, name)
    if compressed_offset:
        yield from _member(compressed, RAW_DEFLATE)
        for _ in range(_TRAILER_SIZE):
            if not compressed.take(1):
                raise compressed.damaged("it is truncated")
    else:
        yield from _member(compressed, _GZIP)
    while compressed.skip_zeros():
        yield from _member(compressed, _GZIP)


def _member(compressed: _Input, wbits: int) -> Iterator[bytes]:
    inflater = isal_zlib.decompressobj(wbits=wbits)
    data = raw = b""
    while not inflater.eof:
        # A full piece of output can leave some of it waiting inside, with no input left over to show for it.
        if not data and len(raw) < _OUTPUT_SIZE:
            data = compressed.take(_STEP)
            if not data:
                raise compressed.damaged("it is truncated")
        try:
            raw = inflater.decompress(data, _OUTPUT_SIZE)
        except InflateError as error:
            raise compressed.damaged(str(error)) from error
        data = inflater.unconsumed_tail
        if raw:
            yield raw
    compressed.give_back(len(inflater.unused_data))


class _Input:
    """Compressed bytes from an offset on, taken in small steps from large reads."""

    def __init__(self, source: RandomAccess, offset: int, name: str) -> None:
        self._source = source
        self._name = name
        self._end = offset
        self._chunk = b""
        self._position = 0

    def take(self, limit: int) -> bytes:
        """The next bytes, at most ``limit``; none at the end."""
        if self._position == len(self._chunk):
            self._chunk = self._source.read_at(self._end, _READ_SIZE)
            self._end += len(self._chunk)
            self._position = 0
        taken = self._chunk[self._position : self._position + limit]
        self._position += len(taken)
        return taken

    def give_back(self, count: int) -> None:
        """Un-take some of the bytes that the last call of ``take`` gave."""
        self._position -= count

    def skip_zeros(self) -> bool:
        """Pass over zeros. Says whether anything follows them."""
        while data := self.take(_STEP):
            if rest := data.lstrip(b"\0"):
                self.give_back(len(rest))
                return True
        return False

    def damaged(self, how: str) -> CorruptBackup:
        return CorruptBackup(
            f"{self._name} is damaged before {self._end - len(self._chunk) + self._position}: {how}"
        )
