"""A dump of a PostgreSQL database as of one moment, streamed.

A session of ours exports its snapshot (https://www.postgresql.org/docs/current/functions-admin.html,
pg_export_snapshot), pg_dump reads in it, and meanwhile the same session counts the rows that the dump must have.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing

from holdfast.errors import DatabaseError
from holdfast.sources.base import Pieces
from holdfast.sources.postgres._connection import (
    BACKUP,
    Client,
    Server,
    Session,
    check_dump_client,
    milliseconds,
    sql,
)
from holdfast.sources.postgres._moment import Moment, Rows, count, properties_of, roles_of, tables

FORMAT = ("--format=custom", "--compress=0")
_STARTS = 3
"""So often it begins afresh because a table went away before it was locked."""


def open_dump(server: Server, remember: Callable[[Moment], None]) -> Pieces:
    """The dump, in pieces: a generator that has begun, so closing it frees everything.

    The snapshot is taken before this returns. `remember` is told the moment after the last piece. Raises
    SourceMissing, DatabaseError, DatabaseBusy, ConfigError; DatabaseError in place of the end where it broke off.
    """
    stream = _dump(server, remember)
    next(stream)
    return stream


def _dump(server: Server, remember: Callable[[Moment], None]) -> Pieces:
    with ExitStack() as stack:
        client = Client.find("pg_dump", BACKUP)
        session = stack.enter_context(server.session(BACKUP))
        check_dump_client(client, session)
        counted = _hold(session)
        snapshot = str(session.run("SELECT pg_export_snapshot()")[0][0])
        lsn = str(session.run(_LSN)[0][0])
        roles = roles_of(session)
        properties = properties_of(session)
        pool = stack.enter_context(ThreadPoolExecutor(1, "row counts"))
        yield b""
        rows = pool.submit(_count, session, counted)
        stack.callback(_cancel, session, rows)
        program = server.program(
            [
                client.path,
                *FORMAT,
                f"--snapshot={snapshot}",
                f"--lock-wait-timeout={milliseconds(server.timeout)}",
            ],
            BACKUP,
            session,
        )
        with closing(program.output()) as pieces:
            yield from pieces
        moment = Moment(
            server=session.version,
            major=session.major,
            client=client.major,
            snapshot=snapshot,
            lsn=lsn,
            rows=rows.result(),
            roles=roles,
            database=properties,
        )
        session.run("COMMIT")
    remember(moment)


_LSN = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text
"""


def _hold(session: Session) -> list[tuple[str, str]]:
    """Opens the transaction whose snapshot is the moment, and returns the tables to count.

    They are locked before there is a snapshot, as pg_dump will lock them: for a TRUNCATE does not heed snapshots
    (https://www.postgresql.org/docs/current/mvcc-caveats.html), and one in between would make the counts wrong.
    """
    for attempt in range(1, _STARTS + 1):
        found = tables(session)
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        session.run("SET LOCAL row_security = off")
        try:
            for start in range(0, len(found), 100):
                names = [sql.SQL("ONLY {}").format(sql.Identifier(schema, name))
                         for _, schema, name in found[start : start + 100]]  # fmt: skip
                session.run(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(", ").join(names)))
        except DatabaseError:
            session.run("ROLLBACK")
            # One of them may have been dropped since they were listed.
            if attempt == _STARTS or tables(session) == found:
                raise
        else:
            still_there = {table for table, _, _ in tables(session)}
            return [(schema, name) for table, schema, name in found if table in still_there]
    raise AssertionError("unreachable")


def _count(session: Session, counted: list[tuple[str, str]]) -> Rows:
    rows: Rows = {}
    for schema, name in counted:
        rows.setdefault(schema, {})[name] = count(session, schema, name)
    return rows


def _cancel(session: Session, rows: Future[Rows]) -> None:
    # A connection must not be closed while another thread uses it.
    while not rows.done():
        session.cancel()
        try:
            rows.exception(timeout=0.05)
        except TimeoutError:
            continue
