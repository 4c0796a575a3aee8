"""A scratch database: made as the one in the backup was, filled, and compared with what the backup says it holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any

from holdfast.errors import CorruptBackup, DatabaseError, RestoreError
from holdfast.events import Emit, Warned
from holdfast.sources.postgres._connection import RESTORE, Server, Session, identifier, sql
from holdfast.sources.postgres._moment import Properties, Rows, Setting, count, roots

Rowset = list[tuple[Any, ...]]
_LISTS = {
    "local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
    "temp_tablespaces", "unix_socket_directories",
}  # fmt: skip
"""Settings whose value is a list of names, each quoted by itself: pg_dump's variable_is_guc_list_quote()."""
_LISTED = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,"\s][^,"]*?))\s*(?:,|$)')


def create(session: Session, name: str, wanted: Properties, emit: Emit) -> None:
    """Makes an empty database, closed to whom the backup's was closed. Warns of an owner that is not to be had.

    Raises RestoreError, DatabaseError, NoSpace.
    """
    owner = _owner(session, wanted, emit)
    clauses: list[sql.Composable] = [
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
            identifier(name),
            sql.Literal(wanted.encoding),
            sql.Literal(wanted.collate),
            sql.Literal(wanted.ctype),
        )
    ]
    if owner is not None:
        clauses.append(sql.SQL("OWNER {}").format(identifier(owner)))
    if session.major >= 15:
        clauses.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.SQL(_provider(wanted))))
        if wanted.locale is not None and wanted.provider == "icu":
            clauses.append(sql.SQL("ICU_LOCALE {}").format(sql.Literal(wanted.locale)))
        if wanted.locale is not None and wanted.provider == "builtin":
            clauses.append(sql.SQL("BUILTIN_LOCALE {}").format(sql.Literal(wanted.locale)))
        if wanted.rules is not None:
            clauses.append(sql.SQL("ICU_RULES {}").format(sql.Literal(wanted.rules)))
    if wanted.tablespace != "pg_default":
        if session.run("SELECT 1 FROM pg_tablespace WHERE spcname = %s", wanted.tablespace):
            clauses.append(sql.SQL("TABLESPACE {}").format(identifier(wanted.tablespace)))
        else:
            emit(
                Warned(
                    f"tablespace {wanted.tablespace} does not exist here: the database is in the default one"
                )
            )
    try:
        session.run(sql.SQL(" ").join(clauses))
    except DatabaseError as error:
        if "locale" not in str(error) and "collat" not in str(error):
            raise
        raise RestoreError(
            str(error),
            hint=f"The backup's database has the locale {wanted.collate}. Install it on the database server.",
        ) from error
    # Whoever loads it need not wait for each commit to be durable: a crash leaves a database that nobody uses, and
    # the renames, which wait, make durable all that was logged before them
    # (https://www.postgresql.org/docs/current/wal-async-commit.html).
    session.run(sql.SQL("ALTER DATABASE {} SET synchronous_commit TO off").format(identifier(name)))
    _grant(session, name, wanted, emit)


def finish(session: Session, name: str, wanted: Properties, emit: Emit) -> None:
    """Gives it the rest of its properties, which would be in the way of loading it. Raises DatabaseError."""
    database = identifier(name)
    session.run(sql.SQL("ALTER DATABASE {} RESET synchronous_commit").format(database))
    if wanted.comment is not None:
        session.run(sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, sql.Literal(wanted.comment)))
    if wanted.limit != -1:
        session.run(
            sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(database, sql.Literal(wanted.limit))
        )
    roles = _roles(session)
    for setting in wanted.settings:
        if setting.role and setting.role not in roles:
            emit(
                Warned(f"role {setting.role} does not exist here: its setting of {setting.name} is left out")
            )
            continue
        whose = sql.SQL("ALTER DATABASE {}").format(database)
        if setting.role:
            whose = sql.SQL("ALTER ROLE {} IN DATABASE {}").format(identifier(setting.role), database)
        try:
            session.run(sql.SQL("{} SET {} TO {}").format(whose, identifier(setting.name), _value(setting)))
        except DatabaseError as error:
            emit(Warned(f"the setting {setting.name} of the database did not come back: {error}"))


def check_rows(session: Session, expected: Rows, what: str) -> None:
    """Raises CorruptBackup where a database does not hold the rows that the backup says it has."""
    root_of = roots(session)
    wanted: Counter[int] = Counter()
    found: Counter[int] = Counter()
    names: dict[int, str] = {}
    for schema, table in ((schema, table) for schema, inner in expected.items() for table in inner):
        root = root_of.get((schema, table))
        if root is None:
            raise CorruptBackup(f"{what} does not have the table {schema}.{table}, which was in it")
        wanted[root] += expected[schema][table]
        found[root] += count(session, schema, table)
        names.setdefault(root, f"{schema}.{table}")
    for root, number in wanted.items():
        if found[root] != number:
            raise CorruptBackup(f"{what} has {found[root]} rows in {names[root]}, and not {number} as it had")


