"""Large files, cut into chunks by their content, so that an incremental carries only what its parent lacks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO

from pyfastcdc import FastCDC

from holdfast.durable import temp_directory
from holdfast.errors import ConfigError
from holdfast.repository._manifest import CHUNKS_PER_LINE, Part, part_line

Pieces = Iterator["bytes | memoryview"]

# One changed page costs one chunk: small enough for that, large enough that the list of chunks stays under a
# thousandth of what it lists.
_AVERAGE_CHUNK = 32 << 10
_SPOOL = 1 << 20

if "cy" not in FastCDC.__module__:
    raise ConfigError(
        "pyfastcdc runs without its compiled part, forty times slower",
        hint="Reinstall pyfastcdc from a wheel, or with a C compiler at hand.",
    )


def chunks(pieces: Pieces) -> Iterator[memoryview]:
    """Cuts a stream where its content says so (FastCDC), into chunks of 8 to 64 KiB, some 32 KiB on average.

    A chunk is valid until the next one is asked for.
    """
    cutter = FastCDC(_AVERAGE_CHUNK, min_size=_AVERAGE_CHUNK // 4, max_size=_AVERAGE_CHUNK * 2)
    for chunk in cutter.cut_stream(_Reader(pieces)):
        yield chunk.data


class _Reader:
    """Pieces as the file that the chunker wants to read."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            count = min(len(self._rest), len(buffer) - done)
            buffer[done : done + count] = self._rest[:count]
            self._rest = self._rest[count:]
            done += count
        return done


class PartsWriter:
    """The part lines of one file, gathered until its own line is written. Spills to disk."""

    def __init__(self) -> None:
        self.lines = 0
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by `close`
            max_size=_SPOOL, mode="w+b", dir=str(temp_directory())
        )
        self._copy: tuple[int, int] | None = None
        self._data: tuple[int, int, list[tuple[int, str]]] | None = None

    def data(self, offset: int, length: int, digest: str) -> None:
        """A chunk that lies at `offset` of this archive's tar."""
        self._end_copy()
        if self._data is not None:
            start, end, listed = self._data
            if end == offset and len(listed) < CHUNKS_PER_LINE:
                listed.append((length, digest))
                self._data = start, offset + length, listed
                return
            self._end_data()
        self._data = offset, offset + length, [(length, digest)]

    def copy(self, offset: int, length: int) -> None:
        """A chunk that lies at `offset` of the parent's version of the file."""
        self._end_data()
        if self._copy is not None and sum(self._copy) == offset:
            self._copy = self._copy[0], self._copy[1] + length
            return
        self._end_copy()
        self._copy = offset, length

    def drain(self) -> Iterator[bytes]:
        """All lines, once."""
        self._spool.seek(0)
        yield from self._spool

    def close(self) -> None:
        self._spool.close()

    def finish(self) -> int:
        """Ends the last line, and returns how many there are."""
        self._end_copy()
        self._end_data()
        return self.lines

    def _end_copy(self) -> None:
        if self._copy is not None:
            self._spool.write(part_line(Part(True, *self._copy, [])))
            self.lines += 1
            self._copy = None

    def _end_data(self) -> None:
        if self._data is not None:
            start, end, listed = self._data
            self._spool.write(part_line(Part(False, start, end - start, listed)))
            self.lines += 1
            self._data = None
