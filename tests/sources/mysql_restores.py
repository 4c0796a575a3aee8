"""Backups and restores of a database, as tests make them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import URL

from conformance.places import Places
from conformance.source import drain
from holdfast.events import Emit, ignore
from holdfast.model import Entry
from holdfast.sources.base import Read
from holdfast.sources.mysql import MySqlSource, MySqlSwap, MySqlTarget
from holdfast.transaction import Swap


def long_after() -> datetime:
    return datetime(2100, 1, 1, tzinfo=UTC)


@dataclass
class Backup:
    """A dump, and what is remembered of it."""

    entry: Entry
    content: bytes
    moment: dict[str, Any]

    def read(self, entry: Entry) -> Iterator[bytes]:
        """In small pieces."""
        for start in range(0, len(self.content), 10_000):
            yield self.content[start : start + 10_000]


def back_up(url: URL, emit: Emit = ignore) -> Backup:
    source = MySqlSource("main", url, timeout=5, clock=long_after)
    (item,) = source.scan(emit)
    entry, content = item.open()
    assert content is not None
    data = drain(content)
    return Backup(entry, data, source.record().moment)


def stage(
    backup: Backup,
    url: URL,
    *,
    places: Places | None = None,
    create_database: bool = False,
    emit: Emit = ignore,
    read: Read | None = None,
    timeout: float = 5,
) -> MySqlSwap:
    target = MySqlTarget(url, backup.moment, timeout=timeout, create_database=create_database)
    (swap,) = target.stage(iter([backup.entry]), read or backup.read, places or Places(), emit)
    assert isinstance(swap, MySqlSwap)
    return swap


@contextlib.contextmanager
def discarded(places: Places) -> Iterator[Places]:
    """Removes in the end what was registered."""
    try:
        yield places
    finally:
        swap: Swap
        for swap in places.registered:
            swap.discard()
