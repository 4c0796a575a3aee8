"""A restored PostgreSQL database takes the name of the live one, and gives it back.

Both renames are one transaction of the server's, so there is never a moment without a database or with two, and a
process that dies leaves the one state or the other. Which, shows in the names: a database keeps its OID when it is
renamed, and the journal has both OIDs. A state that is not live is called ``<name>__holdfast_<run>_<number>``, the
restored one has number 0 (left out), what it replaced 1, and so on as undo goes back and forth.

A database can only be renamed while nobody is connected to it, so connections are refused and ended first. What is
not live goes on refusing them: nobody writes to it by mistake, and pg_dumpall passes it over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import DatabaseBusy, NothingToUndo, RestoreError
from holdfast.sources._server import Address, Urls
from holdfast.sources.postgres._connection import (
    RESTORE,
    Server,
    Session,
    database_id,
    end_run,
    identifier,
    side_name,
    sql,
)
from holdfast.sources.postgres._in_place import InPlaceSwap
from holdfast.transaction import Swap

if TYPE_CHECKING:
    from sqlalchemy import URL

_RUN = re.compile(r"[0-9a-f]{16}")
_STEPS = 1_000_000
_PAUSE = 0.05

_END_SESSIONS = """
SELECT count(pg_terminate_backend(a.pid))
FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
WHERE a.datname = ANY(%s) AND a.pid <> pg_backend_pid()
  AND ((SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
       OR NOT r.rolsuper AND (pg_has_role(r.oid, 'MEMBER') OR pg_has_role('pg_signal_backend', 'MEMBER')))
"""
_USERS = """
SELECT usename::text, count(*)::int FROM pg_stat_activity
WHERE datname = ANY(%s) AND pid <> pg_backend_pid() AND usename IS NOT NULL GROUP BY 1
UNION ALL
SELECT 'prepared transaction of ' || owner, count(*)::int FROM pg_prepared_xacts WHERE database = ANY(%s) GROUP BY 1
ORDER BY 1 LIMIT 10
"""
"""Who keeps databases from being renamed. The server itself ends what cleans up."""


class PostgresSwap:
    """A restored database for a live one. Implements `holdfast.transaction.Swap`.

    `coming` and `live` are OIDs: what takes the name, and what has it until then; None where there is none. `step` is
    the number of what is coming. Sessions are given the server's timeout to end. Raises DatabaseBusy, DatabaseError,
    RestoreError; whatever was raised, `revert` puts right.
    """

    kind: ClassVar[str] = "postgresql"

    def __init__(
        self, where: Where, run: str, *, step: int = 0, coming: int | None, live: int | None
    ) -> None:
        self._where = where
        self._run = run
        self._step = step
        self._coming = coming
        self._live = live
        self.note = ""
        """Whose connections were ended."""

    def to_journal(self) -> dict[str, Any]:
        return {
            "mode": "rename",
            "address": self._where.address.to_journal(),
            "run": self._run,
            "step": self._step,
            "coming": self._coming,
            "live": self._live,
        }

    def apply(self) -> None:
        """See `Swap.apply`. Refuses where somebody has made the live database anew since it was looked at."""
        name, coming = self._name, self._side(self._step)
        with self._maintenance() as session:
            if self._coming is not None and database_id(session, coming) != self._coming:
                kind = NothingToUndo if self._step else RestoreError
                raise kind(
                    f"{RESTORE}: {coming} is gone, which was to take the place of {self._where.address}"
                )
            if database_id(session, name) != self._live:
                raise RestoreError(
                    f"{RESTORE}: {self._where.address} is not the database any more that was there before: "
                    "somebody has created, dropped or renamed it",
                    hint="Find out who. Then restore again.",
                )
            renames = [] if self._live is None else [(name, self._side(self._step + 1))]
            renames += [] if self._coming is None else [(coming, name)]
            self._switch(session, renames)

    def revert(self) -> None:
        """See `Swap.revert`. What others wrote after `apply` goes with the restored state."""
        name, coming, kept = self._name, self._side(self._step), self._side(self._step + 1)
        with self._maintenance() as session:
            now = database_id(session, name)
            if self._live is not None and database_id(session, kept) == self._live:
                if now not in (None, self._coming):
                    raise RestoreError(
                        f"{RESTORE}: somebody has made {self._where.address} anew; what was there before the restore "
                        f"is kept as {kept}",
                        hint=f"Rename or drop the new {name}, then run `holdfast recover`.",
                    )
                self._switch(session, [*([] if now is None else [(name, coming)]), (kept, name)])
            elif self._live is None and self._coming is not None and now == self._coming:
                self._switch(session, [(name, coming)])
            elif now == self._live:
                _allow(session, name)
            elif now == self._coming:
                raise RestoreError(f"{RESTORE}: {kept} is gone, which was {self._where.address} before")

    def reversed(self) -> PostgresSwap:
        return PostgresSwap(self._where, self._run, step=self._step + 1, coming=self._live, live=self._coming)

    def settle(self) -> None:
        """See `Swap.settle`. There is nothing to free."""

    def discard(self) -> None:
        """See `Swap.discard`. Drops every state that is not live."""
        with self._maintenance() as session:
            for number in range(self._step + 2):
                drop_database(session, self._side(number))

    def scratch_url(self) -> URL:
        """See `holdfast.sources._server.Rehearsable`."""
        return self._where.url().set(database=self._side(self._step))

    @property
    def _name(self) -> str:
        return self._where.address.database

    def _side(self, number: int) -> str:
        return side_name(self._name, self._run, number)

    @contextmanager
    def _maintenance(self) -> Iterator[Session]:
        server = self._where.server()
        with server.maintenance(RESTORE, run=self._run) as session:
            end_run(session, self._run, time.monotonic() + server.timeout)
            yield session

    def _switch(self, session: Session, renames: Sequence[tuple[str, str]]) -> None:
        deadline = time.monotonic() + self._where.timeout
        names = [old for old, _ in renames]
        for name in names:
            session.run(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(identifier(name)))
        ended = 0
        while True:
            ended += session.run(_END_SESSIONS, names)[0][0]
            users = session.run(_USERS, names, names)
            if not users:
                try:
                    self._rename(session, renames)
                    break
                except DatabaseBusy as error:
                    session.run("ROLLBACK")
                    users = [(str(error), 1)]
            if time.monotonic() > deadline:
                raise DatabaseBusy(
                    f"{RESTORE}: {self._where.address} is still in use: "
                    + ", ".join(f"{user} ({number})" for user, number in users),
                    hint="End those sessions, or restore as a role that may.",
                )
            time.sleep(_PAUSE)
        if ended:
            self.note = (
                f"{ended} connection{'s' if ended > 1 else ''} to {self._where.address} had to be ended: restart a "
                "service that does not connect again by itself"
            )

    def _rename(self, session: Session, renames: Sequence[tuple[str, str]]) -> None:
        session.run("BEGIN")
        for old, new in renames:
            session.run(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(identifier(old), identifier(new)))
        if self._name in [new for _, new in renames]:
            _allow(session, self._name)
        session.run("COMMIT")


class Where:
    """The live database, whose URL, with its password, is looked up when it is needed."""

    def __init__(self, address: Address, urls: Urls, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._urls = urls

    def url(self) -> URL:
        """Raises RestoreError where it is not configured any more."""
        return self.address.find(self._urls)

    def server(self) -> Server:
        """Raises RestoreError where it is not configured any more."""
        return Server(self.url(), self.timeout)


class PostgresSwaps:
    """Gives swaps back from a journal. `urls` are of the databases that are configured now; `timeout` in seconds."""

    def __init__(self, urls: Urls, *, timeout: float) -> None:
        self._urls = urls
        self._timeout = timeout

    def from_journal(self, state: dict[str, Any], /) -> Swap:
        """The inverse of `to_journal`. Raises KeyError, TypeError, ValueError."""
        where = Where(Address.from_journal(state["address"]), self._urls, self._timeout)
        run, step = state["run"], _number(state["step"], _STEPS)
        if not isinstance(run, str) or not _RUN.fullmatch(run):
            raise ValueError("a swap has a run")
        match state["mode"]:
            case "rename":
                coming, live = _maybe_oid(state["coming"]), _maybe_oid(state["live"])
                return PostgresSwap(where, run, step=step, coming=coming, live=live)
            case "in place":
                return InPlaceSwap.from_journal(state, where.address, where.server, run=run, step=step)
        raise ValueError(f"mode {state['mode']!r:.80} is unknown")


def drop_database(session: Session, name: str) -> None:
    """Does nothing where there is none. Raises DatabaseError."""
    if database_id(session, name) is None:
        return
    force = sql.SQL(" WITH (FORCE)" if session.major >= 13 else "")
    if session.major < 13:
        session.run(_END_SESSIONS, [name])
    session.run(sql.SQL("DROP DATABASE IF EXISTS {}{}").format(identifier(name), force))


def _allow(session: Session, name: str) -> None:
    if session.run("SELECT 1 FROM pg_database WHERE datname = %s AND NOT datallowconn", name):
        session.run(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(identifier(name)))


def _number(value: Any, bound: int) -> int:
    if type(value) is not int or not 0 <= value < bound:
        raise ValueError(f"{value!r:.80} is not a sensible number")
    return value


def _maybe_oid(value: Any) -> int | None:
    return None if value is None else _number(value, 1 << 32)
