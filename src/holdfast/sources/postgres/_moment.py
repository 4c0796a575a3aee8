"""Which moment of a PostgreSQL database a backup is, and what belongs to the database that no dump has.

``moment`` in a backup's manifest::

    {"server": "15.4 (Debian 15.4-1)", "major": 15, "client": 15,
     "snapshot": "00000003-0000001B-1", "lsn": "0/16B3748",
     "rows": {"public": {"item": 3}}, "roles": ["service"],
     "database": {"owner": "service", "encoding": "UTF8", "collate": "C.UTF-8", "ctype": "C.UTF-8",
                  "provider": "libc", "locale": null, "rules": null, "tablespace": "pg_default", "limit": -1,
                  "comment": null, "acl": null or [["grantee", "CONNECT", false], …],
                  "settings": [["role", "name", "value"], …]}}

A grantee, or a setting's role, that is empty is everybody. See https://www.postgresql.org/docs/current/catalog-pg-database.html.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from holdfast.errors import CorruptBackup
from holdfast.sources.postgres._connection import Session, sql

TABLES = 1000
"""Tables whose rows are counted, at most."""
NAME_LENGTH = 200
TEXT_LENGTH = 10_000
ITEMS = 10_000
"""Roles, grants or settings, at most."""

Rows = dict[str, dict[str, int]]
"""Rows by schema and table."""

_TABLES = """
SELECT c.oid::int8, n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
  AND (c.relpersistence = 'p' OR c.relpersistence = 'u' AND NOT pg_is_in_recovery())
  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
  AND length(n.nspname) <= %s AND length(c.relname) <= %s
ORDER BY n.nspname, c.relname
LIMIT %s
"""
"""Tables that have rows of their own. Those of extensions are left out: a dump has at most some of their rows."""

_ROOTS = """
SELECT n.nspname, c.relname, coalesce(pg_partition_root(c.oid), c.oid)::int8
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
"""
_ROOTS_BEFORE_12 = _ROOTS.replace("coalesce(pg_partition_root(c.oid), c.oid)", "c.oid")

_ROLES = """
SELECT DISTINCT r.rolname
FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
WHERE s.refclassid = 'pg_authid'::regclass
  AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY 1 LIMIT %s
"""
"""Who owns something in this database or has rights on it. The role that made the server is not among them."""

_DATABASE = """
SELECT r.rolname, pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, {provider}, {locale}, {rules},
       t.spcname, d.datconnlimit, shobj_description(d.oid, 'pg_database')
FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba JOIN pg_tablespace t ON t.oid = d.dattablespace
WHERE d.datname = current_database()
"""
_ACL = """
SELECT coalesce(r.rolname, ''), a.privilege_type, a.is_grantable
FROM pg_database d, LATERAL aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE d.datname = current_database() AND (a.grantee = 0 OR r.rolname IS NOT NULL)
ORDER BY 1, 2, 3
"""
_SETTINGS = """
SELECT coalesce(r.rolname, ''), split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)
FROM pg_db_role_setting s
JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()
LEFT JOIN pg_roles r ON r.oid = s.setrole, LATERAL unnest(s.setconfig) c
WHERE s.setrole = 0 OR r.rolname IS NOT NULL
ORDER BY 1, 2
"""
_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
_PRIVILEGES = {"CREATE", "CONNECT", "TEMPORARY"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grant:
    """A right on a database. `role` is empty for everybody."""

    role: str
    privilege: str
    with_option: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """``ALTER DATABASE … SET``, for everybody where `role` is empty."""

    role: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Properties:
    """What a database is besides what is in it."""

    owner: str
    encoding: str
    collate: str
    ctype: str
    provider: str
    """``libc``, ``icu``, ``builtin``."""
    locale: str | None
    """Of a provider other than libc."""
    rules: str | None
    tablespace: str
    limit: int
    """Connections; -1 for no limit."""
    comment: str | None
    acl: tuple[Grant, ...] | None
    """None where nothing was ever granted or revoked."""
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """What a dump is known by."""

    server: str
    major: int
    client: int
    """The major version of the pg_dump that made it."""
    snapshot: str
    lsn: str
    rows: Rows
    roles: tuple[str, ...]
    database: Properties

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        database = plain["database"]
        for name in ("acl", "settings"):
            if database[name] is not None:
                database[name] = [list(item.values()) for item in database[name]]
        plain["roles"] = list(self.roles)
        return plain

    @classmethod
    def from_json(cls, data: Any) -> Moment:
        """Believes nothing. Raises CorruptBackup."""
        try:
            return cls(
                server=_text(data["server"]),
                major=_number(data["major"], 1, 1000),
                client=_number(data["client"], 1, 1000),
                snapshot=_text(data["snapshot"]),
                lsn=_text(data["lsn"]),
                rows=_rows(data["rows"]),
                roles=tuple(_name(role) for role in _items(data["roles"])),
                database=_properties(data["database"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptBackup(
                f"the backup does not say which moment of a PostgreSQL database it has: {error!s:.200}"
            ) from error


def tables(session: Session) -> list[tuple[int, str, str]]:
    """The tables whose rows are counted: OID, schema, name."""
    return [
        (int(table), str(schema), str(name))
        for table, schema, name in session.run(_TABLES, NAME_LENGTH, NAME_LENGTH, TABLES)
    ]


def count(session: Session, schema: str, name: str) -> int:
    """The rows of one table, its children's left out."""
    rows = session.run(sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, name)))
    return int(rows[0][0])


