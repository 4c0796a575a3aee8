"""A PostgreSQL database backed up and restored without a repository, and described for comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL

from conformance.places import Places
from conformance.source import drain
from holdfast.clock import system_clock
from holdfast.events import Emit, ignore
from holdfast.model import Entry
from holdfast.sources.postgres import PostgresSource, PostgresSwaps, PostgresTarget
from holdfast.transaction import Kinds, Swap

TIMEOUT = 20.0
Backup = tuple[Entry, bytes, dict[str, Any]]
"""The entry, the dump, and the moment as a manifest has it."""


def backup(url: URL, *, timeout: float = TIMEOUT) -> Backup:
    source = PostgresSource("main", url, timeout=timeout, clock=system_clock)
    [item] = source.scan(ignore)
    entry, content = item.open()
    assert content is not None
    data = drain(content)
    return entry, data, json.loads(json.dumps(source.record().moment))


def stage(
    url: URL,
    taken: Backup,
    staging: Any = None,
    *,
    create_database: bool = False,
    timeout: float = TIMEOUT,
    emit: Emit = ignore,
) -> Swap:
    entry, data, moment = taken
    target = PostgresTarget(url, moment, timeout=timeout, create_database=create_database)

    def read(entry: Entry) -> Iterator[bytes]:
        for start in range(0, len(data), 1 << 16):
            yield data[start : start + (1 << 16)]

    [swap] = target.stage(iter([entry]), read, staging or Places(), emit)
    return swap


def restore(url: URL, taken: Backup, **options: Any) -> Swap:
    """Stages and applies."""
    swap = stage(url, taken, **options)
    swap.apply()
    return swap


def kinds(url: URL, *, timeout: float = TIMEOUT) -> Kinds:
    return {"postgresql": PostgresSwaps(lambda: [url], timeout=timeout)}


def revived(url: URL, swap: Swap) -> Swap:
    """The swap as a process to come has it from the journal."""
    return kinds(url)["postgresql"].from_journal(json.loads(json.dumps(swap.to_journal())))


def places_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".holdfast-")]


def described(conninfo: str) -> dict[str, Any]:
    """Everything that a logical restore must bring back, without what it need not: OIDs, and where rows lie."""
    with psycopg.connect(conninfo, autocommit=True) as connection:

        def ask(statement: Any) -> list[tuple[Any, ...]]:
            return connection.execute(statement).fetchall()

        found: dict[str, Any] = {name: ask(statement) for name, statement in _CATALOG.items()}
        tables = ask(
            "SELECT format('%I.%I', n.nspname, c.relname), relkind FROM pg_class c "
            f"JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'm', 'S') AND {_OURS} ORDER BY 1"
        )
        for table, kind in tables:
            columns = "last_value, is_called" if kind == "S" else "t.*"
            found[f"rows of {table}"] = sorted(map(repr, ask(f"SELECT {columns} FROM {table} t")))
        found["large objects"] = ask(
            "SELECT oid, lo_get(oid), obj_description(oid, 'pg_largeobject'), pg_get_userbyid(lomowner) "
            "FROM pg_largeobject_metadata ORDER BY 1"
        )
        return found


Describe = Callable[[str], dict[str, Any]]

_OURS = "n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'"
_CATALOG: dict[str, Any] = {
    "schemas": f"SELECT nspname, pg_get_userbyid(nspowner), nspacl::text, obj_description(oid, 'pg_namespace') "
    f"FROM pg_namespace n WHERE {_OURS} ORDER BY 1",
    "relations": "SELECT n.nspname, relname, relkind, relpersistence, pg_get_userbyid(relowner), relacl::text, "
    "reloptions, relrowsecurity, pg_get_expr(relpartbound, c.oid), obj_description(c.oid, 'pg_class'), "
    "CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) WHEN relkind = 'i' THEN pg_get_indexdef(c.oid) "
    "WHEN relkind = 'p' THEN pg_get_partkeydef(c.oid) END "
    f"FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE {_OURS} ORDER BY 1, 2",
    "columns": "SELECT n.nspname, relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, "
    "attgenerated, attacl::text, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, attnum) "
    "FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = relnamespace "
    "LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = attnum "
    f"WHERE attnum > 0 AND NOT attisdropped AND {_OURS} ORDER BY 1, 2, attnum",
    "constraints": "SELECT n.nspname, conrelid::regclass::text, conname, pg_get_constraintdef(c.oid) "
    f"FROM pg_constraint c JOIN pg_namespace n ON n.oid = connamespace WHERE {_OURS} ORDER BY 1, 2, 3",
    "triggers": "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger "
    "WHERE NOT tgisinternal ORDER BY 1, 2",
    "functions": "SELECT n.nspname, proname, pg_get_function_identity_arguments(p.oid), prosrc, prokind, "
    "pg_get_userbyid(proowner), proacl::text, obj_description(p.oid, 'pg_proc') "
    f"FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE {_OURS} ORDER BY 1, 2, 3",
    "types": "SELECT n.nspname, typname, typtype, pg_get_userbyid(typowner), "
    "(SELECT array_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid) "
    f"FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE {_OURS} ORDER BY 1, 2",
    "sequences": "SELECT seqrelid::regclass::text, seqstart, seqincrement, seqcycle FROM pg_sequence ORDER BY 1",
    "policies": "SELECT schemaname, tablename, policyname, roles::text, qual FROM pg_policies ORDER BY 1, 2, 3",
    "extensions": "SELECT extname, extversion FROM pg_extension ORDER BY 1",
    "defaults": "SELECT pg_get_userbyid(defaclrole), defaclobjtype, defaclacl::text "
    "FROM pg_default_acl ORDER BY 1, 2",
    "statistics": "SELECT stxname, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext ORDER BY 1",
    "publications": "SELECT pubname, puballtables FROM pg_publication ORDER BY 1",
    "database": "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, "
    "datlocprovider, daticulocale, datconnlimit, datallowconn, "
    "(SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a), shobj_description(d.oid, 'pg_database') "
    "FROM pg_database d WHERE datname = current_database()",
    "settings": "SELECT setrole::regrole::text, (SELECT array_agg(c ORDER BY c) FROM unnest(setconfig) c) "
    "FROM pg_db_role_setting "
    "JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database() ORDER BY 1",
}
