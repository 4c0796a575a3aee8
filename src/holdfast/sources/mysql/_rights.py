"""What our user must be allowed to do, so that a backup is whole and a restore can be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.errors import DatabaseError
from holdfast.sources._server import Address
from holdfast.sources.mysql._session import (
    DENIED_IN_SCHEMA,
    DENIED_ON_TABLE,
    NO_TABLE,
    Refused,
    Session,
    identifier,
    privileges,
)

DUMP_RIGHTS = ("SELECT", "SHOW VIEW", "TRIGGER", "EVENT")
RESTORE_RIGHTS = (
    "SELECT",
    "INSERT",
    "DELETE",
    "CREATE",
    "DROP",
    "ALTER",
    "INDEX",
    "REFERENCES",
    "LOCK TABLES",
    "CREATE VIEW",
    "SHOW VIEW",
    "CREATE ROUTINE",
    "ALTER ROUTINE",
    "EXECUTE",
    "TRIGGER",
    "EVENT",
)


def missing_rights(session: Session, schema: str, rights: Sequence[str]) -> list[str]:
    """Which of these our user lacks for a schema; none where roles make that hard to tell. Raises Refused."""
    held = privileges(session, schema)
    return [] if held is None else [right for right in rights if right not in held]


def check_dump_rights(session: Session, address: Address, doing: str) -> None:
    """Raises DatabaseError where something would be missing from a dump without a word, as triggers are."""
    if missing := missing_rights(session, address.database, DUMP_RIGHTS):
        raise DatabaseError(
            f"{doing}: our user lacks {', '.join(missing)} on {address}, and what it does not see would be missing",
            hint=f"GRANT {', '.join(missing)} ON {identifier(address.database)}.* to it.",
        )


def find_hidden_routines(session: Session, schema: str) -> Iterator[str]:
    """Why routines could be missing from a dump; nothing where our user sees them all. Raises Refused."""
    if not session.is_mariadb:
        held = privileges(session, schema)
        if held is None or {"SELECT", "SHOW_ROUTINE"} & set(
            session.names("SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES")
        ):
            return
    else:
        try:
            session.value("SELECT 1 FROM mysql.proc LIMIT 1")
        except Refused as refusal:
            if refusal.code not in (DENIED_ON_TABLE, DENIED_IN_SCHEMA, NO_TABLE):
                raise
        else:
            return
        if "SHOW CREATE ROUTINE" in (privileges(session, schema) or ()):
            return
    grant = "SELECT ON mysql.proc" if session.is_mariadb else "SHOW_ROUTINE ON *.*"
    yield f"procedures and functions of {schema} that our user may not see would be missing: GRANT {grant} to it"
