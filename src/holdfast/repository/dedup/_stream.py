"""Content that comes in pieces, read in the lengths that a cutter wants."""

from __future__ import annotations

from collections.abc import Generator, Iterator


class ByteStream:
    """Reads pieces without copying them, but for what lies across their seams.

    A piece need only be valid until the next one is asked for. What `take` and `peek` return is valid until the next
    call of any method.
    """

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        """A generator is sent memory that it may read the next piece into."""
        self._pieces = pieces
        self._send = pieces.send if isinstance(pieces, Generator) else None
        self._begun = False
        self._rest = memoryview(b"")
        self._seam = bytearray()
        self.at = 0
        """How many bytes were taken."""

    def take(self, length: int) -> memoryview:
        """The next `length` bytes; fewer only where the content ends."""
        if len(self._rest) >= length:
            taken, self._rest = self._rest[:length], self._rest[length:]
            self.at += length
            return taken
        if not self._rest and not self._pull():
            return self._rest
        if len(self._rest) >= length:
            return self.take(length)
        if len(self._seam) < length:
            self._seam = bytearray(length)
        buffer = memoryview(self._seam)[:length]
        return buffer[: self.readinto(buffer)]

    def readinto(self, buffer: memoryview) -> int:
        """Fills `buffer` with the next bytes, and returns how many: fewer than fit only where the content ends."""
        done = 0
        while done < len(buffer) and (self._rest or self._pull(buffer[done:])):
            count = min(len(self._rest), len(buffer) - done)
            if self._rest.obj is not buffer.obj:  # else it has been read to where it belongs
                buffer[done : done + count] = self._rest[:count]
            self._rest = self._rest[count:]
            done += count
        self.at += done
        return done

    def peek(self, length: int) -> memoryview:
        """What `take` would return, without taking it. For small lengths: what is missing is copied."""
        if len(self._rest) < length:
            joined = bytearray(self._rest)
            while len(joined) < length and self._pull():
                joined += self._rest
            self._rest = memoryview(joined)
        return self._rest[:length]

    def put_back(self, data: bytes) -> None:
        """Bytes that were taken last, to be taken again."""
        self._rest = memoryview(data + self._rest)
        self.at -= len(data)

    def _pull(self, memory: memoryview | None = None) -> bool:
        """Replaces what is left by the next piece that is not empty, read into `memory` if possible. False at the
        end."""
        try:
            while True:
                piece = self._send(memory) if self._send is not None and self._begun else next(self._pieces)
                self._begun = True
                if len(piece):
                    self._rest = memoryview(piece).cast("B")
                    return True
        except StopIteration:
            self._rest = memoryview(b"")
            return False
