"""What a backup of a PostgreSQL database and a restore to it need, looked at beforehand."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.durable import free_bytes, temp_directory
from holdfast.errors import DatabaseError
from holdfast.model import Finding
from holdfast.sources.postgres._connection import Client, Server, Session, check_dump_client

CHECK = "Database check failed"
_NAMED = 5

_UNREADABLE = """
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
  AND NOT (has_schema_privilege(n.oid, 'USAGE')
           AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                              ELSE has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid) END)
ORDER BY 1
"""
"""A view or foreign table is not read, but pg_dump locks it, and that takes the same right."""

_UNREADABLE_OBJECTS = """
SELECT count(*) FROM pg_largeobject_metadata m
WHERE current_setting('lo_compat_privileges') = 'off'
  AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
  AND NOT pg_has_role(m.lomowner, 'USAGE')
  AND NOT EXISTS (
      SELECT FROM aclexplode(m.lomacl) a
      WHERE a.privilege_type = 'SELECT'
        AND CASE a.grantee WHEN 0 THEN true ELSE pg_has_role(a.grantee, 'USAGE') END)
"""
"""pg_read_all_data does not reach them: https://www.postgresql.org/docs/current/predefined-roles.html."""

_RIGHTS = """
SELECT r.rolsuper OR r.rolcreatedb AND pg_has_role(d.datdba, 'USAGE'), r.rolname, pg_database_size(d.oid)::int8
FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()
"""


def check(subject: str, server: Server) -> Iterator[Finding]:
    """See `holdfast.sources.base.Source.check`. Raises SourceMissing, DatabaseError where it is not reachable."""
    with server.session(CHECK) as session:
        [(may_rename, user, size)] = session.run(_RIGHTS)
        yield Finding(subject, "ok", f"PostgreSQL {session.version}, {size / 1e6:,.1f} MB")
        yield from _programs(subject, session)
        yield _readable(subject, session, user)
        if may_rename:
            yield Finding(subject, "ok", f"role {user} may restore it whole, beside the live one")
        else:
            yield Finding(
                subject,
                "warning",
                f"role {user} may not create and rename databases, so a restore would load into the live one, in a "
                "single transaction: ALTER ROLE … CREATEDB, and make it the owner",
            )
        directory, room = temp_directory(), free_bytes(temp_directory())
        # Without indexes a dump is mostly smaller than the database.
        if room < size:
            yield Finding(
                subject, "warning", f"{directory} may have too little room to restore it: set TMPDIR"
            )
        else:
            yield Finding(subject, "ok", f"{directory} has room to restore it")


def _programs(subject: str, session: Session) -> Iterator[Finding]:
    try:
        dump, restore = Client.find("pg_dump", CHECK), Client.find("pg_restore", CHECK)
        check_dump_client(dump, session)
        if restore.major < dump.major:
            yield Finding(
                subject,
                "FAILED",
                f"pg_restore {restore.version} cannot read what pg_dump {dump.version} makes",
            )
        else:
            yield Finding(subject, "ok", f"pg_dump {dump.version}, pg_restore {restore.version}")
    except DatabaseError as error:
        yield Finding(subject, "FAILED", f"{error}. {error.hint}".strip())


def _readable(subject: str, session: Session, user: str) -> Finding:
    unreadable = [str(name) for (name,) in session.run(_UNREADABLE)]
    [(objects,)] = session.run(_UNREADABLE_OBJECTS)
    if objects:
        unreadable.append(f"{objects} large objects")
    if not unreadable:
        return Finding(subject, "ok", f"role {user} may read every table")
    names = ", ".join(unreadable[:_NAMED]) + (" …" if len(unreadable) > _NAMED else "")
    return Finding(subject, "FAILED", f"role {user} may not read all of: {names}")
