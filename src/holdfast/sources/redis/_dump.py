"""The dump of one logical database at one moment, as an RDB file with nothing else in it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.clock import Clock, timestamp
from holdfast.errors import CorruptBackup, DatabaseError, SourceMissing
from holdfast.events import Emit, Warned
from holdfast.sources.redis._connection import BACKUP, Refused, Server, Session, select
from holdfast.sources.redis._pause import Impossible, dump_paused
from holdfast.sources.redis._rdb import Key, RdbReader, write_rdb
from holdfast.sources.redis._replica import ReplicaStream
from holdfast.text import harmless


@dataclass(frozen=True, slots=True)
class Moment:
    """Which moment of which server a dump is."""

    time: str
    """UTC, as `holdfast.clock` writes it."""
    database: int
    server_version: str
    """Empty where the user may not know it."""
    way: str
    """``replication`` or ``pause``."""
    replication_id: str | None
    offset: int | None
    """In what the server replicates; with its id, None where the user does not replicate."""
    rdb_version: int
    keys: int
    expires: int
    """Keys that expire."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def look(server: Server, session: Session) -> int:
    """How many keys there are. Raises SourceMissing for none, DatabaseError for a cluster, Refused, Lost."""
    if session.info("cluster").get("cluster_enabled") == "1":
        raise DatabaseError(
            f"{BACKUP} failed: {server} is a node of a Redis Cluster, and holds only a part of the keys",
            hint="Clusters are not supported: use the provider's own snapshots.",
        )
    try:
        keys = select(session, server.database)
    except Refused as error:
        if "out of range" in str(error):
            raise _missing(server) from error
        raise
    if keys == 0:
        raise _missing(server)
    return keys


def dump(
    server: Server, clock: Clock, emit: Emit, tell: Callable[[Moment], None]
) -> Generator[bytes, object, None]:
    """The dump, in pieces of 1 MiB at most. Its last byte comes once all is checked; then `tell` is called.

    Raises SourceMissing for a database without keys, DatabaseError, NoSpace and StorageError for a temporary file.
    """
    with _explained(server):
        with server.session() as session:
            look(server, session)
            version = _plain(session.info("server").get("redis_version", ""))
        with server.session() as session:
            try:
                stream = ReplicaStream(session)
            except Refused as error:
                if not error.is_denied:
                    raise
                why_not = str(error)
            else:
                yield from _replicated(server, stream, version, clock, emit, tell)
                return
        with server.session() as session:
            try:
                paused = dump_paused(server, session)
            except Impossible as error:
                raise DatabaseError(
                    f"{BACKUP} failed: {server} offers no way to a dump of one moment. "
                    f"As a replica: {why_not}. With writers paused: {error}",
                    hint="Give the user the commands psync and replconf, or client|pause and client|unpause.",
                ) from error
            time = timestamp(clock())
            with closing(paused.file):
                if not paused.keys:
                    raise _missing(server)
                _warn_of_functions(server, _functions(session), emit)
                session.close()
                yield from paused.pieces()
        tell(
            Moment(
                time,
                server.database,
                version,
                "pause",
                None,
                None,
                paused.version,
                paused.keys,
                paused.expires,
            )
        )


def _replicated(
    server: Server,
    stream: ReplicaStream,
    version: str,
    clock: Clock,
    emit: Emit,
    tell: Callable[[Moment], None],
) -> Generator[bytes, object, None]:
    time = timestamp(clock())
    pieces = stream.pieces()
    reader = RdbReader(pieces, server.database)
    keys = expires = 0

    def counted() -> Iterator[Key]:
        nonlocal keys, expires
        for key in reader.read_keys():
            keys += 1
            expires += key.expiry_ms is not None
            yield key
        if reader.rest or any(map(len, pieces)):
            raise CorruptBackup("it goes on behind its end")
        if not keys:
            raise _missing(server)

    reader.read_header()
    yield from write_rdb(reader.version, version, server.database, counted())
    _warn_of_functions(server, reader.functions, emit)
    if reader.module_data:
        emit(
            Warned(
                f"{server}: what {', '.join(sorted(reader.module_data)[:10])} keeps for the whole server "
                "is not in the backup"
            )
        )
    point = stream.point
    tell(
        Moment(
            time,
            server.database,
            version,
            "replication",
            point.replication_id,
            point.offset,
            reader.version,
            keys,
            expires,
        )
    )


@contextmanager
def _explained(server: Server) -> Iterator[None]:
    with server.explained(BACKUP, DatabaseError):
        try:
            yield
        except CorruptBackup as error:
            raise DatabaseError(f"{BACKUP} failed: what {server} sent cannot be kept: {error}") from error


def _functions(session: Session) -> int:
    try:
        return len(session.command("FUNCTION", "LIST"))
    except Refused:
        return 0


def _warn_of_functions(server: Server, count: int, emit: Emit) -> None:
    if count:
        emit(
            Warned(
                f"{server}: {count} function {'library' if count == 1 else 'libraries'} belong to the whole server, "
                "and are not in the backup: FUNCTION DUMP keeps them"
            )
        )


def _missing(server: Server) -> SourceMissing:
    return SourceMissing(
        f"{BACKUP} failed: {server} has no keys: there is nothing in it",
        hint="Was it flushed, or is it another one? Redis cannot tell an empty database from one never used.",
    )


def _plain(version: str) -> str:
    return harmless(version)[:40].encode("ascii", "replace").decode()
