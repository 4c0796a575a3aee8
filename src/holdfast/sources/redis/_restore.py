"""Where a dump goes back to: a spare logical database, which then changes places with the live one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.durable import temp_directory
from holdfast.errors import CorruptBackup, RestoreError
from holdfast.events import Emit, Noted
from holdfast.model import Entry
from holdfast.sources.base import Read, Staging
from holdfast.sources.redis._connection import RESTORE, Server, Session, select
from holdfast.sources.redis._load import load, server_rdb_version, spares
from holdfast.sources.redis._rdb import RdbReader
from holdfast.sources.redis._swap import RedisSwap
from holdfast.text import harmless
from holdfast.transaction import Swap

if TYPE_CHECKING:
    from sqlalchemy import URL


class RedisTarget:
    """The logical database that a dump goes back to. Implements `holdfast.sources.base.Restorable`.

    `moment` is what the backup remembers of the dump. `timeout` is in seconds: so long each answer is waited for.
    """

    def __init__(self, url: URL, moment: dict[str, Any], *, timeout: float) -> None:
        """Raises ConfigError for a URL that names no logical database."""
        self._server = Server(url, timeout)
        self._url = url
        version = moment.get("server_version")
        self._from = harmless(version)[:40] if isinstance(version, str) and version else "unknown"

    def needs(self, total_bytes: int) -> dict[Path, int]:
        """What a restore takes is memory of the server, which cannot be seen from here: it refuses where it has no
        more. Here nothing is written; the directory for temporary files stands for it, which asks too much, never
        too little."""
        return {temp_directory(): total_bytes}

    def stage(self, entries: Iterator[Entry], read: Read, staging: Staging, emit: Emit) -> list[Swap]:
        """See `Restorable.stage`. Raises CorruptBackup when what the backup has is not one sound dump, RestoreError
        when the server cannot take it or has no empty logical database, NoSpace."""
        entry = next(entries, None)
        if entry is None or entry.kind != "file" or next(entries, None) is not None:
            raise CorruptBackup("a Redis database in a backup is one dump, and here it is not")
        server = self._server
        with server.explained(RESTORE, RestoreError), server.session() as session:
            self._look(session)
            swap = self._claim(session, staging)
            pieces = read(entry)
            reader = RdbReader(pieces)
            reader.read_header()
            self._compare_versions(session, reader, swap.marker)
            loaded = load(session, server, reader)
            # The reader of the backup tells only at its end that all was as it should be.
            if reader.rest or any(map(len, pieces)):
                raise CorruptBackup(f"{entry.path} goes on behind the end of the dump")
            if reader.functions or reader.module_data:
                raise CorruptBackup(f"{entry.path} holds what belongs to a whole server")
            present = int(session.command("DBSIZE")) - 1
        if present < loaded.keys:
            emit(
                Noted(
                    f"{loaded.keys - present} of {loaded.keys} keys of {server} have expired since the backup"
                )
            )
        return [swap]

    def _look(self, session: Session) -> None:
        if session.info("cluster").get("cluster_enabled") == "1":
            raise RestoreError(
                f"{RESTORE} failed: {self._server} is a node of a Redis Cluster, which has only database 0",
                hint="Restore to a server that is no cluster.",
            )
        select(session, self._server.database)

    def _claim(self, session: Session, staging: Staging) -> RedisSwap:
        server = self._server
        for spare in spares(session, server.database):
            swap = RedisSwap(
                lambda: [self._url],
                server.address,
                live=server.database,
                spare=spare,
                run=staging.run,
                timeout=server.timeout,
            )
            staging.register(swap)
            session.command("SELECT", spare)
            _, keys = session.atomically(("SET", swap.marker, "being restored", "NX"), ("DBSIZE",))
            if keys == 1:
                return swap
            session.command("DEL", swap.marker)  # somebody else wrote to it first
        raise RestoreError(
            f"{RESTORE} failed: {server} has no empty logical database in which a restore could be made ready",
            hint="Raise `databases` in redis.conf, or empty one that is not used. "
            "`holdfast undo --discard` gives back what the last restore keeps.",
        )

    def _compare_versions(self, session: Session, reader: RdbReader, marker: str) -> None:
        known = server_rdb_version(session, marker)
        if known is not None and reader.version > known:
            version = session.info("server").get("redis_version", "unknown")
            raise RestoreError(
                f"{RESTORE} failed: the dump is of Redis {self._from} (RDB version {reader.version}), and "
                f"{self._server} is Redis {harmless(version)[:40]} (RDB version {known}), which cannot read it",
                hint="Restore to a server of that version or later.",
            )
