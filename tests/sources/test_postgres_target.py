"""A PostgreSQL dump goes back whole, with all that belongs to its database, or not at all."""

from __future__ import annotations

import copy
import os
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from conformance.places import Places
from forks import among_own_mounts, mount_memory
from holdfast.errors import CorruptBackup, DatabaseError, NoSpace, RestoreError
from holdfast.events import Event, Warned
from sources.postgres_restores import backup, described, places_in, restore, revived, stage
from sources.postgres_server import (
    PASSWORD,
    PostgresServer,
    database_fixture,
    newer,
    own_server,
    postgres_fixture,
)

__all__ = ["database_fixture", "postgres_fixture"]

NAME = "Feature Store-ü"

ALL_KINDS = """
CREATE EXTENSION pg_trgm;
CREATE EXTENSION hstore;
CREATE SCHEMA "Größen" AUTHORIZATION "Data Team";
COMMENT ON SCHEMA "Größen" IS 'Maße; it''s "quoted"';
CREATE TYPE mood AS ENUM ('ok', 'sad');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (one int, two text);
CREATE TABLE "Größen"."Modell A" (
    "Id" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "größe" positive,
    doubled int GENERATED ALWAYS AS ("größe" * 2) STORED, feeling mood DEFAULT 'ok',
    both_of pair, tags hstore, bytes bytea, weights float8[], body jsonb);
ALTER TABLE "Größen"."Modell A" OWNER TO "Data Team";
INSERT INTO "Größen"."Modell A" ("größe", both_of, tags, bytes, weights, body)
    SELECT n, ROW(n, E'a\\tb\\\\n\\n' || n)::pair, 'k=>v', decode(md5(n::text), 'hex'),
        ARRAY[n, 'NaN', 'Infinity', 0.1], '{"ü": null}' FROM generate_series(1, 500) n;
COMMENT ON COLUMN "Größen"."Modell A"."größe" IS 'how large';
CREATE INDEX "by größe" ON "Größen"."Modell A" USING gin ((body));
CREATE STATISTICS related ON "größe", feeling FROM "Größen"."Modell A";
CREATE TABLE event (day date NOT NULL, kind text) PARTITION BY RANGE (day);
CREATE TABLE event_2024 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE event_rest PARTITION OF event DEFAULT;
INSERT INTO event SELECT date '2024-06-01' + n, 'k' FROM generate_series(1, 400) n;
CREATE VIEW shown AS SELECT "Id", similarity('a', 'b') AS s FROM "Größen"."Modell A";
CREATE MATERIALIZED VIEW summed AS SELECT count(*) AS n FROM event;
CREATE SEQUENCE ticket START 1000 INCREMENT 7;
SELECT nextval('ticket'), nextval('ticket');
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.kind := upper(NEW.kind); RETURN NEW; END $$;
COMMENT ON FUNCTION noted() IS 'OWNER TO nobody; GRANT ALL TO nobody_else;';
CREATE TRIGGER note BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION noted();
CREATE PROCEDURE tidy() LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE total (int) (SFUNC = int4pl, STYPE = int, INITCOND = 0);
CREATE UNLOGGED TABLE cache (id int);
INSERT INTO cache VALUES (1);
ALTER TABLE event ENABLE ROW LEVEL SECURITY;
CREATE POLICY ours ON event TO "Data Team" USING (kind <> 'secret');
GRANT SELECT ON event, shown TO reader;
GRANT UPDATE (kind) ON event TO reader WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE "Data Team" GRANT SELECT ON TABLES TO reader;
CREATE PUBLICATION all_of_it FOR ALL TABLES;
SELECT lo_from_bytea(4711, decode(repeat('00ff', 5000), 'hex'));
ALTER LARGE OBJECT 4711 OWNER TO "Data Team";
COMMENT ON LARGE OBJECT 4711 IS 'weights';
CREATE TABLE a (id int PRIMARY KEY);
CREATE TABLE b (id int REFERENCES a);
"""


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "temp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


