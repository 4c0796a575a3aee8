"""MySQL and MariaDB: dumped by the server's own program, restored into a schema beside the live one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.clock import Clock
from holdfast.durable import temp_directory
from holdfast.errors import (
    CorruptBackup,
    DatabaseError,
    RestoreError,
    SourceChanged,
)
from holdfast.events import Emit, Warned
from holdfast.model import Component, Entry, Finding, SourceRecord
from holdfast.sources._program import Program
from holdfast.sources._server import Address
from holdfast.sources.base import Content, Method, Pieces, Read, Staging
from holdfast.sources.mysql._dump import Tally
from holdfast.sources.mysql._load import Loader, Recorded
from holdfast.sources.mysql._login import option_file
from holdfast.sources.mysql._rights import (
    RESTORE_RIGHTS,
    check_dump_rights,
    find_hidden_routines,
    missing_rights,
)
from holdfast.sources.mysql._session import Session, explaining, load_driver, major_of
from holdfast.sources.mysql._state import Shelf, create_schema
from holdfast.sources.mysql._survey import Survey, hold_still, survey
from holdfast.sources.mysql._swap import DOING as RESTORING
from holdfast.sources.mysql._swap import MySqlSwap, MySqlSwaps
from holdfast.sources.mysql._tools import DumpTool, find_dump_tool
from holdfast.transaction import Swap

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["MySqlSource", "MySqlSwap", "MySqlSwaps", "MySqlTarget"]

DOING = "Database backup failed"


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a dump once it is whole."""

    survey: Survey
    tool: DumpTool
    tally: Tally


class MySqlSource:
    """One database (schema) of a server. Implements `holdfast.sources.base.Source`.

    `url` is without a driver. `timeout`, in seconds, bounds connecting, and the wait for each lock that others hold.
    """

    method: ClassVar[Method] = Method.LOGICAL_DUMP

    def __init__(self, name: str, url: URL, *, timeout: float, clock: Clock) -> None:
        """Raises ConfigError where PyMySQL is not installed."""
        load_driver()
        self.component: Component = "database"
        self.name = name
        self.tolerates_change = False
        self._url = url
        self._address = Address.of(url)
        self._timeout = timeout
        self._clock = clock
        self._facts: _Facts | None = None

    def record(self) -> SourceRecord:
        """Its moment is known once the dump was read to its end: versions, character set and collation, the rows of
        each table as the dump has them, and the position of the binary log that it is of (None where the server
        does not tell)."""
        facts = self._facts
        moment: dict[str, Any] = {}
        if facts is not None:
            binlog = facts.tally.binlog
            moment = {
                "flavour": facts.survey.flavour,
                "version": facts.survey.version,
                "client": facts.tool.version,
                "database": self._address.database,
                "charset": facts.survey.charset,
                "collation": facts.survey.collation,
                "rows": facts.tally.rows,
                "binlog": None if binlog is None else {"file": binlog[0], "position": binlog[1]},
                "gtid": facts.tally.gtid,
            }
        return SourceRecord(self.component, self.name, self._address.dialect, moment=moment)

    def check(self) -> Iterator[Finding]:
        """See `Source.check`."""
        subject = f"{self.component} {self.name}"
        with self._session("Database check failed") as session:
            found = survey(session, self._address.database)
            yield Finding(subject, "ok", f"{found.flavour} {found.version}, {len(found.tables)} tables")
            tool = find_dump_tool(session, "Database check failed")
            yield Finding(subject, "ok", f"{tool.path}, version {tool.version}")
            try:
                check_dump_rights(session, self._address, "a backup would fail")
            except DatabaseError as error:
                yield Finding(subject, "FAILED", f"{error}. {error.hint}")
            for told in _concerns(session, found, tool):
                yield Finding(subject, "warning", told)
            shelf = Shelf(self._address.database, "0" * 16)
            for schema in (self._address.database, shelf.book):
                if missing := missing_rights(session, schema, RESTORE_RIGHTS):
                    yield Finding(
                        subject,
                        "warning",
                        f"a restore would fail: our user lacks {', '.join(missing)} on {schema}",
                    )

    def scan(self, emit: Emit) -> Iterator[MySqlItem]:
        """See `Source.scan`. Tables that the dump's transaction does not cover, and routines that our user may not
        see, are told as Warned."""
        self._facts = None
        with self._session(DOING) as session:
            found = self._survey(session)
            for told in _concerns(session, found, find_dump_tool(session, DOING)):
                emit(Warned(told))
        now_ns = int(self._clock().timestamp() * 1_000_000_000)
        # A server does not tell that nothing was written since.
        entry = Entry(f"database/{self.name}.dump", "file", mode=0o600, mtime_ns=now_ns, racy=True)
        yield MySqlItem(entry, self)

    def _open(self) -> Content:
        with self._session(DOING) as session:
            found = self._survey(session)
            hold_still(session, self._address.database, found.tables)
            tool = find_dump_tool(session, DOING)
        return Content(None, stream=self._dump(found, tool))

    def _survey(self, session: Session) -> Survey:
        check_dump_rights(session, self._address, DOING)
        return survey(session, self._address.database)

    def _dump(self, found: Survey, tool: DumpTool) -> Pieces:
        tally = Tally()
        with option_file(self._url) as descriptor:
            program = Program(
                [
                    tool.path,
                    f"--defaults-file=/dev/fd/{descriptor}",
                    *tool.options(found),
                    "--",
                    self._address.database,
                ],
                doing=DOING,
                secrets=(str(self._url.password or ""),),
                descriptors=(descriptor,),
            )
            with closing(program.output()) as output:
                for piece in output:
                    tally.feed(piece)
                    yield piece
        if not tally.is_complete or tally.odd is not None:
            what = (
                "it lacks its last line"
                if tally.odd is None
                else f"it has rows in an unknown form: {tally.odd}"
            )
            raise DatabaseError(f"{DOING}: the dump of {self._address} is not whole: {what}")
        with self._session(DOING) as session:
            if survey(session, self._address.database) != found:
                raise SourceChanged(
                    f"{DOING}: tables or programs of {self._address} were made, altered or dropped meanwhile",
                    hint="Back up at a time when the service is not being migrated.",
                )
        self._facts = _Facts(found, tool, tally)

    @contextmanager
    def _session(self, doing: str) -> Iterator[Session]:
        database = self._address.database
        with (
            explaining(doing, self._address),
            Session(self._url, timeout=self._timeout, database=database) as session,
        ):
            yield session


