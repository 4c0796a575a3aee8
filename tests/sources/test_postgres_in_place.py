"""A role that may not create databases gets its restore in place: one transaction, and a way back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from conformance.places import Places
from holdfast.errors import CorruptBackup, DatabaseBusy, RestoreError
from holdfast.transaction import Swap
from sources.postgres_restores import backup, described, kinds, revived, stage
from sources.postgres_server import PostgresServer, database_fixture, postgres_fixture, select_nothing

__all__ = ["database_fixture", "postgres_fixture"]

CONTENT = """
CREATE SCHEMA mine;
CREATE EXTENSION citext SCHEMA mine;
CREATE TYPE mood AS ENUM ('ok', 'sad');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (one int, two text);
CREATE TABLE mine."Modell ü" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name mine.citext, feeling mood);
INSERT INTO mine."Modell ü" (name, feeling) SELECT n, 'ok' FROM generate_series(1, 100) n;
CREATE TABLE event (id serial, day date) PARTITION BY RANGE (day);
CREATE TABLE event_rest PARTITION OF event DEFAULT;
INSERT INTO event (day) VALUES ('2024-01-01');
CREATE VIEW shown AS SELECT * FROM mine."Modell ü";
CREATE MATERIALIZED VIEW summed AS SELECT count(*) FROM event;
CREATE SEQUENCE ticket;
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER note BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION noted();
CREATE PROCEDURE tidy() LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE total (int) (SFUNC = int4pl, STYPE = int, INITCOND = 0);
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE STATISTICS related ON id, name FROM mine."Modell ü";
CREATE TEXT SEARCH DICTIONARY plain (TEMPLATE = simple);
CREATE TEXT SEARCH CONFIGURATION words (PARSER = default);
CREATE COLLATION numeric_order (provider = icu, locale = 'en-u-kn');
SELECT lo_from_bytea(0, 'large');
"""
CHANGED = """
DROP TABLE event CASCADE;
UPDATE mine."Modell ü" SET feeling = 'sad';
CREATE TABLE extra (id int PRIMARY KEY);
CREATE SCHEMA another;
CREATE TABLE another.extra (id int);
CREATE TYPE more AS ENUM ('x');
CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT lo_from_bytea(0, 'another'), nextval('ticket');
"""


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def tenancy(postgres: PostgresServer, database: str) -> str:
    """A database whose owner has no other rights."""
    postgres.role("tenant")
    postgres.run("postgres", f'ALTER DATABASE "{database}" OWNER TO tenant')
    return database


def apply_and_compare(server: PostgresServer, database: str) -> Swap:
    url = server.url(database, user="tenant")
    conninfo = server.conninfo(database)
    before = described(conninfo)
    taken = backup(url)
    server.run(database, CHANGED, user="tenant")
    changed = described(conninfo)
    swap = stage(url, taken)
    assert described(conninfo) == changed
    swap.apply()
    assert described(conninfo) == before
    undo = revived(url, swap).reversed()
    undo.apply()
    assert described(conninfo) == changed
    revived(url, undo).revert()
    assert described(conninfo) == before
    return swap


def test_everything_that_the_role_owns_comes_back_and_nothing_else_stays(
    postgres: PostgresServer, tenancy: str
) -> None:
    postgres.run(tenancy, CONTENT, user="tenant")
    swap = apply_and_compare(postgres, tenancy)
    assert "in place, in one transaction" in swap.note


def test_what_another_role_owns_is_left_alone(postgres: PostgresServer, tenancy: str) -> None:
    postgres.run(
        tenancy,
        "CREATE EXTENSION hstore; COMMENT ON EXTENSION hstore IS 'theirs';"
        "CREATE SCHEMA theirs; GRANT ALL ON SCHEMA theirs, public TO tenant; COMMENT ON SCHEMA theirs IS 'x'",
    )
    postgres.run(tenancy, CONTENT, user="tenant")
    postgres.run(tenancy, "CREATE TABLE theirs.ours (tags public.hstore)", user="tenant")
    apply_and_compare(postgres, tenancy)


def test_a_role_that_reaches_no_other_database_restores_too(postgres: PostgresServer, tenancy: str) -> None:
    postgres.run("postgres", "REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC")
    try:
        postgres.run(tenancy, CONTENT, user="tenant")
        apply_and_compare(postgres, tenancy)
    finally:
        postgres.run("postgres", "GRANT CONNECT ON DATABASE postgres, template1 TO PUBLIC")


def test_no_write_falls_between_what_is_kept_and_what_is_replaced(
    postgres: PostgresServer, tenancy: str
) -> None:
    url = postgres.url(tenancy, user="tenant")
    postgres.run(tenancy, "CREATE TABLE item (id int)", user="tenant")
    swap = stage(url, backup(url))
    committed = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal committed
        with psycopg.connect(postgres.conninfo(tenancy, "tenant"), autocommit=True) as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO item VALUES (1)")
                committed += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while committed < 50:
            select_nothing(0.001)
        swap.apply()
    finally:
        stop.set()
        writer.join()
    [(left,)] = postgres.run(tenancy, "SELECT count(*) FROM item")
    revived(url, swap).revert()
    [(before,)] = postgres.run(tenancy, "SELECT count(*) FROM item")
    assert before + left == committed


def test_a_table_in_use_is_waited_for_no_longer_than_the_timeout(
    postgres: PostgresServer, tenancy: str
) -> None:
    url = postgres.url(tenancy, user="tenant")
    postgres.run(tenancy, "CREATE TABLE item (id int)", user="tenant")
    swap = stage(url, backup(url), timeout=0.3)
    postgres.run(tenancy, "INSERT INTO item VALUES (7)")
    with psycopg.connect(postgres.conninfo(tenancy)) as connection:
        connection.execute("LOCK TABLE item IN SHARE MODE")
        with pytest.raises((RestoreError, DatabaseBusy), match="lock"):
            swap.apply()
    revived(url, swap).revert()
    assert postgres.run(tenancy, "SELECT * FROM item") == [(7,)]


def test_what_cannot_be_loaded_leaves_everything_as_it_was(postgres: PostgresServer, tenancy: str) -> None:
    url = postgres.url(tenancy, user="tenant")
    postgres.run(tenancy, CONTENT, user="tenant")
    taken = backup(url)
    postgres.run(
        tenancy, "DROP TYPE pair; CREATE TYPE pair AS (one int)"
    )  # another role's now, and in the way
    before = described(postgres.conninfo(tenancy))
    swap = stage(url, taken)
    with pytest.raises(RestoreError, match="pair"):
        swap.apply()
    assert described(postgres.conninfo(tenancy)) == before
    revived(url, swap).revert()
    assert described(postgres.conninfo(tenancy)) == before


@pytest.mark.parametrize("rows", [{"a": 2, "p1": 1, "p2": 2}, {"a": 1, "p1": 1, "p2": 1}, {"gone": 0}])
def test_other_rows_than_the_backup_says_are_corrupt(
    postgres: PostgresServer, tenancy: str, rows: dict[str, int]
) -> None:
    url = postgres.url(tenancy, user="tenant")
    postgres.run(
        tenancy,
        "CREATE TABLE a AS SELECT 1; CREATE TABLE p (id int) PARTITION BY LIST (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p DEFAULT;"
        "INSERT INTO p VALUES (1), (2), (3)",
        user="tenant",
    )
    entry, data, moment = backup(url)
    stage(url, (entry, data, {**moment, "rows": {"public": {"a": 1, "p1": 2, "p2": 1}}})).apply()
    postgres.run(tenancy, "INSERT INTO a VALUES (9)", user="tenant")
    swap = stage(url, (entry, data, {**moment, "rows": {"public": rows}}))
    with pytest.raises(RestoreError if "gone" in rows else CorruptBackup):
        swap.apply()
    assert postgres.run(tenancy, "SELECT count(*) FROM a") == [(2,)]


BAD: list[tuple[str, Any]] = [
    ("place", "relative/.holdfast-0123456789abcdef-0"),
    ("place", "/etc"),
    ("place", "/var/tmp/.holdfast-ffffffffffffffff-0"),
    ("place", 5),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_journal_is_not_believed(postgres: PostgresServer, name: str, value: Any) -> None:
    state: dict[str, Any] = {
        "mode": "in place",
        "address": {"dialect": "postgresql", "host": "", "port": 0, "database": "somewhere"},
        "run": "0123456789abcdef",
        "step": 0,
        "place": "/var/tmp/.holdfast-0123456789abcdef-0",
    }
    known = kinds(postgres.url("somewhere"))["postgresql"]
    known.from_journal(dict(state))
    with pytest.raises((KeyError, TypeError, ValueError)):
        known.from_journal({**state, name: value})


def test_the_staged_dump_is_private(postgres: PostgresServer, tenancy: str) -> None:
    url = postgres.url(tenancy, user="tenant")
    staging = Places()
    swap = stage(url, backup(url), staging)
    swap.apply()
    [place] = staging.made
    assert place.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in place.glob("*.dump")} == {0o600}
    swap.discard()
    assert not place.exists()
