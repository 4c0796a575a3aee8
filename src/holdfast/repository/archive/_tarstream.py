"""A tar read from front to back, member by member, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from holdfast.errors import CorruptBackup
from holdfast.repository.archive import _tar as tar

_PAX_LIMIT = 1 << 20
_END_LIMIT = 64 << 10


class TarStream:
    """Members one after the other. Raises CorruptBackup where the stream ends early or is no tar of ours."""

    def __init__(self, pieces: Iterator[bytes | memoryview], *, name: str = "the archive") -> None:
        """`name` is what errors call it."""
        self.position = 0
        """Bytes of the tar consumed so far: after `advance`, where the member's content begins."""
        self._pieces = pieces
        self._name = name
        self._rest = memoryview(b"")
        self._unread = 0
        self._pad = 0

    def advance(self) -> tar.Member | None:
        """The next member, None at the end. What is unread of the last one is passed over."""
        for _ in self.content():
            pass
        self._skip(self._pad)
        self._pad = 0
        try:
            member = self._parse()
        except CorruptBackup as error:
            raise CorruptBackup(f"{self._name} is no tar of ours: {error}") from error
        if member is not None and member.kind == "file":
            self._unread = member.size
            self._pad = len(tar.padding(member.size))
        return member

    def _parse(self) -> tar.Member | None:
        block = self._exactly(tar.BLOCK)
        if block[156:157] == b"x":
            length = tar.number(block[124:136])
            if length > _PAX_LIMIT:
                raise CorruptBackup("a pax header is absurdly long")
            block += self._exactly(length + len(tar.padding(length)) + tar.BLOCK)
        return tar.parse(block)

    def finish(self) -> None:
        """Nothing but the end of the tar may follow. Raises CorruptBackup."""
        beyond = self.advance() is not None
        size = 0
        for piece in chain((self._rest,), self._pieces):
            size += len(piece)
            if beyond or size > _END_LIMIT or bytes(piece).strip(b"\0"):
                raise CorruptBackup(f"{self._name} holds something after its manifest")

    def at_end(self, end: int) -> bool:
        """Whether the rest of the last member reaches to `end`, a position in the tar."""
        return self.position + self._unread + self._pad == end

    def content(self) -> Iterator[memoryview]:
        """The rest of the member's content. A piece is valid until the next one is asked for."""
        while self._unread:
            piece = self._some(self._unread)
            self._unread -= len(piece)
            yield piece

    def _exactly(self, count: int) -> bytes:
        first = self._some(count)
        if len(first) == count:
            return bytes(first)
        taken = bytearray(first)
        while len(taken) < count:
            taken += self._some(count - len(taken))
        return bytes(taken)

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._some(count))

    def _some(self, limit: int) -> memoryview:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                raise CorruptBackup(f"{self._name} ends in the middle")
            self._rest = memoryview(piece)
        taken = self._rest[:limit]
        self._rest = self._rest[limit:]
        self.position += len(taken)
        return taken
