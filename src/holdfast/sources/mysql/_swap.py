"""Putting restored tables and programs in place of the live ones, and taking that back.

One ``RENAME TABLE`` statement moves all live tables into a schema of our own and all restored ones into the live
schema; the server does it whole or not at all. Views, routines and events that are the same in both states stay as
they are. The others, and all triggers (a table with one cannot change its schema), are dropped before and made anew
after it, from what was noted before the first of them was dropped. For that moment a service can see some of them
missing, and a row that it writes then passes no trigger.

Which step was reached shows on the server alone: in what is noted of the states (see `_mysql_state`), and in which
schema the tables are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import NothingToUndo
from holdfast.sources._server import Address, Urls
from holdfast.sources.mysql._programs import TRIGGER, Program, create_all, drop, is_of_another
from holdfast.sources.mysql._session import NO_SCHEMA, Refused, Session, explaining, identifier, qualified
from holdfast.sources.mysql._state import Shelf, State, create_schema, observe, tables_of

if TYPE_CHECKING:
    from sqlalchemy import URL

DOING = "Database restore failed"


class MySqlSwap:
    """Restored tables for the live ones. Implements `holdfast.transaction.Swap`.

    `timeout` is in seconds: so long each lock that others hold is waited for. Raises DatabaseBusy, DatabaseError,
    RestoreError, NoSpace; whatever was raised, `revert` puts right.
    """

    kind: ClassVar[str] = "mysql"

    def __init__(self, address: Address, run: str, step: int, urls: Urls, *, timeout: float) -> None:
        self._address = address
        self._live = address.database
        self._run = run
        self._step = step
        self._urls = urls
        self._timeout = timeout
        self._shelf = Shelf(self._live, run)
        self._coming = self._shelf.schema(step)
        self._kept = self._shelf.schema(step + 1)
        self.note = ""
        """What a person should know of how it was done: what had to be left out, or has another definer."""

    def to_journal(self) -> dict[str, Any]:
        return {"address": self._address.to_journal(), "run": self._run, "step": self._step}

    def apply(self) -> None:
        """See `Swap.apply`. What was live is noted before the first of it is touched."""
        with self._session() as session:
            coming = self._shelf.load(session, self._step)
            if coming is None:
                raise NothingToUndo(f"nothing is kept that could take the place of {self._address}")
            kept = observe(session, self._live)
            collation = (kept.charset, kept.collation) if kept.existed else (coming.charset, coming.collation)
            create_schema(session, self._kept, *collation)
            self._shelf.save(session, self._step + 1, kept)
            if coming.existed and not kept.existed:
                create_schema(session, self._live, coming.charset, coming.collation)
            self._exchange(session, coming, set(kept.programs), self._coming, self._kept)

    def revert(self) -> None:
        """See `Swap.revert`. What others wrote after `apply` goes with the restored state."""
        with self._session() as session:
            kept = self._shelf.load(session, self._step + 1)
            coming = self._shelf.load(session, self._step)
            if kept is None or coming is None:
                self._drop_empty(session, self._kept)
                return
            moved = bool(tables_of(session, self._kept)) or (
                bool(coming.tables) and not tables_of(session, self._coming)
            )
            if kept.existed and not session.has_schema(self._live):
                create_schema(session, self._live, kept.charset, kept.collation)
            if session.has_schema(self._live):
                # Others may have made something since. It is not ours to drop.
                known = {program.key for program in (*coming.programs, *kept.programs)}
                present = {
                    program for program in observe(session, self._live).programs if program.key in known
                }
                source, aside = (self._kept, self._coming) if moved else (None, None)
                if moved and not session.has_schema(self._coming):
                    create_schema(session, self._coming, coming.charset, coming.collation)
                self._exchange(session, kept, present, source, aside)
            self._shelf.forget(session, self._step + 1)
            self._drop_empty(session, self._kept)

    def reversed(self) -> MySqlSwap:
        return MySqlSwap(self._address, self._run, self._step + 1, self._urls, timeout=self._timeout)

    def settle(self) -> None:
        with self._session() as session:
            if session.has_schema(self._shelf.book):
                self._shelf.forget(session, self._step)
            self._drop_empty(session, self._coming)

    def discard(self) -> None:
        with self._session() as session:
            self._shelf.remove(session)

    def scratch_url(self) -> URL:
        """See `holdfast.sources._server.Rehearsable`. There are the tables; views, routines, events and triggers are
        made when it is applied."""
        return self._address.find(self._urls).set(database=self._coming)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with (
            explaining(DOING, self._address),
            Session(self._address.find(self._urls), timeout=self._timeout) as session,
            self._shelf.locked(session, self._timeout),
        ):
            yield session

    def _exchange(
        self, session: Session, to: State, present: set[Program], source: str | None, aside: str | None
    ) -> None:
        """Makes the live schema what `to` says: `present` are its programs now. With tables from the schema
        `source` in place of the live ones, which go to `aside`; with None the tables stay."""
        arriving = [] if source is None else tables_of(session, source)
        leaving = [] if aside is None else tables_of(session, self._live)
        wanted = set(to.programs)
        going = [
            program
            for program in present
            if program not in wanted or (program.kind == TRIGGER and source is not None)
        ]
        # A package takes its body with it.
        packages = {program.name for program in going if program.kind == "PACKAGE"}
        going += [
            program
            for program in present
            if program.kind == "PACKAGE BODY" and program.name in packages and program not in going
        ]
        self._drop_all(session, going, leaving)
        if source is not None and aside is not None and arriving + leaving:
            session.run("SET SESSION foreign_key_checks = 0")
            moves = [(self._live, aside, name) for name in leaving]
            moves += [(source, self._live, name) for name in arriving]
            session.run(
                "RENAME TABLE "
                + ", ".join(f"{qualified(old, name)} TO {qualified(new, name)}" for old, new, name in moves)
            )
            _point_to_live(session, source, self._live)
        if not to.existed:
            self._drop_empty(session, self._live)
            return
        session.run(f"ALTER DATABASE {identifier(self._live)} COLLATE {identifier(to.collation)}")
        missing = [program for program in to.programs if program in going or program not in present]
        create_all(session, self._live, missing, to.collation, self._refused)

    def _drop_all(self, session: Session, programs: list[Program], tables: list[str]) -> None:
        triggers = [program for program in programs if program.kind == TRIGGER]
        if triggers and tables:
            # Whoever holds one of the tables is waited for here, while they still have their triggers.
            locks = ", ".join(f"{qualified(self._live, name)} WRITE" for name in tables)
            session.run(f"LOCK TABLES {locks}")
        try:
            for program in triggers:
                drop(session, self._live, program)
        finally:
            session.run("UNLOCK TABLES")
        for program in programs:
            if program.kind != TRIGGER:
                drop(session, self._live, program)

    def _refused(self, program: Program, refusal: Refused) -> Program | None:
        what = f"{program.kind.lower()} {program.name}"
        if is_of_another(refusal) and program.definer:
            self._note(f"{what} belongs to our own user now: {program.definer} could not be made its definer")
            return program.without_definer()
        if program.kind == "VIEW" and refusal.code in _REFERS_TO_NOTHING:
            self._note(f"{what} is left out: it refers to what is not there ({refusal.text})")
            return None
        raise refusal

    def _note(self, text: str) -> None:
        self.note = f"{self.note}; {text}" if self.note else f"{self._address}: {text}"

    def _drop_empty(self, session: Session, schema: str) -> None:
        """Drops a schema, unless it holds tables or programs, by others or for a redo."""
        state = observe(session, schema)
        if state.existed and not state.tables and not state.programs:
            session.run(f"DROP DATABASE IF EXISTS {identifier(schema)}")


_REFERS_TO_NOTHING = (1054, 1146, 1305, 1356, NO_SCHEMA, 1347)


def _point_to_live(session: Session, source: str, live: str) -> None:
    """Columns of MariaDB whose default is a sequence's next value name the schema that they were made in."""
    here = f"{identifier(source)}."
    for table, column, default in session.rows(
        "SELECT TABLE_NAME, COLUMN_NAME, COLUMN_DEFAULT FROM information_schema.COLUMNS"
        " WHERE TABLE_SCHEMA = %s AND INSTR(COLUMN_DEFAULT, %s) > 0",
        [live, f"nextval({here}"],
    ):
        text = default.replace(f"nextval({here}", f"nextval({identifier(live)}.")
        session.run(
            f"ALTER TABLE {qualified(live, table)} ALTER COLUMN {identifier(column)} SET DEFAULT ({text})"
        )


class MySqlSwaps:
    """The swaps of MySQL and MariaDB. Implements `holdfast.transaction.SwapKind`.

    `urls` gives the databases that are configured: a journal holds no password. `timeout` is in seconds.
    """

    def __init__(self, urls: Urls, *, timeout: float) -> None:
        self._urls = urls
        self._timeout = timeout

    def from_journal(self, state: dict[str, Any], /) -> MySqlSwap:
        """The inverse of `MySqlSwap.to_journal`. Raises KeyError, TypeError, ValueError."""
        step = state["step"]
        if type(step) is not int or not isinstance(state["run"], str):
            raise TypeError("a step is a number, a run a text")
        address = Address.from_journal(state["address"])
        return MySqlSwap(address, state["run"], step, self._urls, timeout=self._timeout)