def roots(session: Session) -> dict[tuple[str, str], int]:
    """For each table, the OID of what it is a partition of in the end, or its own. A row may belong into another
    partition after a restore: https://www.postgresql.org/docs/current/app-pgdump.html, --load-via-partition-root."""
    found = session.run(_ROOTS if session.major >= 12 else _ROOTS_BEFORE_12)
    return {(str(schema), str(name)): int(root) for schema, name, root in found}


def roles_of(session: Session) -> tuple[str, ...]:
    """Who owns something in the database, or may do something to it; some others may be missing."""
    return tuple(str(role) for (role,) in session.run(_ROLES, ITEMS))


def properties_of(session: Session) -> Properties:
    """Those of the database that the session is connected to."""
    major = session.major
    statement = sql.SQL(_DATABASE).format(
        provider=sql.SQL("d.datlocprovider::text" if major >= 15 else "'c'"),
        locale=sql.SQL("d.datlocale" if major >= 17 else "d.daticulocale" if major >= 15 else "NULL"),
        rules=sql.SQL("d.daticurules" if major >= 16 else "NULL"),
    )
    [(owner, encoding, collate, ctype, provider, locale, rules, tablespace, limit, comment)] = session.run(
        statement
    )
    has_acl = session.run("SELECT datacl IS NOT NULL FROM pg_database WHERE datname = current_database()")[0][
        0
    ]
    return Properties(
        owner=owner,
        encoding=encoding,
        collate=collate,
        ctype=ctype,
        provider=_PROVIDERS.get(provider, provider),
        locale=locale,
        rules=rules,
        tablespace=tablespace,
        limit=limit,
        comment=comment,
        acl=tuple(Grant(*row) for row in session.run(_ACL)[:ITEMS]) if has_acl else None,
        settings=tuple(Setting(*row) for row in session.run(_SETTINGS)[:ITEMS]),
    )


def _properties(data: Any) -> Properties:
    provider = _text(data["provider"])
    if provider not in _PROVIDERS.values():
        raise ValueError(f"{provider!r:.80} is no locale provider")
    return Properties(
        owner=_name(data["owner"]),
        encoding=_text(data["encoding"]),
        collate=_text(data["collate"]),
        ctype=_text(data["ctype"]),
        provider=provider,
        locale=_maybe_text(data["locale"]),
        rules=_maybe_text(data["rules"]),
        tablespace=_name(data["tablespace"]),
        limit=_number(data["limit"], -1, 1 << 31),
        comment=_maybe_text(data["comment"]),
        acl=None if data["acl"] is None else tuple(_grant(*item) for item in _items(data["acl"])),
        settings=tuple(_setting(*item) for item in _items(data["settings"])),
    )


def _grant(role: Any, privilege: Any, with_option: Any) -> Grant:
    if privilege not in _PRIVILEGES or type(with_option) is not bool:
        raise ValueError(f"{privilege!r:.80} is no right on a database")
    return Grant(_name(role), privilege, with_option)


def _setting(role: Any, name: Any, value: Any) -> Setting:
    return Setting(_name(role), _name(name), _text(value))


def _rows(data: Any) -> Rows:
    if type(data) is not dict:
        raise TypeError("row counts are an object")
    rows = {
        _name(schema): {_name(table): _number(number, 0, 1 << 62) for table, number in inner.items()}
        for schema, inner in data.items()
    }
    if sum(map(len, rows.values())) > TABLES:
        raise ValueError("too many row counts")
    return rows


def _of(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is not of type {kind.__name__}")
    return value


def _text(value: Any) -> str:
    text = _of(str, value)
    if len(text) > TEXT_LENGTH or "\0" in text:
        raise ValueError("a text is too long, or has a zero byte")
    text.encode()  # a lone surrogate is no text that a server could take
    return text


def _maybe_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _name(value: Any) -> str:
    name = _text(value)
    if len(name) > NAME_LENGTH:
        raise ValueError(f"{name!r:.80} is too long for a name")
    return name


def _number(value: Any, least: int, bound: int) -> int:
    number = _of(int, value)
    if not least <= number < bound:
        raise ValueError(
            f"{number:.80} is not a sensible number" if number < 10**20 else "a number is too large"
        )
    return number


def _items(value: Any) -> list[Any]:
    items = _of(list, value)
    if len(items) > ITEMS:
        raise ValueError("a list is too long")
    return items
