"""Where a PostgreSQL dump goes back to: checked against what is there, then staged."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.durable import temp_directory
from holdfast.errors import (
    CorruptBackup,
    DatabaseError,
    HoldfastError,
    NoSpace,
    RestoreError,
    SourceMissing,
)
from holdfast.events import Emit
from holdfast.model import Entry
from holdfast.sources.base import Read, Staging
from holdfast.sources.postgres._archive import check_roles, contents, jobs, load, write_archive
from holdfast.sources.postgres._connection import RESTORE, Client, Server, Session, database_id, side_name
from holdfast.sources.postgres._in_place import InPlaceSwap
from holdfast.sources.postgres._moment import Moment
from holdfast.sources.postgres._offsets import note_offsets
from holdfast.sources.postgres._scratch import analyzing, check_rows, create, finish, make_room
from holdfast.sources.postgres._swap import PostgresSwap, Where
from holdfast.transaction import Swap, remove_place, restoring

if TYPE_CHECKING:
    from sqlalchemy import URL

_RIGHTS = """
SELECT rolsuper OR rolcreatedb,
       rolsuper OR coalesce((SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = %s), true),
       rolsuper
FROM pg_roles WHERE rolname = current_user
"""


class PostgresTarget:
    """The database that a dump goes back to. Implements `holdfast.sources.base.Restorable`.

    `moment` is what the source's record says. `timeout` is in seconds: for connecting, for locks, and for sessions
    to end. `create_database`: it is made where there is none.
    """

    def __init__(self, url: URL, moment: dict[str, Any], *, timeout: float, create_database: bool) -> None:
        """Raises ConfigError for a URL with options that PostgreSQL does not know."""
        self._url = url
        self._server = Server(url, timeout)
        self._moment = moment
        self._create_database = create_database

    def needs(self, total_bytes: int) -> dict[Path, int]:
        """Room for the dump as a file. What the server needs on its own disks cannot be seen from here."""
        return {temp_directory(): total_bytes}

    def stage(self, entries: Iterator[Entry], read: Read, staging: Staging, emit: Emit) -> list[Swap]:
        """See `Restorable.stage`. Whatever can be found wrong beforehand is, before anything is made on the server.

        Raises CorruptBackup where what the backup has is not one whole dump, RestoreError where the server cannot
        take it, DatabaseError, NoSpace.
        """
        entry = next(entries, None)
        if entry is None or entry.kind != "file" or next(entries, None) is not None:
            raise CorruptBackup("a PostgreSQL database in a backup is one dump, and here it is not")
        moment = Moment.from_json(self._moment)
        client = Client.find("pg_restore", RESTORE)
        if client.major < moment.client:
            raise RestoreError(
                f"{RESTORE}: the dump was made by pg_dump {moment.client}, and pg_restore here is {client.version}: "
                "it must not be older",
                hint=f"Install postgresql-client-{moment.client}, or put its pg_restore first on PATH.",
            )
        plan = self._plan(moment)
        with restoring(f"{RESTORE}: cannot stage {self._server.address}"):
            place = staging.place(temp_directory())
            archive = place / "0.dump"
            write_archive(archive, entry, read)
            where = Where(self._server.address, lambda: [self._url], self._server.timeout)
            if plan.in_place:
                with self._server.session(RESTORE) as session:
                    check_roles(session, contents(client, archive), moment.roles)
                return [InPlaceSwap(where.address, where.server, place, staging.run, rows=moment.rows)]
            swap = self._fill_scratch(client, archive, moment, plan, where, staging, emit)
            remove_place(place)  # the undo needs no file, and the dump may be large
            return [swap]

    def _plan(self, moment: Moment) -> _Plan:
        with ExitStack() as stack:
            try:
                session = stack.enter_context(self._server.maintenance(RESTORE))
            except DatabaseError as error:
                return self._plan_from_within(moment, error)
            self._check_version(session, moment)
            live = database_id(session, self._server.database)
            [(may_create, is_owner, _)] = session.run(_RIGHTS, self._server.database)
            if live is None:
                self._check_creation(session, may_create=may_create)
            return _Plan(live, in_place=not (may_create and is_owner))

    def _plan_from_within(self, moment: Moment, refusal: DatabaseError) -> _Plan:
        """For a role that is kept out of all databases but its own."""
        try:
            with self._server.session(RESTORE) as session:
                self._check_version(session, moment)
                [(_, _, is_superuser)] = session.run(_RIGHTS, self._server.database)
                live = database_id(session, self._server.database)
        except SourceMissing as missing:
            raise RestoreError(str(missing), hint=missing.hint) from missing
        if is_superuser:
            raise refusal  # nobody keeps it out, so something else is wrong
        return _Plan(live, in_place=True)

    def _check_version(self, session: Session, moment: Moment) -> None:
        if session.major < moment.major:
            raise RestoreError(
                f"{RESTORE}: the backup is of PostgreSQL {moment.server}, and {self._server.address} is PostgreSQL "
                f"{session.version}: a dump goes to the same major version or a newer one",
                hint="Restore to a newer server.",
            )

    def _check_creation(self, session: Session, *, may_create: bool) -> None:
        if not self._create_database:
            raise RestoreError(
                f"{RESTORE}: {self._server.address}: the server has no such database",
                hint="Add --create-db to have it made.",
            )
        if not may_create:
            user = session.run("SELECT current_user::text")[0][0]
            raise RestoreError(
                f"{RESTORE}: {self._server.address} does not exist, and role {user} may not create databases",
                hint=f"Let an administrator create it, owned by {user}; or ALTER ROLE {user} CREATEDB.",
            )

    def _fill_scratch(
        self,
        client: Client,
        archive: Path,
        moment: Moment,
        plan: _Plan,
        where: Where,
        staging: Staging,
        emit: Emit,
    ) -> PostgresSwap:
        scratch = side_name(self._server.database, staging.run, 0)
        with self._server.maintenance(RESTORE, run=staging.run) as session:
            check_roles(session, contents(client, archive), moment.roles)
            staging.register(PostgresSwap(where, staging.run, coming=None, live=plan.live))
            with ThreadPoolExecutor(1, "offsets") as pool:
                noted = pool.submit(note_offsets, archive)
                create(session, scratch, moment.database, emit)
                noted.result()
            try:
                load(client, archive, self._server, session, database=scratch, run=staging.run)
            except NoSpace:
                with suppress(HoldfastError), self._server.session(RESTORE, scratch, run=staging.run) as full:
                    make_room(full)
                raise
            with (
                self._server.session(RESTORE, scratch, run=staging.run) as filled,
                analyzing(self._server, scratch, staging.run, emit, sessions=jobs()),
            ):
                check_rows(filled, moment.rows, "the restored database")
            finish(session, scratch, moment.database, emit)
            return PostgresSwap(where, staging.run, coming=database_id(session, scratch), live=plan.live)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What there is."""

    live: int | None
    """The OID of the live database."""
    in_place: bool
    """Whether its role cannot do better."""
