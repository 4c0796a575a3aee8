"""The two shapes of bytes that layers hand to one another."""

from __future__ import annotations

from typing import Protocol


class RandomAccess(Protocol):
    """Bytes that can be read at any offset, by several threads at once."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only where the end comes first."""
        ...


class Sink(Protocol):
    """What a stream is written to, by one thread at a time, not always the same."""

    def write(self, data: bytes, /) -> int | None:
        """Takes some of `data` and returns how many bytes; None means all of them."""
        ...
