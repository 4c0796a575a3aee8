"""PostgreSQL databases: dumped by pg_dump in one snapshot, restored into a scratch database that takes the name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from holdfast.clock import Clock
from holdfast.events import Emit
from holdfast.model import Component, Entry, Finding, SourceRecord
from holdfast.sources.base import Content, Method
from holdfast.sources.postgres._check import check
from holdfast.sources.postgres._connection import BACKUP, Server
from holdfast.sources.postgres._dump import open_dump
from holdfast.sources.postgres._moment import Moment
from holdfast.sources.postgres._restore import PostgresTarget
from holdfast.sources.postgres._swap import PostgresSwap, PostgresSwaps

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["PostgresSource", "PostgresSwap", "PostgresSwaps", "PostgresTarget"]


class PostgresSource:
    """One database of a server. Implements `holdfast.sources.base.Source`.

    `timeout` is in seconds: so long connecting, and each lock, is waited for.
    """

    method: ClassVar[Method] = Method.LOGICAL_DUMP

    def __init__(self, name: str, url: URL, *, timeout: float, clock: Clock) -> None:
        """Raises ConfigError for a URL with options that PostgreSQL does not know."""
        self.component: Component = "database"
        self.name = name
        self.tolerates_change = False
        self._server = Server(url, timeout)
        self._clock = clock
        self._moment: Moment | None = None

    def record(self) -> SourceRecord:
        """Its moment is known once the dump was read to its end: see `holdfast.sources.postgres._moment`."""
        moment = {} if self._moment is None else self._moment.to_json()
        return SourceRecord(self.component, self.name, "postgresql", moment=moment)

    def check(self) -> Iterator[Finding]:
        """See `Source.check`. Dumps nothing."""
        return check(f"{self.component} {self.name}", self._server)

    def scan(self, emit: Emit) -> Iterator[PostgresItem]:
        """See `Source.scan`. Connects, and raises SourceMissing or DatabaseError where that fails."""
        self._moment = None
        with self._server.session(BACKUP):
            pass
        entry = Entry(
            path=f"database/{self.name}.dump",
            kind="file",
            mode=0o600,
            mtime_ns=int(self._clock().timestamp() * 1_000_000_000),
            racy=True,  # what it holds cannot be told without reading it
        )
        yield PostgresItem(entry, self)

    def _open(self) -> Content:
        self._moment = None
        return Content(None, stream=open_dump(self._server, self._remember))

    def _remember(self, moment: Moment) -> None:
        self._moment = moment


class PostgresItem:
    """The one entry of a database."""

    def __init__(self, entry: Entry, source: PostgresSource) -> None:
        self.entry = entry
        self._source = source

    def open(self, *, settle: bool = False) -> tuple[Entry, Content | None]:
        """See `Item.open`. There is nothing to settle for: a snapshot is one moment."""
        return self.entry, self._source._open()
