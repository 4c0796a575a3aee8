"""Restoring a dump into a MySQL or MariaDB server."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.places import Places
from holdfast.errors import (
    CorruptBackup,
    DatabaseBusy,
    NothingToUndo,
    RestoreError,
)
from holdfast.events import Event, Warned
from holdfast.sources.mysql import MySqlSwap, MySqlSwaps, MySqlTarget
from holdfast.transaction import Transaction, discard, recover, undo
from sources.mysql_restores import Backup, back_up, long_after, stage
from sources.mysql_server import PASSWORD, Server, description, make_everything
from sources.mysql_server import server as server

DATABASE = "target"
USER = "restorer"


@pytest.fixture(autouse=True)
def _clean(server: Server) -> Iterator[None]:
    server.drop(DATABASE)
    yield
    server.run(f"DROP USER IF EXISTS {USER}@localhost")
    server.drop(*server.schemas("^(target|other)"))


def make_small(server: Server, name: str = DATABASE) -> None:
    server.run(f"CREATE DATABASE {name}")
    server.run(
        "CREATE TABLE item (id INT PRIMARY KEY, text TEXT)",
        "INSERT INTO item VALUES (1, 'one'), (2, 'two')",
        "CREATE VIEW items AS SELECT * FROM item",
        database=name,
    )


def make_user(server: Server, *grants: str) -> None:
    password = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    server.run(f"CREATE OR REPLACE USER {USER}@localhost IDENTIFIED BY '{password}'")
    server.run(*(f"GRANT {grant} TO {USER}@localhost" for grant in grants))


def refused(
    backup: Backup, server: Server, error: type[Exception], match: str | None = None
) -> pytest.ExceptionInfo[Exception]:
    """Staging is refused, and what it has made goes away again."""
    before = description(server, DATABASE)
    places = Places()
    with pytest.raises(error, match=match) as raised:
        stage(backup, server.url(DATABASE), places=places)
    for swap in places.registered:
        swap.discard()
    assert server.schemas("__holdfast_") == []
    assert description(server, DATABASE) == before
    return raised


def edited(backup: Backup, edit: Callable[[bytes], bytes]) -> Backup:
    return dataclasses.replace(backup, content=edit(backup.content))


def test_what_the_backup_lacks_goes_and_comes_back_with_undo(server: Server) -> None:
    make_everything(server, DATABASE)
    old = description(server, DATABASE)
    backup = back_up(server.url(DATABASE))
    server.run(
        "DROP VIEW aaa",
        "CREATE OR REPLACE VIEW above AS SELECT 1 AS q, 2 AS text",
        "DROP TABLE empty",
        "CREATE TABLE newer (id INT)",
        "CREATE VIEW empty AS SELECT 1 AS a",
        "INSERT INTO child (parent_id, note) VALUES (1, 'fires the triggers')",
        "DROP TRIGGER second",
        "CREATE TRIGGER third BEFORE DELETE ON audit FOR EACH ROW SET @x = OLD.id",
        "DROP PROCEDURE several",
        "CREATE PROCEDURE several() SELECT 2",
        "ALTER EVENT paused ENABLE",
        "DROP EVENT nightly",
        f"ALTER DATABASE {DATABASE} COLLATE utf8mb4_bin",
        database=DATABASE,
    )
    changed = description(server, DATABASE)
    swap = stage(backup, server.url(DATABASE))
    swap.apply()
    assert description(server, DATABASE) == old
    assert swap.note == ""
    server.run("INSERT INTO numbered (x) VALUES (9)", database=DATABASE)
    server.run("DELETE FROM numbered WHERE x = 9", database=DATABASE)
    swap.settle()
    undone = swap.reversed()
    undone.apply()
    assert description(server, DATABASE) == changed
    undone.discard()
    assert server.schemas("__holdfast_") == []


def test_a_restore_under_another_name_names_that_one(server: Server) -> None:
    make_everything(server, "other")
    backup = back_up(server.url("other"))
    server.drop("other")
    stage(backup, server.url(DATABASE), create_database=True).apply()
    assert server.rows("SELECT q FROM named ORDER BY q", DATABASE) == [(2,), (3,)]
    assert server.rows("SELECT id FROM alias ORDER BY id", DATABASE) == [(1,), (2,)]
    server.run("INSERT INTO numbered (x) VALUES (9)", database=DATABASE)
    # The body of a trigger stands as its author wrote it; its own table is that of the new database.
    server.run("INSERT INTO child (parent_id) VALUES (1)", database=DATABASE)
    assert server.rows("SELECT COUNT(*) FROM audit", DATABASE) == [(1,)]


def test_open_connections_go_on(server: Server) -> None:
    make_small(server)
    backup = back_up(server.url(DATABASE))
    with contextlib.closing(server.connect(DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE item SET text = 'changed'")
        stage(backup, server.url(DATABASE)).apply()
        cursor.execute("SELECT text FROM item ORDER BY id")
        assert [row[0] for row in cursor.fetchall()] == ["one", "two"]


def test_a_transaction_that_stays_open_is_told_within_the_timeout_and_nothing_changes(server: Server) -> None:
    make_everything(server, DATABASE)
    backup = back_up(server.url(DATABASE))
    server.run("UPDATE parent SET name = 'changed'", database=DATABASE)
    before = description(server, DATABASE)
    swap = stage(backup, server.url(DATABASE), timeout=1)
    with contextlib.closing(server.connect(DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT * FROM parent")
        with pytest.raises(DatabaseBusy):
            swap.apply()
        # Whoever holds a lock is no obstacle to putting back what was not moved.
        swap.revert()
        assert description(server, DATABASE) == before
    swap.apply()
    swap.discard()


def test_a_whole_transaction_is_recovered_undone_and_discarded(server: Server, tmp_path: Path) -> None:
    make_everything(server, DATABASE)
    old = description(server, DATABASE)
    backup = back_up(server.url(DATABASE))
    server.run("DELETE FROM child", database=DATABASE)
    changed = description(server, DATABASE)
    url = server.url(DATABASE)
    kinds = {"mysql": MySqlSwaps(lambda: [url], timeout=5)}
    state = tmp_path / "state"
    with Transaction.begin(state, kinds, verb="restore", subject="x", clock=long_after) as transaction:
        target = MySqlTarget(url, backup.moment, timeout=5, create_database=False)
        swaps = target.stage(iter([backup.entry]), backup.read, transaction, lambda event: None)
        assert PASSWORD not in (state / "restore.json").read_text()
        transaction.apply(swaps)
    assert description(server, DATABASE) == old
    for expected in (changed, old):
        undo(state, kinds, long_after)
        assert description(server, DATABASE) == expected
        assert recover(state, kinds, long_after()) is None
    discard(state, kinds)
    assert description(server, DATABASE) == old
    assert server.schemas("__holdfast_") == []


def test_without_its_database_a_restore_asks_for_create_db(server: Server) -> None:
    make_small(server)
    backup = back_up(server.url(DATABASE))
    server.drop(DATABASE)
    with pytest.raises(RestoreError, match="is not there") as raised:
        stage(backup, server.url(DATABASE))
    assert "--create-db" in raised.value.hint
    assert server.schemas("__holdfast_") == []


def test_a_user_who_may_not_make_schemas_is_told_what_to_grant(server: Server) -> None:
    make_small(server)
    backup = back_up(server.url(DATABASE))
    make_user(server, f"ALL PRIVILEGES ON {DATABASE}.*")
    with pytest.raises(RestoreError, match=r"lacks .*CREATE.* on target__holdfast") as raised:
        stage(backup, server.url(DATABASE, user=USER))
    assert "GRANT ALL PRIVILEGES ON `target%`.*" in raised.value.hint


def test_a_user_with_just_the_rights_that_are_asked_for_restores(server: Server) -> None:
    make_everything(server, DATABASE)
    server.run("DROP PROCEDURE foreign_definer", database=DATABASE)
    make_user(server, f"ALL PRIVILEGES ON `{DATABASE}%`.*", "SET USER ON *.*", "SELECT ON mysql.proc")
    server.run("SET GLOBAL log_bin_trust_function_creators = 1")
    try:
        old = description(server, DATABASE)
        url = server.url(DATABASE, user=USER)
        backup = back_up(url)
        server.run("DROP TABLE child", "DROP VIEW named", database=DATABASE)
        stage(backup, url).apply()
        assert description(server, DATABASE) == old
    finally:
        server.run("SET GLOBAL log_bin_trust_function_creators = 0")


def test_a_definer_that_may_not_be_set_is_replaced_and_told(server: Server) -> None:
    make_small(server)
    server.run("CREATE DEFINER = 'a'@'b' PROCEDURE p() SELECT 1", database=DATABASE)
    backup = back_up(server.url(DATABASE))
    server.run("DROP PROCEDURE p", "DROP VIEW items", database=DATABASE)
    make_user(server, f"ALL PRIVILEGES ON `{DATABASE}%`.*", "SELECT ON mysql.proc")
    events: list[Event] = []
    stage(backup, server.url(DATABASE, user=USER), emit=events.append).apply()
    assert [event for event in events if isinstance(event, Warned) and "procedure p" in event.message]
    assert server.rows(
        f"SELECT DEFINER FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = '{DATABASE}'"
    ) == [(f"{USER}@localhost",)]


@pytest.mark.parametrize(
    "statement",
    [
        "USE other",
        "CREATE DATABASE other_new",
        "DROP DATABASE other",
        "/*!40000 DROP DATABASE IF EXISTS `other`*/",
        "DROP TABLE other.item",
        "DROP TABLE IF EXISTS `other`.`item`",
        "INSERT INTO `other`.`item` VALUES (9,'x')",
        "CREATE TABLE `other`.`x` (id int)",
        "GRANT ALL ON *.* TO 'x'@'y' IDENTIFIED BY 'z'",
        "SET GLOBAL event_scheduler = OFF; DROP TABLE other.item",
        "INSERT INTO `item` VALUES (9,'x'); DROP TABLE other.item",
        "CREATE TABLE `x` (id int); DROP TABLE other.item",
        "/*!50003 CREATE*/ /*!50020 DEFINER=`root`@`localhost`*/ /*!50003 PROCEDURE other.`p`() SELECT 1 */",
        "CREATE DEFINER=`root`@`localhost` PROCEDURE `other`.`p`() SELECT 1",
        "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE item",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
    ],
)
def test_a_dump_cannot_reach_beyond_its_database(server: Server, statement: str) -> None:
    make_small(server)
    make_small(server, "other")
    other = description(server, "other")
    backup = back_up(server.url(DATABASE))
    mark = b"--\n-- Table structure"
    hostile = edited(backup, lambda dump: dump.replace(mark, statement.encode() + b";\n" + mark, 1))
    assert hostile.content != backup.content
    refused(hostile, server, (CorruptBackup, RestoreError))  # type: ignore[arg-type]
    assert description(server, "other") == other
    assert server.schemas("^other_new") == []
    assert server.rows("SELECT @@event_scheduler") == [("ON",)]


@pytest.mark.parametrize("command", ["\\! touch {}", "system touch {}", "source {}", "\\T {}", "tee {}"])
def test_commands_of_a_client_do_nothing(server: Server, tmp_path: Path, command: str) -> None:
    make_small(server)
    backup = back_up(server.url(DATABASE))
    file = tmp_path / "made"
    line = command.format(file).encode() + b"\n"
    mark = b"--\n-- Table structure"
    for text in (line, line.rstrip() + b";\n"):
        hostile = edited(backup, lambda dump, text=text: dump.replace(mark, text + mark, 1))  # type: ignore[misc]
        refused(hostile, server, CorruptBackup)
    assert not file.exists()


def test_a_trigger_that_names_a_live_database_is_made_where_it_belongs(server: Server) -> None:
    make_small(server)
    server.run(
        f"CREATE TRIGGER {DATABASE}.tr BEFORE INSERT ON {DATABASE}.item FOR EACH ROW SET NEW.text = 'by trigger'",
        database=DATABASE,
    )
    backup = back_up(server.url(DATABASE))
    before = description(server, DATABASE)
    swap = stage(backup, server.url(DATABASE))
    assert description(server, DATABASE) == before
    swap.discard()


def test_events_do_not_run_on_what_is_staged(server: Server) -> None:
    make_small(server)
    server.run(
        "CREATE EVENT eager ON SCHEDULE EVERY 1 SECOND DO INSERT INTO item VALUES (RAND() * 1000000, 'event')",
        database=DATABASE,
    )
    backup = back_up(server.url(DATABASE))
    server.run("DROP EVENT eager", database=DATABASE)
    swap = stage(backup, server.url(DATABASE))
    staged = swap.to_journal()["run"]
    assert server.rows(f"SELECT 1 FROM information_schema.EVENTS WHERE EVENT_SCHEMA LIKE '%{staged}%'") == []
    swap.apply()
    assert server.rows(f"SELECT STATUS FROM information_schema.EVENTS WHERE EVENT_SCHEMA = '{DATABASE}'") == [
        ("ENABLED",)
    ]


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda dump: b"PGDMP" + dump, "not a dump"),
        (lambda dump: b"", "not a dump"),
        (lambda dump: dump[: len(dump) // 2], "cut off"),
        (lambda dump: dump.replace(b"-- Dump completed", b""), "cut off"),
        (lambda dump: dump.replace(b"(2,'two')", b"(2,'two'),\n(3,'three')"), "has 3 rows, and 2"),
        (lambda dump: dump.replace(b"CREATE TABLE `item`", b"CREATE TABLE `thing`"), None),
        (lambda dump: dump.replace(b"VALUES\n(1", b"VALUES\n((1"), None),
    ],
)
def test_what_is_not_the_dump_is_refused(
    server: Server, edit: Callable[[bytes], bytes], match: str | None
) -> None:
    make_small(server)
    backup = back_up(server.url(DATABASE))
    changed = edited(backup, edit)
    assert changed.content != backup.content
    refused(changed, server, (CorruptBackup, RestoreError), match)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "moment",
    [
        {},
        {"rows": {"item": "2"}},
        {"charset": "x; DROP DATABASE target"},
        {"collation": "utf8mb4_bin; DROP DATABASE target"},
        {"rows": {}},
    ],
)
def test_a_moment_that_is_none_is_refused(server: Server, moment: dict[str, object]) -> None:
    make_small(server)
    backup = back_up(server.url(DATABASE))
    changed = {**backup.moment, **moment} if moment else {}
    refused(dataclasses.replace(backup, moment=changed), server, CorruptBackup)


def test_a_server_older_than_the_dump_is_refused(server: Server) -> None:
    make_small(server)
    backup = back_up(server.url(DATABASE))
    newer = dataclasses.replace(backup, moment={**backup.moment, "version": "99.1.2-MariaDB"})
    raised = refused(newer, server, RestoreError, "99.1.2")
    assert "10." in str(raised.value) or "11." in str(raised.value)


def test_a_foreign_key_from_elsewhere_is_told_before_anything_is_made(server: Server) -> None:
    make_small(server)
    server.run(
        "CREATE DATABASE other",
        f"CREATE TABLE other.c (id INT, FOREIGN KEY (id) REFERENCES {DATABASE}.item (id))",
    )
    refused(back_up(server.url(DATABASE)), server, RestoreError, "foreign key of other.c")


def test_a_view_that_cannot_be_made_fails_the_staging(server: Server) -> None:
    make_small(server, "other")
    make_small(server)
    server.run("CREATE VIEW far AS SELECT * FROM other.item", database=DATABASE)
    backup = back_up(server.url(DATABASE))
    server.drop("other")
    server.run("DROP VIEW far", database=DATABASE)
    refused(backup, server, RestoreError, "view far cannot be made")


def test_a_live_view_that_refers_to_nothing_does_not_hinder(server: Server) -> None:
    make_small(server)
    backup = back_up(server.url(DATABASE))
    old = description(server, DATABASE)
    server.run(
        "CREATE TABLE gone (id INT)",
        "CREATE VIEW broken AS SELECT * FROM gone",
        "DROP TABLE gone",
        "DROP TABLE item",
        database=DATABASE,
    )
    swap = stage(backup, server.url(DATABASE))
    swap.apply()
    assert description(server, DATABASE) == old
    undone = swap.reversed()
    undone.apply()
    assert "broken" in undone.note
    assert server.rows("SHOW TABLES", DATABASE) == [("items",)]


def test_a_journal_is_not_believed(server: Server) -> None:
    url = server.url(DATABASE)
    swaps = MySqlSwaps(lambda: [url], timeout=1)
    make_small(server)
    good = stage(back_up(url), url).to_journal()
    assert isinstance(swaps.from_journal(good), MySqlSwap)
    for change in ({"run": "x"}, {"run": 7}, {"step": -1}, {"step": "0"}, {"address": {}}, {"step": True}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            swaps.from_journal({**good, **change})


def test_nothing_is_undone_where_nothing_is_kept(server: Server) -> None:
    make_small(server)
    swap = stage(back_up(server.url(DATABASE)), server.url(DATABASE))
    swap.discard()
    with pytest.raises(NothingToUndo):
        swap.apply()
    swap.revert()
