"""Loads a dump into a schema of our own, statement by statement.

No client program reads the dump: nothing in it is a command to anything but the server (``\\!``, ``system`` and
``source`` are words that only such a client knows), and the server takes one statement at a time. Only those
statements are run that ``mysqldump`` writes for the tables of one database, on names without a schema; settings and
programs are read, not run, and made anew by what was read. What is beyond that, ``USE``, ``CREATE DATABASE``,
``GRANT``, is HostileBackup. Not seen through: what an expression in a definition, or among rows, refers to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast.errors import CorruptBackup, HostileBackup, RestoreError
from holdfast.events import Emit, Warned
from holdfast.sources.mysql._dump import Statement, statements, unquoted
from holdfast.sources.mysql._programs import (
    EVENT,
    VIEW,
    Program,
    capture,
    create_all,
    drop,
    generalized,
    is_of_another,
    parsed,
)
from holdfast.sources.mysql._session import Refused, Session, identifier, qualified
from holdfast.sources.mysql._state import State, tables_of

_NAME = rb"`(?:[^`]|``)+`"
_COMMENT = re.compile(rb"/\*M?!\d{5,6}\s*|\s*\*/")
_HEAD = 4096

_RUN = re.compile(
    rb"INSERT INTO " + _NAME + rb"(?: \((?:[^`()]|`[^`]*+`)*+\))? VALUES\s*\(|"
    rb"CREATE TABLE (?:IF NOT EXISTS )?" + _NAME + rb" \(|"
    rb"CREATE SEQUENCE (?:IF NOT EXISTS )?" + _NAME + rb" start with |"
    rb"(?:DO|SELECT) SETVAL\(" + _NAME + rb", -?\d+, [01]\)\Z|"
    rb"DROP TABLE IF EXISTS " + _NAME + rb"\Z"
)
_PASS = re.compile(
    rb"SET (?!GLOBAL|PERSIST|PASSWORD|ROLE|DEFAULT|RESOURCE|@@(?:GLOBAL|PERSIST))|"
    rb"LOCK TABLES |UNLOCK TABLES\Z|COMMIT\Z|ALTER TABLE " + _NAME + rb" (?:DISABLE|ENABLE) KEYS\Z|"
    rb"DROP (?:VIEW|SEQUENCE|TRIGGER|EVENT|FUNCTION|PROCEDURE|PACKAGE|PACKAGE BODY) IF EXISTS "
    + _NAME
    + rb"\Z|"
    # Percona's program asks so whether there is RocksDB.
    rb"SELECT COUNT\(\*\) INTO @rocksdb_|PREPARE s FROM @rocksdb_|EXECUTE s\Z|DEALLOCATE PREPARE s\Z|"
    rb"CREATE VIEW " + _NAME + rb" AS SELECT\s",
    re.IGNORECASE,
)
"""Neither the settings, nor the stand-ins for views that mysqldump makes first, are needed here."""
_PROGRAM = re.compile(
    rb"CREATE (?:OR REPLACE )?(?:ALGORITHM|DEFINER|AGGREGATE|VIEW|TRIGGER|EVENT|PROCEDURE|FUNCTION|PACKAGE)\b",
    re.IGNORECASE,
)
_SETTING = re.compile(
    rb"SET (character_set_client|collation_connection|sql_mode|time_zone)\s*= ('[^'\\]*'|\w+)\Z",
    re.IGNORECASE,
)
_HISTORY = re.compile(rb"SET .*system_versioning_insert_history=(1|@)")
_COLLATION = re.compile(rb"ALTER DATABASE " + _NAME + rb" CHARACTER SET \w+ COLLATE (\w+)\s*\Z")
_WRAPPED = re.compile(
    rb"/\*!\d{5,6} ?(CREATE.*?) ?\*/\s*(?:/\*!\d{5,6} ?(DEFINER=.*?) ?\*/\s*)?/\*!\d{5,6} ?(.*?)\s*\*/"
    rb"(?:\s*/\*!\d{5,6} ?(WITH \w+ CHECK OPTION) ?\*/)?\Z",
    re.DOTALL,
)
_NEXTVAL = re.compile(
    rb"""('(?:[^'\\]++|\\.)*+')|((?:next|last)val\()(""" + _NAME + rb""")(?=\.)""", re.DOTALL
)
_RESTORE = "Database restore failed"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a backup remembers of the database that it dumped."""

    version: str
    flavour: str
    database: str
    charset: str
    collation: str
    rows: dict[str, int]

    @classmethod
    def of(cls, moment: dict[str, Any]) -> Recorded:
        """Raises CorruptBackup for what no backup of ours says."""
        texts = [moment.get(key) for key in ("version", "flavour", "database", "charset", "collation")]
        rows = moment.get("rows")
        if (
            not all(isinstance(text, str) and len(text) <= 1000 for text in texts)
            or not isinstance(rows, dict)
            or not all(isinstance(name, str) and type(count) is int for name, count in rows.items())
        ):
            raise CorruptBackup("the backup does not say what is in its dump of a MySQL database")
        version, flavour, database, charset, collation = (str(text) for text in texts)
        return cls(version, flavour, database, charset, collation, rows)


@dataclass(slots=True)
class _Settings:
    """Under which the next program of a dump was made."""

    character_set_client: str = "utf8mb4"
    collation_connection: str = "utf8mb4_general_ci"
    sql_mode: str = ""
    time_zone: str = ""
    database: str = ""


@dataclass(slots=True)
class Loader:
    """Fills the empty schema `schema` from a dump, over a session of its own."""

    session: Session
    schema: str
    recorded: Recorded
    emit: Emit
    _settings: _Settings = field(default_factory=_Settings)
    _programs: dict[tuple[str, str], Program] = field(default_factory=dict)

    def load(self, pieces: Iterator[bytes | memoryview]) -> State:
        """Loads everything, checks it, and returns what the live schema is to be. The programs are made once, to see
        that they can be, and dropped: the tables alone stay.

        Raises CorruptBackup, HostileBackup, RestoreError, Refused.
        """
        session = self.session
        limit = int(session.value("SELECT @@max_allowed_packet"))
        session.run(f"USE {identifier(self.schema)}")
        session.run(
            "SET SESSION foreign_key_checks = 0, unique_checks = 0, sql_notes = 0, time_zone = '+00:00'"
        )
        for statement in statements(pieces, limit=limit):
            self._take(statement)
        self._count()
        programs = self._rehearse()
        tables = tuple(tables_of(session, self.schema))
        return State(True, self.recorded.charset, self.recorded.collation, tables, programs)

    def _take(self, statement: Statement) -> None:
        # What is looked at is what is run: a comment that only some versions execute is never run as one.
        head = _COMMENT.sub(b"", statement.text[:_HEAD]).strip()
        if statement.text.startswith(b"INSERT ") and not statement.is_program:
            self._run(statement.text)
        elif found := _COLLATION.match(head):
            self._settings.database = found[1].decode("ascii")
        elif found := _SETTING.match(head):
            value = found[2].decode("ascii", "replace").strip("'")
            setattr(self._settings, found[1].decode("ascii").lower(), value)
        elif _PASS.match(head):
            if found := _HISTORY.match(head):
                self.session.run(f"SET SESSION system_versioning_insert_history = {int(found[1] == b'1')}")
        elif _PROGRAM.match(head):
            self._add(statement.text)
        elif not statement.is_program:
            text = statement.text
            if text.startswith(b"/*!"):
                # Stand-ins for views, as older programs made them, are tables within one such comment.
                text = _COMMENT.sub(b"", text)
            self._run(_NEXTVAL.sub(self._here, text))
        else:
            self._refuse(statement.text)

    def _run(self, text: bytes) -> None:
        if not _RUN.match(text):
            self._refuse(text)
        self.session.run(text)

    def _refuse(self, text: bytes) -> None:
        raise HostileBackup(
            "the dump holds what no dump of one database holds: " + repr(text[:60].decode("utf-8", "replace"))
        )

    def _here(self, found: re.Match[bytes]) -> bytes:
        # A sequence whose next value is a column's default is named with the schema that was dumped.
        if found[1] is not None or unquoted(found[3][1:-1]) != self.recorded.database:
            return found[0]
        return found[2] + identifier(self.schema).encode()

    def _add(self, text: bytes) -> None:
        if wrapped := _WRAPPED.match(text):
            text = b" ".join(part for part in wrapped.groups() if part)
        settings = self._settings
        try:
            program = parsed(
                text,
                client=settings.character_set_client,
                connection=settings.collation_connection,
                sql_mode=settings.sql_mode,
                time_zone=settings.time_zone,
                database=settings.database,
            )
            if program.kind == EVENT:
                _ = program.status
            else:
                program = replace(program, time_zone="")
            if program.kind == VIEW:
                # Written by the server, and the same under any mode.
                text = generalized(program.text, self.recorded.database)
                program = replace(program, text=text, sql_mode="", database="")
        except ValueError as error:
            raise CorruptBackup(f"the dump is not as mysqldump writes it: {error}") from error
        self._programs[program.key] = program

    def _count(self) -> None:
        """Raises CorruptBackup where the tables are not those that were dumped, or lack rows."""
        found = self.session.rows(
            "SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES"
            " WHERE TABLE_SCHEMA = %s AND TABLE_TYPE NOT IN ('SEQUENCE', 'VIEW')",
            [self.schema],
        )
        tables = {str(name): str(kind) for name, kind in found}
        expected = self.recorded.rows
        if different := sorted(tables.keys() ^ expected.keys()):
            raise CorruptBackup(
                f"the dump does not hold the tables that were backed up: {different[0]} differs"
            )
        for name, kind in tables.items():
            history = " FOR SYSTEM_TIME ALL" if kind == "SYSTEM VERSIONED" else ""
            table = qualified(self.schema, name)
            count = self.session.value(f"SELECT COUNT(*) FROM {table}{history}")  # noqa: S608  quoted
            if count != expected[name]:
                raise CorruptBackup(f"table {name} has {count} rows, and {expected[name]} were backed up")

    def _rehearse(self) -> tuple[Program, ...]:
        """Makes all programs as they will be made, and returns them as the server tells of them."""
        session, statuses, disabled = self.session, {}, []
        for program in self._programs.values():
            if program.kind == EVENT:
                # An event that is enabled would begin its work on what is not live yet.
                statuses[program.name] = program.status
                program = program.with_status(b"DISABLE")
            disabled.append(program)
        create_all(session, self.schema, disabled, self.recorded.collation, self._refused)
        try:
            made = capture(session, self.schema)
        except ValueError as error:
            raise RestoreError(f"{_RESTORE}: {error}") from error
        for program in made:
            drop(session, self.schema, program)
        return tuple(
            program.with_status(statuses[program.name]) if program.kind == EVENT else program
            for program in made
        )

    def _refused(self, program: Program, refusal: Refused) -> Program | None:
        what = f"{program.kind.lower()} {program.name}"
        if is_of_another(refusal) and program.definer:
            self.emit(
                Warned(
                    f"{what} will belong to our own user: {program.definer} could not be made its definer"
                    " (that needs SUPER, SET USER or SET_ANY_DEFINER)"
                )
            )
            return program.without_definer()
        if program.kind == VIEW or refusal.code in (1419, 1418):
            raise RestoreError(
                f"{_RESTORE}: {what} cannot be made: {refusal.text}", hint=_HINTS.get(refusal.code, "")
            )
        raise refusal


_HINTS = {
    1419: "Set log_bin_trust_function_creators = 1 on the server, or restore as a user with SUPER.",
    1418: "Set log_bin_trust_function_creators = 1 on the server.",
}
