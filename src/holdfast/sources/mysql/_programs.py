"""Views, triggers, routines and events: read from a schema or from a dump, and made in another schema.

``RENAME TABLE`` moves none of them, so a restore makes them anew. Each is kept as the bytes that the server stores,
with the settings under which it was made: a statement means something else under another ``sql_mode`` or character
set. Where a view names the schema that it lies in (``SELECT old.f(x)``), the name stands as `_HERE`, and becomes that
of the schema in which it is made. The texts of routines, triggers' bodies and events are kept as they are.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from holdfast.sources.mysql._session import MODE, NOT_PRIVILEGED, Refused, Session, identifier, qualified

TRIGGER, VIEW, EVENT = "TRIGGER", "VIEW", "EVENT"
KINDS = ("FUNCTION", "PROCEDURE", "PACKAGE", "PACKAGE BODY", VIEW, TRIGGER, EVENT)
"""In the order in which they are made."""

_HERE = b"`\0`"
_LIMIT = 64 << 20
_WORD = re.compile(r"[A-Za-z0-9_]{0,64}")
_SETTING = re.compile(r"[A-Za-z0-9_,+:/ -]{0,1000}")

_QUOTED = rb"`(?:[^`]|``)+`"
_ANY_NAME = rb'(?:`(?:[^`]|``)+`|"(?:[^"]|"")+"|[\w$\x80-\xff]+)'
_GAP = rb"(?:\s|/\*.*?\*/|--\s[^\n]*\n|#[^\n]*\n)+"
_NO_GAP = _GAP[:-1] + b"*"
_EITHER = rb'(?:`(?:[^`]|``)+`|"(?:[^"]|"")+")'
"""The server writes the names of a program as its own sql_mode has them."""
_DEFINER = rb"DEFINER\s*=\s*(" + _EITHER + rb"(?:@" + _EITHER + rb")?|\S+)\s+"
_CREATE_TRIGGER = re.compile(
    rb"\s*CREATE" + _GAP + rb"(?:OR" + _GAP + rb"REPLACE" + _GAP + rb")?(?:" + _DEFINER + rb")?"
    rb"TRIGGER" + _GAP + rb"(?:IF" + _GAP + rb"NOT" + _GAP + rb"EXISTS" + _GAP + rb")?"
    rb"(?:" + _ANY_NAME + _NO_GAP + rb"\." + _NO_GAP + rb")?(" + _ANY_NAME + rb")"
    + _GAP + rb"(BEFORE|AFTER)" + _GAP + rb"(INSERT|UPDATE|DELETE)" + _GAP + rb"ON" + _GAP +
    rb"(?:" + _ANY_NAME + _NO_GAP + rb"\." + _NO_GAP + rb")?(" + _ANY_NAME + rb")"
    + _GAP + rb"FOR" + _GAP + rb"EACH" + _GAP + rb"ROW\b(.*)",
    re.DOTALL | re.IGNORECASE,
)  # fmt: skip
"""https://dev.mysql.com/doc/refman/8.4/en/create-trigger.html. The server keeps what the user wrote, which may name a
schema."""
_CREATE = re.compile(
    rb"CREATE (?:OR REPLACE )?(?:ALGORITHM=\w+ )?(?:" + _DEFINER + rb")?(?:SQL SECURITY \w+ )?"
    rb"(?:AGGREGATE )?(VIEW|PROCEDURE|FUNCTION|PACKAGE BODY|PACKAGE|EVENT)\s+(" + _EITHER + rb")(?!\s*\.)",
    re.IGNORECASE,
)
_EVENT_STATUS = re.compile(
    rb"( ON SCHEDULE (?:AT '[^']*'|EVERY (?:'[^']*'|[0-9]+) [A-Z_]+(?: STARTS '[^']*')?(?: ENDS '[^']*')?)"
    rb" ON COMPLETION (?:NOT )?PRESERVE )(ENABLE|DISABLE(?: ON (?:SLAVE|REPLICA))?)\b"
)
_PART = re.compile(rb"'(?:[^'\\]++|\\.|'')*+'|" + _QUOTED, re.DOTALL)
_LONGER = re.compile(rb"\." + _QUOTED + rb"[(.]")
"""After a schema, and not after a table: a function, or a table with one of its columns."""
_THREE = re.compile(rb"(" + _QUOTED + rb")\." + _QUOTED + rb"\." + _QUOTED)
_OWN_TABLE = re.compile(re.escape(_HERE) + rb"\.(?!" + _QUOTED + rb"\()")


@dataclass(frozen=True, slots=True)
class Program:
    """A view, trigger, routine or event."""

    kind: str
    """One of `KINDS`."""
    name: str
    text: bytes
    """A CREATE statement in its own character set, names without a schema."""
    client: str
    """``character_set_client``, that of `text`."""
    connection: str
    """``collation_connection``."""
    sql_mode: str = ""
    database: str = ""
    """The schema's collation when it was made. Views have none."""
    time_zone: str = ""
    """Of events."""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    @property
    def definer(self) -> str:
        """As in SQL; empty where there is none."""
        found = (_CREATE_TRIGGER if self.kind == TRIGGER else _CREATE).match(self.text)
        return (found[1] or b"").decode("utf-8", "replace") if found else ""

    def without_definer(self) -> Program:
        """The same, of whoever makes it."""
        return replace(
            self, text=re.sub(rb"\A(CREATE .*?)" + _DEFINER, rb"\1", self.text, count=1, flags=re.DOTALL)
        )

    def with_status(self, status: bytes) -> Program:
        """An event that is ENABLE, DISABLE…"""
        return replace(self, text=_EVENT_STATUS.sub(rb"\1" + status, self.text, count=1))

    @property
    def status(self) -> bytes:
        """Of an event. Raises ValueError for one that is not written as the server does."""
        found = _EVENT_STATUS.search(self.text)
        if found is None:
            raise ValueError(f"the schedule of event {self.name} is not understood")
        return found[2]

    def to_json(self) -> dict[str, str]:
        return {
            "kind": self.kind,
            "name": self.name,
            "text": base64.b64encode(self.text).decode("ascii"),
            "client": self.client,
            "connection": self.connection,
            "sql_mode": self.sql_mode,
            "database": self.database,
            "time_zone": self.time_zone,
        }

    @classmethod
    def from_json(cls, data: Any) -> Program:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError."""
        if not all(isinstance(value, str) and len(value) < _LIMIT for value in data.values()):
            raise TypeError("a program is made of texts")
        return parsed(
            base64.b64decode(data["text"], validate=True),
            client=data["client"],
            connection=data["connection"],
            sql_mode=data["sql_mode"],
            database=data["database"],
            time_zone=data["time_zone"],
        )


def parsed(
    text: bytes, *, client: str, connection: str, sql_mode: str = "", database: str = "", time_zone: str = ""
) -> Program:
    """A program from its CREATE statement. Raises ValueError for what is none, or has settings that are none."""
    text = text.strip()
    if not (_WORD.fullmatch(client) and _WORD.fullmatch(connection) and _WORD.fullmatch(database)):
        raise ValueError("that is no character set")
    if not (_SETTING.fullmatch(sql_mode) and _SETTING.fullmatch(time_zone)):
        raise ValueError("that is no sql_mode or time_zone")
    if found := _CREATE_TRIGGER.fullmatch(text):
        definer = b"DEFINER=" + found[1] + b" " if found[1] else b""
        name, table = _plain(found[2]), _plain(found[5])
        head = b"CREATE %bTRIGGER %b %b %b ON %b FOR EACH ROW" % (
            definer,
            identifier(name).encode("utf-8", "surrogateescape"),
            found[3].upper(),
            found[4].upper(),
            identifier(table).encode("utf-8", "surrogateescape"),
        )
        text, kind = head + found[6], TRIGGER
    elif found := _CREATE.match(text):
        name, kind = _plain(found[3]), found[2].upper().decode("ascii")
    else:
        raise ValueError(f"no program: {text[:60]!r}")
    return Program(kind, name, text, client, connection, sql_mode, database, time_zone)


def capture(session: Session, schema: str) -> list[Program]:
    """All programs of a schema, in the order of `KINDS`. Raises Refused, and ValueError for one that cannot be read
    whole: for want of privileges, or because it is written in a way that is not known here."""
    session.run(f"USE {identifier(schema)}")
    programs: list[Program] = []
    for kind, name in session.rows(
        "SELECT ROUTINE_TYPE, ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = %s"
        " ORDER BY FIELD(ROUTINE_TYPE, 'FUNCTION', 'PROCEDURE', 'PACKAGE', 'PACKAGE BODY'), ROUTINE_NAME",
        [schema],
    ):
        row = _show(session, schema, kind, name)
        programs.append(_of_row(kind, name, row[2], row[3:6], sql_mode=row[1]))
    for name in session.names(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_TYPE = 'VIEW'"
        " ORDER BY TABLE_NAME",
        [schema],
    ):
        row = _show(session, schema, VIEW, name)
        text = None if row[1] is None else generalized(row[1], schema)
        programs.append(_of_row(VIEW, name, text, (row[2], row[3], b"")))
    for name in session.names(
        "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = %s"
        " ORDER BY EVENT_OBJECT_TABLE, ACTION_TIMING, EVENT_MANIPULATION, ACTION_ORDER",
        [schema],
    ):
        row = _show(session, schema, TRIGGER, name)
        programs.append(_of_row(TRIGGER, name, row[2], row[3:6], sql_mode=row[1]))
    for name in session.names(
        "SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = %s ORDER BY EVENT_NAME",
        [schema],
    ):
        row = _show(session, schema, EVENT, name)
        programs.append(_of_row(EVENT, name, row[3], row[4:7], sql_mode=row[1], time_zone=row[2]))
    return programs


def create(session: Session, schema: str, program: Program, collation: str) -> None:
    """Makes a program in a schema whose default collation is `collation`. Raises Refused."""
    other = program.database if program.database not in ("", collation) else ""
    session.run(f"USE {identifier(schema)}")
    if other:
        _set_collation(session, schema, other)
    try:
        session.run(
            "SET character_set_client = %s, collation_connection = %s, sql_mode = %s",
            [program.client, program.connection, program.sql_mode],
        )
        if program.time_zone:
            session.run("SET time_zone = %s", [program.time_zone])
        session.run(program.text.replace(_HERE, identifier(schema).encode()))
    finally:
        session.run("SET NAMES utf8mb4")
        session.run(f"SET sql_mode = '{MODE}'")
        if other:
            _set_collation(session, schema, collation)


def create_all(
    session: Session,
    schema: str,
    programs: Sequence[Program],
    collation: str,
    refused: Callable[[Program, Refused], Program | None],
) -> None:
    """Makes programs, each after those it rests on. `refused` is asked about one that could not be made: it gives
    another in its place, None to go without, or raises."""
    waiting = sorted(programs, key=lambda program: KINDS.index(program.kind))
    while waiting:
        failed: list[tuple[Program, Refused]] = []
        for program in waiting:
            try:
                create(session, schema, program, collation)
            except Refused as refusal:
                failed.append((program, refusal))
        if len(failed) == len(waiting):
            waiting = [other for pair in failed if (other := refused(*pair)) is not None]
        else:
            waiting = [program for program, _ in failed]


def drop(session: Session, schema: str, program: Program) -> None:
    """Drops a program, where it is there. Raises Refused."""
    if program.kind.startswith("PACKAGE"):
        session.run("SET sql_mode = 'ORACLE'")  # else the word is unknown
    try:
        session.run(f"DROP {program.kind} IF EXISTS {qualified(schema, program.name)}")
    finally:
        session.run(f"SET sql_mode = '{MODE}'")


def is_of_another(refusal: Refused) -> bool:
    """Whether a program could not be made because its definer is not our user."""
    return refusal.code == NOT_PRIVILEGED


def generalized(text: bytes, schema: str) -> bytes:
    """A view's text without the name of the schema that it lies in, which is put in again where it is made.

    The server writes names in backticks, and that of a function's schema always. A table's alias may be called as
    the schema is; then what begins with it is a column, and stays.
    """
    here = identifier(schema).encode("utf-8", "surrogateescape")
    if here not in text:
        return text
    alias = re.search(rb"[`)] " + re.escape(here) + rb"(?!\.)", text) is not None
    result = bytearray()
    at = 0
    for found in _PART.finditer(text):
        result += text[at : found.start()]
        at = found.end()
        inner = text[found.start() - 1 : found.start()] == b"."
        is_schema = found[0] == here and not inner and text[at : at + 1] == b"."
        if is_schema and (not alias or _LONGER.match(text, at)):
            result += _HERE
        else:
            result += found[0]
    general = bytes(result + text[at:])
    if any(found[1] != _HERE for found in _THREE.finditer(general)):
        return general
    # The server writes its own schema before some names or none, depending on whether they lead to anything.
    return _OWN_TABLE.sub(b"", general)


def _set_collation(session: Session, schema: str, collation: str) -> None:
    session.run(f"ALTER DATABASE {identifier(schema)} COLLATE {identifier(collation)}")


def _show(session: Session, schema: str, kind: str, name: str) -> tuple[bytes | None, ...]:
    rows = session.raw(f"SHOW CREATE {kind} {qualified(schema, name)}")
    if not rows:
        raise ValueError(f"{kind.lower()} {name} cannot be read")
    return rows[0]


def _of_row(
    kind: str,
    name: str,
    text: bytes | None,
    settings: Sequence[bytes | None],
    *,
    sql_mode: bytes | None = b"",
    time_zone: bytes | None = b"",
) -> Program:
    if text is None:
        raise ValueError(f"the text of {kind.lower()} {name} is not shown to our user")
    client, connection, database = ((value or b"").decode("ascii") for value in settings)
    return parsed(
        text,
        client=client,
        connection=connection,
        database=database,
        sql_mode=(sql_mode or b"").decode("ascii"),
        time_zone=(time_zone or b"").decode("ascii"),
    )


def _plain(name: bytes) -> str:
    quote = name[:1]
    if quote in (b"`", b'"'):
        name = name[1:-1].replace(quote * 2, quote)
    return name.decode("utf-8", "surrogateescape")
