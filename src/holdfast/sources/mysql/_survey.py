"""What a schema looks like before and after its dump is made."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.sources.mysql._session import NO_SCHEMA, Refused, Session, qualified

_FORMS = (
    "SELECT TABLE_NAME, TABLE_TYPE, CREATE_TIME FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s",
    "SELECT ROUTINE_NAME, ROUTINE_TYPE, LAST_ALTERED FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = %s",
    "SELECT TRIGGER_NAME, EVENT_OBJECT_TABLE, CREATED FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = %s",
    "SELECT EVENT_NAME, STATUS, LAST_ALTERED FROM information_schema.EVENTS WHERE EVENT_SCHEMA = %s",
)


@dataclass(frozen=True, slots=True)
class Survey:
    """A schema but for its rows; equal to a later one when nothing was made, altered or dropped between them."""

    database: str
    flavour: str
    version: str
    charset: str
    collation: str
    tables: tuple[str, ...]
    """Those that hold rows, sequences apart."""
    unsafe: tuple[str, ...]
    """Of those, the ones whose engine knows no transactions."""
    has_history: bool
    """There are tables WITH SYSTEM VERSIONING."""
    tells_position: bool
    """The server tells, within a transaction, which position of its binary log that is of."""
    forms: tuple[tuple[str, ...], ...]


def survey(session: Session, database: str) -> Survey:
    """Looks at a schema. Raises Refused, with `NO_SCHEMA` where there is none."""
    settings = session.rows(
        "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA"
        " WHERE SCHEMA_NAME = %s",
        [database],
    )
    if not settings:
        raise Refused(NO_SCHEMA, "there is no such database")
    tables = session.rows(
        "SELECT t.TABLE_NAME, t.TABLE_TYPE, COALESCE(e.TRANSACTIONS, 'NO') FROM information_schema.TABLES t"
        " LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE"
        " WHERE t.TABLE_SCHEMA = %s AND t.TABLE_TYPE NOT IN ('VIEW', 'SEQUENCE') ORDER BY t.TABLE_NAME",
        [database],
    )
    return Survey(
        database,
        session.flavour,
        session.version,
        charset=settings[0][0],
        collation=settings[0][1],
        tables=tuple(name for name, _, _ in tables),
        unsafe=tuple(name for name, _, transactions in tables if transactions != "YES"),
        has_history=any(kind == "SYSTEM VERSIONED" for _, kind, _ in tables),
        # https://mariadb.com/kb/en/enhancements-for-start-transaction-with-consistent-snapshot/
        tells_position=bool(session.rows("SHOW STATUS LIKE 'binlog_snapshot_file'"))
        and session.variable("log_bin") == "1",
        forms=tuple(
            sorted(
                tuple(str(part) for part in row) for form in _FORMS for row in session.rows(form, [database])
            )
        ),
    )


def hold_still(session: Session, database: str, tables: tuple[str, ...]) -> None:
    """Waits until nobody has locked or alters one of the tables: the dump's own program would wait for ever.

    Raises Refused.
    """
    for name in tables:
        session.rows(f"SELECT 1 FROM {qualified(database, name)} LIMIT 0")  # noqa: S608  quoted
