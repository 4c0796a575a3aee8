"""A restored PostgreSQL database takes the live one's name, whoever is connected, and gives it back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import psycopg
import pytest

from holdfast.errors import DatabaseBusy, NothingToUndo, RestoreError
from holdfast.sources.postgres import PostgresSwaps
from holdfast.transaction import Swap
from sources.postgres_restores import backup, kinds, restore, revived, stage
from sources.postgres_server import PostgresServer, database_fixture, postgres_fixture

__all__ = ["database_fixture", "postgres_fixture"]


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def swap(postgres: PostgresServer, database: str) -> Swap:
    """A staged one."""
    postgres.run(database, "CREATE TABLE item AS SELECT 'new' AS text")
    taken = backup(postgres.url(database))
    postgres.run(database, "UPDATE item SET text = 'old'")
    return stage(postgres.url(database), taken, timeout=1)


def state(server: PostgresServer, database: str) -> str:
    [(text,)] = server.run(database, "SELECT text FROM item")
    return str(text)


def test_sessions_are_ended_and_told_of(postgres: PostgresServer, database: str, swap: Swap) -> None:
    with psycopg.connect(postgres.conninfo(database)) as connection:
        connection.execute("SELECT * FROM item")
        swap.apply()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT * FROM item")
    assert "1 connection to" in swap.note
    assert state(postgres, database) == "new"


def test_nobody_gets_in_while_it_is_switched(postgres: PostgresServer, database: str, swap: Swap) -> None:
    # A prepared transaction keeps the database in use, and no session of it can be ended.
    postgres.run(database, "BEGIN; INSERT INTO item VALUES ('prepared'); PREPARE TRANSACTION 'held'")
    try:
        with pytest.raises(DatabaseBusy, match=r"prepared transaction of postgres \(1\)"):
            swap.apply()
        with pytest.raises(psycopg.OperationalError, match="not currently accepting"):
            postgres.run(database, "SELECT 1")
        swap.revert()
        assert state(postgres, database) == "old"
    finally:
        swap.revert()
        postgres.run(database, "ROLLBACK PREPARED 'held'")
    swap.apply()
    assert state(postgres, database) == "new"


def test_what_is_kept_refuses_connections(postgres: PostgresServer, database: str, swap: Swap) -> None:
    swap.apply()
    [kept] = [name for name in postgres.databases() if name.startswith(f"{database}__")]
    with pytest.raises(psycopg.OperationalError, match="not currently accepting"):
        postgres.run(kept, "SELECT 1")
    assert state(postgres, database) == "new"


def test_a_database_that_was_made_anew_meanwhile_is_left_alone(
    postgres: PostgresServer, database: str, swap: Swap
) -> None:
    postgres.drop(database)
    postgres.create(database)
    for _ in range(2):
        with pytest.raises(RestoreError, match="somebody has created, dropped or renamed it"):
            swap.apply()
        swap.revert()
    postgres.run(database, "SELECT 1")


def test_a_database_that_came_meanwhile_is_not_replaced(postgres: PostgresServer, database: str) -> None:
    taken = backup(postgres.url(database))
    postgres.drop(database)
    swap = stage(postgres.url(database), taken, create_database=True)
    postgres.create(database)
    postgres.run(database, "CREATE TABLE item AS SELECT 'theirs' AS text")
    with pytest.raises(RestoreError, match="somebody"):
        swap.apply()
    swap.revert()
    swap.discard()
    assert state(postgres, database) == "theirs"


def test_a_revert_does_not_overwrite_what_somebody_made(
    postgres: PostgresServer, database: str, swap: Swap
) -> None:
    swap.apply()
    postgres.drop(database)
    postgres.create(database)
    postgres.run(database, "CREATE TABLE item AS SELECT 'theirs' AS text")
    with pytest.raises(RestoreError, match="is kept as") as caught:
        revived(postgres.url(database), swap).revert()
    assert "holdfast recover" in caught.value.hint
    assert state(postgres, database) == "theirs"
    postgres.drop(database)
    revived(postgres.url(database), swap).revert()
    assert state(postgres, database) == "old"


def test_what_is_gone_cannot_be_undone(postgres: PostgresServer, database: str, swap: Swap) -> None:
    swap.apply()
    [kept] = [name for name in postgres.databases() if name.startswith(f"{database}__")]
    postgres.drop(kept)
    with pytest.raises(NothingToUndo):
        swap.reversed().apply()
    with pytest.raises(RestoreError, match="is gone"):
        swap.revert()
    assert state(postgres, database) == "new"


def test_a_session_that_may_not_be_ended_is_named(postgres: PostgresServer, database: str) -> None:
    postgres.role("maker", "LOGIN CREATEDB")
    postgres.run("postgres", f'ALTER DATABASE "{database}" OWNER TO maker')
    postgres.run(database, "CREATE TABLE item AS SELECT 'new' AS text", user="maker")
    url = postgres.url(database, user="maker")
    swap = stage(url, backup(url), timeout=0.2)
    with psycopg.connect(postgres.conninfo(database)) as connection:
        with pytest.raises(DatabaseBusy, match=r"still in use: postgres \(1\)"):
            swap.apply()
        connection.execute("SELECT 1")
        swap.revert()
    swap.apply()
    assert state(postgres, database) == "new"


def test_a_role_that_may_create_databases_needs_no_more(postgres: PostgresServer, database: str) -> None:
    postgres.role("maker", "LOGIN CREATEDB")
    postgres.run("postgres", f'ALTER DATABASE "{database}" OWNER TO maker')
    postgres.run(database, "CREATE TABLE item AS SELECT 'new' AS text", user="maker")
    url = postgres.url(database, user="maker")
    swap = restore(url, backup(url))
    assert "in place" not in swap.note
    assert state(postgres, database) == "new"
    revived(url, swap).discard()
    assert [name for name in postgres.databases() if name.startswith(f"{database}__")] == []


def test_a_database_that_is_not_configured_any_more_is_told(
    postgres: PostgresServer, database: str, swap: Swap
) -> None:
    orphan = PostgresSwaps(list, timeout=2).from_journal(swap.to_journal())
    with pytest.raises(RestoreError, match="not configured any more"):
        orphan.revert()


BAD: list[tuple[str, Any]] = [
    ("run", "x"),
    ("run", "../../etc"),
    ("run", 5),
    ("step", -1),
    ("step", 10**9),
    ("step", True),
    ("coming", "1"),
    ("live", -1),
    ("mode", "other"),
    ("address", None),
    ("address", {"dialect": "postgresql", "host": 1, "port": 0, "database": ""}),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_journal_is_not_believed(postgres: PostgresServer, name: str, value: Any) -> None:
    url = postgres.url("somewhere")
    state: dict[str, Any] = {
        "mode": "rename",
        "address": {
            "dialect": "postgresql",
            "host": str(postgres.directory),
            "port": 0,
            "database": "somewhere",
        },
        "run": "0123456789abcdef",
        "step": 0,
        "coming": 5,
        "live": None,
    }
    known = kinds(url)["postgresql"]
    known.from_journal(copy.deepcopy(state))
    with pytest.raises((KeyError, TypeError, ValueError)):
        known.from_journal({**state, name: value})
    del state[name]
    with pytest.raises((KeyError, TypeError, ValueError)):
        known.from_journal(state)
