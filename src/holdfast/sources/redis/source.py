"""Redis: one logical database, dumped as a replica sees it, restored beside the live one and exchanged with it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, ClassVar

from holdfast.clock import Clock
from holdfast.errors import DatabaseError
from holdfast.events import Emit
from holdfast.model import Component, Entry, Finding, SourceRecord
from holdfast.sources.base import Content, Method, Pieces
from holdfast.sources.redis._check import check
from holdfast.sources.redis._connection import BACKUP, Server
from holdfast.sources.redis._dump import Moment, dump, look
from holdfast.sources.redis._restore import RedisTarget
from holdfast.sources.redis._swap import KIND, RedisSwap, RedisSwaps

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["RedisSource", "RedisSwap", "RedisSwaps", "RedisTarget"]


class RedisSource:
    """One logical database. Implements `holdfast.sources.base.Source`.

    `timeout` is in seconds: so long each answer is waited for, and so long writers wait where nobody may replicate.
    A database without keys is missing: Redis cannot tell one that was flushed from one that never was.
    """

    method: ClassVar[Method] = Method.LOGICAL_DUMP

    def __init__(self, name: str, url: URL, *, timeout: float, clock: Clock) -> None:
        """Raises ConfigError for a URL that names no logical database."""
        self.component: Component = "database"
        self.name = name
        self.tolerates_change = False
        self._server = Server(url, timeout)
        self._clock = clock
        self._moment: Moment | None = None

    def record(self) -> SourceRecord:
        """Its moment is known once the dump was read to its end: see `holdfast.sources.redis._dump.Moment`."""
        moment = {} if self._moment is None else self._moment.to_json()
        return SourceRecord(self.component, self.name, KIND, moment=moment)

    def check(self) -> Iterator[Finding]:
        """See `Source.check`. Dumps nothing."""
        return check(f"{self.component} {self.name}", self._server)

    def scan(self, emit: Emit) -> Iterator[RedisItem]:
        """See `Source.scan`. Connects, and raises SourceMissing for a database without keys, DatabaseError."""
        self._moment = None
        self._look()
        entry = Entry(
            path=f"database/{self.name}.dump",
            kind="file",
            mode=0o600,
            mtime_ns=int(self._clock().timestamp() * 1_000_000_000),
            racy=True,
        )
        yield RedisItem(entry, self, emit)

    def _look(self) -> None:
        with self._server.explained(BACKUP, DatabaseError), self._server.session() as session:
            look(self._server, session)

    def _open(self, emit: Emit) -> Pieces:
        self._look()
        return _stream(dump(self._server, self._clock, emit, self._remember))

    def _remember(self, moment: Moment) -> None:
        self._moment = moment


class RedisItem:
    """The one dump of a database."""

    def __init__(self, entry: Entry, source: RedisSource, emit: Emit) -> None:
        self.entry = entry
        self._source = source
        self._emit = emit

    def open(self, *, settle: bool = False) -> tuple[Entry, Content | None]:
        """See `Item.open`. Its size is known at the end. There is nothing to settle for: a dump is one moment."""
        return self.entry, Content(None, stream=self._source._open(self._emit))


def _stream(pieces: Generator[bytes, object, None]) -> Pieces:
    yield from pieces
