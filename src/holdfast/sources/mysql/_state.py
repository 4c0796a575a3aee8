"""What a schema consists of, and the schemas of our own in which a restore keeps its states.

A run has, for a database ``shop``::

    shop__holdfast_5f0c…      its table `states` says of each state what `State` says, whole or not at all
    shop__holdfast_5f0c…_0    tables as restored
    shop__holdfast_5f0c…_1    tables that were live before
    shop__holdfast_5f0c…_2    … and those that an undo of that has replaced, and so on
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from holdfast.errors import DatabaseBusy, RestoreError
from holdfast.sources.mysql._programs import Program, capture
from holdfast.sources.mysql._session import NO_SUCH_THREAD, Refused, Session, identifier, qualified

_NAME_LIMIT = 64
"""Characters (https://mariadb.com/kb/en/identifier-names/)."""
_RUN = re.compile(r"[0-9a-f]{16}")
_COLLATION = re.compile(r"[A-Za-z0-9_]{1,64}")
_STATE_LIMIT = 256 << 20
_STEPS = 1_000_000
_TABLES = ("BASE TABLE", "SEQUENCE", "SYSTEM VERSIONED")


@dataclass(frozen=True, slots=True)
class State:
    """A schema but for its rows."""

    existed: bool
    """False: there was no such schema. All else is empty then."""
    charset: str = ""
    collation: str = ""
    tables: tuple[str, ...] = ()
    programs: tuple[Program, ...] = ()


def observe(session: Session, schema: str) -> State:
    """The state of a schema. Raises Refused, and RestoreError for a program that cannot be kept."""
    settings = session.rows(
        "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA"
        " WHERE SCHEMA_NAME = %s",
        [schema],
    )
    if not settings:
        return State(existed=False)
    try:
        programs = tuple(capture(session, schema))
    except ValueError as error:
        raise RestoreError(
            f"Database restore failed: what is in {schema} now could not be kept: {error}",
            hint="Restore as a user who may read it: SHOW VIEW, TRIGGER, EVENT, and SELECT on mysql.proc.",
        ) from error
    charset, collation = settings[0]
    return State(True, charset, collation, tuple(tables_of(session, schema)), programs)


def tables_of(session: Session, schema: str) -> list[str]:
    """Names of what holds rows, sequences included."""
    return session.names(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_TYPE IN %s"
        " ORDER BY TABLE_NAME",
        [schema, _TABLES],
    )


def create_schema(session: Session, schema: str, charset: str, collation: str) -> None:
    """Makes a schema. Raises Refused, ValueError."""
    if not (_COLLATION.fullmatch(charset) and _COLLATION.fullmatch(collation)):
        raise ValueError(f"{charset!r:.80} and {collation!r:.80} are no character set and collation")
    session.run(f"CREATE DATABASE {identifier(schema)} CHARACTER SET {charset} COLLATE {collation}")


class Shelf:
    """The schemas of one run for one database. Its methods raise Refused."""

    def __init__(self, database: str, run: str) -> None:
        """Raises ValueError where the run is none."""
        if not _RUN.fullmatch(run):
            raise ValueError(f"{run!r:.80} is no run")
        ending = f"__holdfast_{run}"
        room = _NAME_LIMIT - len(ending) - len("_000000")
        if len(database) > room:
            # Two databases that begin alike must not share their schemas.
            mark = hashlib.sha256(database.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            database = f"{database[: room - len(mark)]}{mark}"
        self.book = database + ending
        self._run = run

    def schema(self, step: int) -> str:
        """Where the tables of a state are while they are not live."""
        if not 0 <= step < _STEPS:
            raise ValueError(f"{step} is no step")
        return f"{self.book}_{step}"

    def make(self, session: Session) -> None:
        create_schema(session, self.book, "utf8mb4", "utf8mb4_bin")
        session.run(
            f"CREATE TABLE {qualified(self.book, 'states')}"
            " (step INT NOT NULL PRIMARY KEY, state LONGBLOB NOT NULL) ENGINE=InnoDB"
        )

    def save(self, session: Session, step: int, state: State) -> None:
        """Whole or not at all. In place of what was noted of that step."""
        data = {
            "existed": state.existed,
            "charset": state.charset,
            "collation": state.collation,
            "tables": state.tables,
            "programs": [program.to_json() for program in state.programs],
        }
        packed = zlib.compress(json.dumps(data).encode("ascii"))
        self._execute(session, "REPLACE INTO {} (step, state) VALUES (%s, %s)", step, packed)

    def load(self, session: Session, step: int) -> State | None:
        """What was noted of a step. Raises RestoreError for what cannot be ours."""
        if not session.has_schema(self.book) or not tables_of(session, self.book):
            return None
        packed = session.value(self._query("SELECT state FROM {} WHERE step = %s"), [step])
        if packed is None:
            return None
        try:
            unpacker = zlib.decompressobj()
            text = unpacker.decompress(packed, _STATE_LIMIT)
            if unpacker.unconsumed_tail:
                raise ValueError("it is too long")
            return _state(json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
            raise RestoreError(
                f"Database restore failed: what {self.book} says of a state is damaged: {error!s:.200}"
            ) from error

    def forget(self, session: Session, step: int) -> None:
        self._execute(session, "DELETE FROM {} WHERE step = %s", step)

    def _execute(self, session: Session, query: str, *arguments: Any) -> None:
        session.run(self._query(query), arguments)

    def _query(self, query: str) -> str:
        # A percent sign in the name is not the driver's.
        return query.format(qualified(self.book, "states").replace("%", "%%"))

    def remove(self, session: Session) -> None:
        """Drops everything of this run. What tells of the states goes last."""
        found = session.names("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA")
        step = re.compile(re.escape(self.book) + r"_[0-9]{1,6}")
        ours = [name for name in found if step.fullmatch(name)]
        for name in [*ours, *(name for name in found if name == self.book)]:
            session.run("SET foreign_key_checks = 0")
            session.run(f"DROP DATABASE IF EXISTS {identifier(name)}")

    @contextmanager
    def locked(self, session: Session, timeout: float) -> Iterator[None]:
        """Keeps out a statement that a process which is gone has sent, and that the server is still at.

        The server lets go of the lock at the end of the session that took it. Raises DatabaseBusy.
        """
        name = f"holdfast_{self._run}_{hashlib.sha256(self.book.encode()).hexdigest()[:16]}"
        other = session.value("SELECT IS_USED_LOCK(%s)", [name])
        if other is not None:
            try:
                session.run(f"KILL {int(other)}")
            except Refused as refusal:
                if refusal.code != NO_SUCH_THREAD:
                    raise
        if session.value("SELECT GET_LOCK(%s, %s)", [name, max(1, round(timeout))]) != 1:
            raise DatabaseBusy(f"Database restore failed: another restore is at work on {self.book}")
        yield


def _state(data: Any) -> State:
    tables = tuple(data["tables"])
    texts = (data["charset"], data["collation"], *tables)
    if not all(isinstance(text, str) for text in texts) or not isinstance(data["existed"], bool):
        raise TypeError("a state is made of texts")
    if data["existed"] and not all(_COLLATION.fullmatch(text) for text in texts[:2]):
        raise ValueError("a schema has a character set and a collation")
    programs = tuple(Program.from_json(item) for item in data["programs"])
    return State(data["existed"], data["charset"], data["collation"], tables, programs)
