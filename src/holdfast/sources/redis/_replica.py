"""The dump of a whole server as a replica gets it: https://redis.io/docs/latest/operate/oss_and_stack/management/replication/

The server forks, and its child writes an RDB file of that moment while the server goes on. Nothing is locked, and
nothing is written on the server's disk where it sends without one (``repl-diskless-sync``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.sources.redis._connection import Lost, Refused, Session
from holdfast.text import harmless

_LINE_LIMIT = 64 * 1024
_RECEIVE_BYTES = 256 * 1024
_MARK_BYTES = 40
_FULL = re.compile(rb"FULLRESYNC ([0-9a-f]{40}) (\d{1,19})")


@dataclass(frozen=True, slots=True)
class ReplicationPoint:
    """A moment in what a server replicates."""

    replication_id: str
    offset: int


class ReplicaStream:
    """What a session receives once it asked to be a replica."""

    def __init__(self, session: Session) -> None:
        """Begins it. Raises Refused, with `Refused.is_denied` where this user or server does not replicate; Lost."""
        session.command("REPLCONF", "capa", "eof", "capa", "psync2")
        session.send([("PSYNC", "?", "-1")])
        self._socket = session.socket
        self._buffer = b""
        answer = self._line()
        found = _FULL.fullmatch(answer[1:])
        if answer[:1] == b"-":
            raise _refusal(answer[1:])
        if answer[:1] != b"+" or not found:
            raise Lost("it does not answer PSYNC as Redis does")
        self.point = ReplicationPoint(found[1].decode(), int(found[2]))

    def pieces(self) -> Iterator[bytes]:
        """The RDB file, as it comes. Raises Refused, Lost."""
        head = self._line()
        if head[:1] == b"-":
            raise _refusal(head[1:])
        if head[:5] == b"$EOF:" and len(head) == 5 + _MARK_BYTES:
            yield from self._marked(head[5:])
        elif head[:1] == b"$" and head[1:].isdigit() and len(head) < 20:
            yield from self._counted(int(head[1:]))
        else:
            raise Lost("it does not send a dump as Redis does")

    def _marked(self, mark: bytes) -> Iterator[bytes]:
        # Nothing follows the mark until a replica has answered it.
        held = self._buffer
        while not held.endswith(mark):
            yield held[:-_MARK_BYTES]
            held = held[-_MARK_BYTES:] + self._receive()
        yield held[:-_MARK_BYTES]

    def _counted(self, length: int) -> Iterator[bytes]:
        piece = self._buffer[:length]
        while True:
            length -= len(piece)
            yield piece
            if not length:
                return
            piece = self._receive(length)

    def _line(self) -> bytes:
        # While its child is not ready the server sends empty lines, so that nobody gives up.
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                line = line.removesuffix(b"\r")
                if line:
                    return line
            elif len(line) > _LINE_LIMIT:
                raise Lost("it does not answer as Redis does")
            else:
                self._buffer += self._receive()

    def _receive(self, limit: int = _RECEIVE_BYTES) -> bytes:
        try:
            data = self._socket.recv(min(limit, _RECEIVE_BYTES))
        except TimeoutError:
            raise Lost("it fell silent in the middle of the dump") from None
        except OSError as error:
            raise Lost(f"the connection broke: {error.strerror}") from None
        if not data:
            raise Lost("it closed the connection in the middle of the dump")
        return data


def _refusal(answer: bytes) -> Refused:
    text = harmless(answer.decode("utf-8", "replace")).partition(", with args")[0]
    word, _, rest = text.partition(" ")
    if word == "ERR":
        return Refused("UNKNOWN" if rest.lower().startswith("unknown command") else "", rest)
    return Refused(word, rest)