@contextmanager
def analyzing(server: Server, database: str, run: str, emit: Emit, *, sessions: int) -> Iterator[None]:
    """Lets the planner know what is in it: until then queries may take far longer than before.

    That goes on in so many sessions beside what is done meanwhile, and has ended when this ends. Raises DatabaseError
    where they cannot be opened.
    """
    with ExitStack() as stack:
        opened = [
            stack.enter_context(server.session(RESTORE, database, run=run)) for _ in range(max(1, sessions))
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(opened), "analyze"))
        statements = _analyses(opened[0], len(opened))
        running = {
            pool.submit(session.run, statement): session
            for session, statement in zip(opened, statements, strict=False)
        }
        try:
            yield
            wait(running)
        finally:
            _cancel(running)
        for analysis in running:
            try:
                analysis.result()
            except DatabaseError as error:
                emit(Warned(f"the planner's statistics could not be made: {error}"))


def _analyses(session: Session, number: int) -> list[sql.SQL | sql.Composed]:
    """At most `number` statements that take as long as one another, and together do what a bare ANALYZE does."""
    if session.major < 11:  # which takes one table at a time
        return [sql.SQL("ANALYZE")]
    tables = [sql.Identifier(schema, name) for schema, name in session.run(_ANALYZED)]
    shares = filter(None, (tables[start::number] for start in range(number)))
    return [sql.SQL("ANALYZE {}").format(sql.SQL(", ").join(share)) for share in shares]


def _cancel(running: dict[Future[Rowset], Session]) -> None:
    # A connection must not be closed while another thread uses it.
    while left := [analysis for analysis in running if not analysis.done()]:
        for analysis in left:
            running[analysis].cancel()
        wait(left, timeout=0.05)


_ANALYZED = """
SELECT n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't'
  AND (pg_has_role(c.relowner, 'USAGE') OR NOT c.relisshared
       AND pg_has_role((SELECT datdba FROM pg_database WHERE datname = current_database()), 'USAGE'))
ORDER BY pg_relation_size(c.oid) DESC
"""
"""What a bare ANALYZE looks at: tables of whose owner, or of the database's, one has the rights."""


def make_room(session: Session) -> None:
    """Empties a database on a disk that is full. To drop one, the server first writes a checkpoint, and where not
    even that has room, it crashes (https://www.postgresql.org/docs/current/disk-full.html). Raises DatabaseError."""
    for schema, table in session.run(_LARGEST_FIRST):
        session.run(sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier(schema, table)))


_LARGEST_FIRST = """
SELECT n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
ORDER BY pg_total_relation_size(c.oid) DESC LIMIT 100
"""


def _provider(wanted: Properties) -> str:
    # A word of SQL, not a value: only these three are ever sent.
    return {"libc": "libc", "icu": "icu", "builtin": "builtin"}[wanted.provider]


def _roles(session: Session) -> set[str]:
    return {str(name) for (name,) in session.run("SELECT rolname FROM pg_roles")}


def _owner(session: Session, wanted: Properties, emit: Emit) -> str | None:
    rows = session.run("SELECT pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = %s", wanted.owner)
    if rows and rows[0][0]:
        return wanted.owner
    reason = "may not be given the database by us" if rows else "does not exist here"
    user = session.run("SELECT current_user::text")[0][0]
    emit(Warned(f"role {wanted.owner}, the owner of the database, {reason}: it belongs to {user}"))
    return None


def _grant(session: Session, name: str, wanted: Properties, emit: Emit) -> None:
    if wanted.acl is None:
        return
    database = identifier(name)
    [(owner,)] = session.run(
        "SELECT r.rolname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = %s", name
    )
    roles = _roles(session)
    session.run(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(database, identifier(owner)))
    for grant in wanted.acl:
        role = owner if grant.role == wanted.owner else grant.role
        if role and role not in roles:
            emit(Warned(f"role {role} does not exist here: its right to {grant.privilege} is left out"))
            continue
        session.run(
            sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(
                    {"CREATE": "CREATE", "CONNECT": "CONNECT", "TEMPORARY": "TEMPORARY"}[grant.privilege]
                ),
                database,
                identifier(role) if role else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if grant.with_option else ""),
            )
        )


def _value(setting: Setting) -> sql.Composable:
    if setting.name not in _LISTS:
        return sql.Literal(setting.value)
    names = [quoted.replace('""', '"') or plain for quoted, plain in _LISTED.findall(setting.value)]
    return sql.SQL(", ").join(map(sql.Literal, names or [""]))