class Heard:
    """Remembers the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)


@pytest.fixture
def store(postgres: PostgresServer) -> Any:
    """The name of a database with everything in it."""
    for role in ("Data Team", "reader"):
        postgres.role(role)
    for name in postgres.databases():
        if name.startswith("Feature"):
            postgres.drop(name)
    postgres.create(
        NAME, "OWNER \"Data Team\" LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'de' TEMPLATE template0"
    )
    postgres.run(NAME, ALL_KINDS)
    quoted = f'"{NAME}"'
    postgres.run(
        "postgres",
        f"COMMENT ON DATABASE {quoted} IS 'for ''models''';"
        f"ALTER DATABASE {quoted} CONNECTION LIMIT 40;"
        f"REVOKE ALL ON DATABASE {quoted} FROM PUBLIC;"
        f"GRANT CONNECT ON DATABASE {quoted} TO reader WITH GRANT OPTION;"
        f'ALTER DATABASE {quoted} SET search_path TO "$user", "Größen", public;'
        f"ALTER DATABASE {quoted} SET work_mem TO '12MB';"
        f"ALTER DATABASE {quoted} SET \"app.Mode\" TO 'it''s, \"so\"';"
        f"ALTER DATABASE {quoted} SET default_transaction_read_only TO on;"
        f"ALTER ROLE reader IN DATABASE {quoted} SET statement_timeout TO '5s'",
    )
    yield NAME
    for name in postgres.databases():
        if name.startswith("Feature"):
            postgres.drop(name)


def test_everything_comes_back(postgres: PostgresServer, store: str, temp: Path) -> None:
    before = described(postgres.conninfo(store))
    taken = backup(postgres.url(store))
    postgres.run(
        store,
        "SET search_path = public; DROP TABLE event CASCADE;"
        "SELECT nextval('ticket'), lo_unlink(4711);"
        'DROP SCHEMA "Größen" CASCADE; CREATE TABLE extra (id int)',
    )
    quoted = sql.Identifier(store)
    postgres.run("postgres", sql.SQL("ALTER DATABASE {} RESET ALL").format(quoted))
    postgres.run("postgres", sql.SQL("ALTER DATABASE {} OWNER TO postgres").format(quoted))
    heard = Heard()
    swap = restore(postgres.url(store), taken, emit=heard)
    assert described(postgres.conninfo(store)) == before
    assert heard.warnings == []
    assert places_in(temp) == []
    revived(postgres.url(store), swap).discard()
    assert described(postgres.conninfo(store)) == before


def test_what_is_dumped_under_load_is_one_moment(postgres: PostgresServer, store: str) -> None:
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(postgres.conninfo(store)) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute("INSERT INTO public.a VALUES (%s)", (number,))
                connection.execute("INSERT INTO public.b VALUES (%s)", (number,))
                connection.execute("INSERT INTO public.event VALUES ('2024-03-03', 'x')")
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        taken = [backup(postgres.url(store)) for _ in range(3)][-1]
    finally:
        stop.set()
        writer.join()
    restore(postgres.url(store), taken)
    [(pairs, left, right)] = postgres.run(
        store, "SELECT count(*), (SELECT count(*) FROM public.a), (SELECT count(*) FROM public.b) "
        "FROM public.a JOIN public.b USING (id)",
    )  # fmt: skip
    assert pairs == left == right > 0


def test_roles_that_are_missing_are_named_before_anything_is_made(
    postgres: PostgresServer, database: str
) -> None:
    for role in ("gone owner", "gone_reader"):
        postgres.role(role)
    postgres.run(
        database,
        'CREATE TABLE item (id int); ALTER TABLE item OWNER TO "gone owner"; CREATE TABLE more (id int);'
        "GRANT SELECT ON more TO gone_reader",
    )
    taken = backup(postgres.url(database))
    postgres.run(database, 'DROP TABLE item, more; DROP ROLE "gone owner"; DROP ROLE gone_reader')
    staging = Places()
    with pytest.raises(RestoreError, match=r"gone owner.*gone_reader") as caught:
        stage(postgres.url(database), taken, staging)
    assert "CREATE ROLE" in caught.value.hint
    assert staging.registered == []
    staging.remove()


def test_roles_of_the_database_alone_are_a_warning(postgres: PostgresServer, database: str) -> None:
    postgres.role("gone")
    postgres.run(
        "postgres",
        f'ALTER DATABASE "{database}" OWNER TO gone; GRANT CREATE ON DATABASE "{database}" TO gone;'
        f'ALTER ROLE gone IN DATABASE "{database}" SET work_mem = 100',
    )
    taken = backup(postgres.url(database))
    postgres.run(
        "postgres",
        f'ALTER DATABASE "{database}" OWNER TO postgres; ALTER ROLE gone IN DATABASE "{database}" RESET ALL',
    )
    postgres.run(database, "DROP OWNED BY gone; DROP ROLE gone")
    heard = Heard()
    restore(postgres.url(database), taken, emit=heard)
    assert len(heard.warnings) == 2
    assert all("role gone" in warning for warning in heard.warnings)


def test_a_database_that_is_not_there_takes_a_flag(
    postgres: PostgresServer, database: str, temp: Path
) -> None:
    postgres.run(database, "CREATE TABLE item (id int)")
    taken = backup(postgres.url(database))
    postgres.drop(database)
    with pytest.raises(RestoreError, match="no such database") as caught:
        stage(postgres.url(database), taken)
    assert "--create-db" in caught.value.hint
    postgres.role("tenant")
    with pytest.raises(RestoreError, match="tenant may not create"):
        stage(postgres.url(database, user="tenant"), taken, create_database=True)
    assert places_in(temp) == []
    restore(postgres.url(database), taken, create_database=True)
    assert postgres.run(database, "SELECT count(*) FROM item") == [(0,)]


def test_what_is_no_dump_is_corrupt(postgres: PostgresServer, database: str) -> None:
    entry, _, moment = backup(postgres.url(database))
    for content in (
        b"",
        b"PGD",
        b"-- PostgreSQL database dump\n",
        os.urandom(5000),
        b"PGDMP" + os.urandom(5000),
    ):
        with pytest.raises(CorruptBackup):
            stage(postgres.url(database), (entry, content, moment))
    assert [name for name in postgres.databases() if name.startswith(f"{database}__")] == []


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_dump_that_is_cut_off_is_corrupt(postgres: PostgresServer, database: str, kept: float) -> None:
    postgres.run(database, "CREATE TABLE item AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n")
    entry, data, moment = backup(postgres.url(database))
    staging = Places()
    with pytest.raises(CorruptBackup):
        stage(postgres.url(database), (entry, data[: int(len(data) * kept)], moment), staging)
    for swap in staging.registered:
        revived(postgres.url(database), swap).discard()
    assert [name for name in postgres.databases() if name.startswith(f"{database}__")] == []


def test_other_rows_than_the_backup_says_are_corrupt(postgres: PostgresServer, database: str) -> None:
    postgres.run(database, "CREATE TABLE item AS SELECT 1 AS id")
    entry, data, moment = backup(postgres.url(database))
    for rows in ({"public": {"item": 2}}, {"public": {"item": 1, "other": 0}}):
        with pytest.raises(CorruptBackup, match=r"public\.(item|other)"):
            stage(postgres.url(database), (entry, data, {**moment, "rows": rows}))


def test_a_row_may_move_to_another_partition(postgres: PostgresServer, database: str) -> None:
    postgres.run(
        database,
        "CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);"
        "CREATE TABLE p2 PARTITION OF p DEFAULT; INSERT INTO p VALUES (1), (2), (3)",
    )
    entry, data, moment = backup(postgres.url(database))
    stage(postgres.url(database), (entry, data, {**moment, "rows": {"public": {"p1": 2, "p2": 1}}}))


BAD_MOMENTS: list[tuple[str, Any]] = [
    ("rows", [1]),
    ("rows", {"public": {"item": "1; DROP"}}),
    ("rows", {"public": {f"t{n}": 1 for n in range(2000)}}),
    ("roles", "postgres"),
    ("major", "15"),
    ("major", True),
    ("database", None),
    ("database.owner", 5),
    ("database.owner", "x" * 300),
    ("database.provider", "libc BUILTIN"),
    ("database.limit", 10**30),
    ("database.acl", [["postgres", "CONNECT; DROP DATABASE x", False]]),
    ("database.settings", [["", "work_mem"]]),
    ("database.comment", "zero\0byte"),
    ("database.comment", "\ud800"),
]


@pytest.mark.parametrize(("path", "value"), BAD_MOMENTS)
def test_a_moment_that_is_not_sound_is_refused(
    postgres: PostgresServer, database: str, path: str, value: Any
) -> None:
    entry, data, moment = backup(postgres.url(database))
    bad = copy.deepcopy(moment)
    inner = bad
    *above, last = path.split(".")
    for name in above:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(CorruptBackup, match="which moment"):
        stage(postgres.url(database), (entry, data, bad))


def test_a_moment_that_is_missing_is_refused(postgres: PostgresServer, database: str) -> None:
    entry, data, _ = backup(postgres.url(database))
    with pytest.raises(CorruptBackup, match="which moment"):
        stage(postgres.url(database), (entry, data, {}))


def test_an_older_server_is_told_before_anything_is_made(postgres: PostgresServer, database: str) -> None:
    entry, data, moment = backup(postgres.url(database))
    newer_dump = {**moment, "major": moment["major"] + 1, "server": f"{moment['major'] + 1}.1"}
    with pytest.raises(
        RestoreError, match=rf"PostgreSQL {moment['major'] + 1}\.1.*PostgreSQL {moment['major']}\."
    ):
        stage(postgres.url(database), (entry, data, newer_dump))
    with pytest.raises(RestoreError, match=r"pg_restore here is"):
        stage(postgres.url(database), (entry, data, {**moment, "client": moment["client"] + 1}))


def test_a_newer_server_takes_an_older_dump(postgres: PostgresServer, database: str) -> None:
    programs = newer()
    if programs is None:
        pytest.skip("no newer server is installed: pip install pgserver")
    postgres.run(database, "CREATE TABLE item AS SELECT 1 AS id")
    taken = backup(postgres.url(database))
    with own_server(programs) as server:
        restore(server.url("copy"), taken, create_database=True)
        assert server.run("copy", "SELECT id FROM item") == [(1,)]


def test_a_locale_that_the_server_does_not_have_is_told(postgres: PostgresServer, database: str) -> None:
    entry, data, moment = backup(postgres.url(database))
    odd = {**moment["database"], "collate": "tlh_KX.UTF-8", "ctype": "tlh_KX.UTF-8"}
    with pytest.raises(RestoreError, match="tlh_KX") as caught:
        stage(postgres.url(database), (entry, data, {**moment, "database": odd}))
    assert "Install it" in caught.value.hint


def test_a_name_that_fills_63_bytes_is_cut_for_the_scratch_database(postgres: PostgresServer) -> None:
    names = ["ü" * 31 + "a", "ü" * 31 + "b"]
    staging = Places()
    try:
        for name in names:
            postgres.create(name)
            postgres.run(name, sql.SQL("CREATE TABLE item AS SELECT {} AS name").format(name))
        taken = {name: backup(postgres.url(name)) for name in names}
        swaps = [stage(postgres.url(name), taken[name], staging) for name in names]
        for name, swap in zip(names, swaps, strict=True):
            postgres.run(name, "UPDATE item SET name = 'changed'")
            swap.apply()
            assert postgres.run(name, "SELECT name FROM item") == [(name,)]
            assert all(len(found.encode()) <= 63 for found in postgres.databases())
            revived(postgres.url(name), swap).revert()
            assert postgres.run(name, "SELECT name FROM item") == [("changed",)]
            revived(postgres.url(name), swap).discard()
    finally:
        for found in postgres.databases():
            if found.startswith("ü"):
                postgres.drop(found)


def test_the_journal_holds_no_password(postgres: PostgresServer, database: str) -> None:
    url = postgres.url(database, password=PASSWORD)
    staging = Places()
    swap = stage(url, backup(url), staging)
    assert PASSWORD not in repr([swap.to_journal(), *(known.to_journal() for known in staging.registered)])


def test_a_full_disk_of_the_server_is_no_space() -> None:
    def fill_up() -> None:
        directory = Path("/mnt")
        mount_memory(directory, size=130 << 20)
        with own_server(directory=directory) as server:
            server.create("large")
            server.run(
                "large",
                "CREATE UNLOGGED TABLE item AS SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 200000) n",
            )
            staging = Places()
            with pytest.raises(NoSpace):
                stage(server.url("large"), backup(server.url("large")), staging)
            for swap in staging.registered:
                revived(server.url("large"), swap).discard()
            staging.remove()
            assert server.run("large", "SELECT count(*) FROM item") == [(200000,)]

    among_own_mounts(fill_up)


def test_a_server_that_is_down_is_an_error(postgres: PostgresServer, database: str) -> None:
    taken = backup(postgres.url(database))
    url = postgres.url(database).set(query={"host": "/nowhere"})
    with pytest.raises(DatabaseError, match=r"^Database restore failed"):
        stage(url, taken)