class MySqlItem:
    """The one entry of a database."""

    def __init__(self, entry: Entry, source: MySqlSource) -> None:
        self.entry = entry
        self._source = source

    def open(self, *, settle: bool = False) -> tuple[Entry, Content | None]:
        """See `Item.open`. There is nothing to settle for: a dump of tables that change their form is none."""
        return self.entry, self._source._open()


class MySqlTarget:
    """The database that a dump goes back to. Implements `holdfast.sources.base.Restorable`.

    `moment` is what the backup remembers. `timeout` is in seconds. `create_database`: it is made where there is none.
    """

    def __init__(self, url: URL, moment: dict[str, Any], *, timeout: float, create_database: bool) -> None:
        """Raises ConfigError where PyMySQL is not installed."""
        load_driver()
        self._url = url
        self._address = Address.of(url)
        self._moment = moment
        self._timeout = timeout
        self._create_database = create_database

    def needs(self, total_bytes: int) -> dict[Path, int]:
        """The disk of a server cannot be seen from here. The figure is for one that is on this machine."""
        return {temp_directory(): total_bytes}

    def stage(self, entries: Iterator[Entry], read: Read, staging: Staging, emit: Emit) -> list[Swap]:
        """See `Restorable.stage`. Raises CorruptBackup and HostileBackup for what is no dump of one database,
        RestoreError where there is no database to replace, its server is older than that of the dump, or our user
        may not do what it takes; DatabaseError, DatabaseBusy, NoSpace."""
        entry = next(entries, None)
        if entry is None or entry.kind != "file" or next(entries, None) is not None:
            raise CorruptBackup("a MySQL database in a backup is one dump, and here it is not")
        recorded = Recorded.of(self._moment)
        swap = MySqlSwap(self._address, staging.run, 0, lambda: [self._url], timeout=self._timeout)
        shelf = Shelf(self._address.database, staging.run)
        with explaining(RESTORING, self._address), Session(self._url, timeout=self._timeout) as session:
            self._check(session, recorded, shelf)
            staging.register(swap)
            with shelf.locked(session, self._timeout):
                shelf.make(session)
                try:
                    create_schema(session, shelf.schema(0), recorded.charset, recorded.collation)
                except ValueError as error:
                    raise CorruptBackup(f"the backup is of no MySQL database: {error}") from error
                state = Loader(session, shelf.schema(0), recorded, emit).load(iter(read(entry)))
                shelf.save(session, 0, state)
        return [swap]

    def _check(self, session: Session, recorded: Recorded, shelf: Shelf) -> None:
        database = self._address.database
        if session.flavour == recorded.flavour and session.major < major_of(recorded.version):
            raise RestoreError(
                f"{RESTORING}: the dump is of {recorded.flavour} {recorded.version}, and {self._address} is"
                f" {session.version}",
                hint="Restore to a server of that version, or of a later one.",
            )
        if not session.has_schema(database):
            if not self._create_database:
                raise RestoreError(
                    f"{RESTORING}: {self._address} is not there", hint="Add --create-db to have it made."
                )
        elif foreign := session.rows(
            "SELECT CONSTRAINT_SCHEMA, TABLE_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS"
            " WHERE UNIQUE_CONSTRAINT_SCHEMA = %s AND CONSTRAINT_SCHEMA <> %s",
            [database, database],
        ):
            raise RestoreError(
                f"{RESTORING}: a foreign key of {foreign[0][0]}.{foreign[0][1]} refers to {self._address}, and would"
                " go on referring to what is replaced",
                hint="Drop that foreign key, and add it again after the restore.",
            )
        for schema in (database, shelf.book, shelf.schema(0), shelf.schema(1)):
            if missing := missing_rights(session, schema, RESTORE_RIGHTS):
                raise RestoreError(
                    f"{RESTORING}: our user lacks {', '.join(missing)} on {schema}",
                    hint=f"Let an administrator GRANT ALL PRIVILEGES ON `{_pattern(database)}%`.* to it: a restore"
                    " fills a schema beside the live one.",
                )


def _pattern(database: str) -> str:
    return database[:20].replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%").replace("`", "``")


def _concerns(session: Session, found: Survey, tool: DumpTool) -> Iterator[str]:
    """What a dump may lack, or may not have of one moment."""
    if found.unsafe:
        names = ", ".join(found.unsafe[:5]) + (", …" if len(found.unsafe) > 5 else "")
        yield f"{found.database} has tables without transactions, whose rows may be of another moment: {names}"
    if found.has_history and not tool.keeps_history:
        yield f"{tool.path} {tool.version} leaves out past rows of tables WITH SYSTEM VERSIONING: use MariaDB 10.11"
    yield from find_hidden_routines(session, found.database)
