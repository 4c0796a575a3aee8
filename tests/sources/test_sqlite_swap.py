from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast.errors import DatabaseBusy, NothingToUndo
from holdfast.events import ignore
from holdfast.model import Entry
from holdfast.sources.sqlite import SqliteSwap, SqliteTarget
from holdfast.sources.sqlite import _swap as _sqlite_swap
from holdfast.transaction import Transaction, recover, undo
from sources.sqlite_files import (
    client,
    committed,
    dump,
    make,
    names,
    one,
    revive,
    stage,
    wait_for_more,
    writer,
)

MODES = pytest.mark.parametrize("wal", [False, True], ids=["rollback", "wal"])


def clock() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


@MODES
@pytest.mark.parametrize("backup_wal", [False, True], ids=["from-rollback", "from-wal"])
def test_open_connections_of_other_processes_see_the_restored_rows(
    tmp_path: Path, wal: bool, backup_wal: bool
) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    backup = make(tmp_path / "backup.db", rows=900, wal=backup_wal, text="new")
    inode = live.stat().st_ino
    with client(live) as other:
        assert other("SELECT count(*) FROM item") == [[200]]
        swap = stage(backup, live)
        swap.apply()
        assert swap.note == ""
        assert other("SELECT count(*), min(text) LIKE 'new%' FROM item") == [[900, 1]]
        assert dump(live) == dump(backup)
        assert other("INSERT INTO ledger VALUES (7)") == []
    assert live.stat().st_ino == inode
    assert one(live, "SELECT number FROM ledger") == 7
    assert one(live, "PRAGMA journal_mode") == ("wal" if wal or backup_wal else "delete")


@MODES
def test_mode_of_the_live_file_stays(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    live.chmod(0o604)
    swap = stage(make(tmp_path / "backup.db", text="new"), live, mode=0o666)
    swap.apply()
    assert stat.S_IMODE(live.stat().st_mode) == 0o604


@MODES
def test_what_is_staged_and_kept_is_private(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    swap = stage(make(tmp_path / "backup.db", text="new"), live)
    private = Path(swap.to_journal()["place"])
    assert stat.S_IMODE((private / "0/copy.db").stat().st_mode) == 0o600
    swap.apply()
    for directory in (private, private / "0", private / "1"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@MODES
def test_revert_gives_the_previous_rows_back_to_open_connections(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    before = dump(live)
    with client(live) as other:
        other("SELECT count(*) FROM item")
        swap = stage(make(tmp_path / "backup.db", rows=900, text="new"), live)
        swap.apply()
        other("INSERT INTO ledger VALUES (7)")
        revive(swap).revert()
        assert other("SELECT count(*) FROM item") == [[200]]
        assert dump(live) == before
        other("INSERT INTO ledger VALUES (8)")
        revive(swap).revert()
        assert other("SELECT number FROM ledger") == [[8]], "a second revert took back what was written since"


@MODES
def test_revert_of_what_was_not_applied_touches_nothing(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    swap = stage(make(tmp_path / "backup.db", text="new"), live)
    with client(live) as other:
        other("INSERT INTO ledger VALUES (7)")
        revive(swap).revert()
        assert other("SELECT number FROM ledger") == [[7]]


@MODES
def test_undo_and_undo_of_undo(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    backup = make(tmp_path / "backup.db", rows=900, text="new")
    old, new = dump(live), dump(backup)
    swap = stage(backup, live)
    for expected in (new, old, new, old):
        swap.apply()
        assert swap.note == ""
        assert dump(live) == expected
        swap.settle()
        swap = revive(swap.reversed())
    swap.discard()
    assert names(tmp_path) == ["backup.db", "live.db"]


@MODES
def test_no_write_falls_between_the_kept_copy_and_the_swap(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", rows=2000, wal=wal)
    backup = make(tmp_path / "backup.db", rows=3000, text="new")
    one_log, other_log = tmp_path / "one.log", tmp_path / "other.log"
    with writer(live, one_log), writer(live, other_log, first=1_000_000):
        swap = stage(backup, live, timeout=20)
        swap.apply()
        wait_for_more(one_log)
    assert swap.note == ""
    kept = Path(swap.to_journal()["place"], "1/copy.db")
    before, after = numbers(kept), numbers(live)
    assert committed(one_log) | committed(other_log) <= before | after
    assert not before & after
    assert before
    assert after
    assert (
        one(kept, "SELECT sum(amount) FROM account") == one(live, "SELECT sum(amount) FROM account") == 1000
    )


def numbers(path: Path) -> set[int]:
    with closing(sqlite3.connect(path)) as database:
        return {number for (number,) in database.execute("SELECT number FROM ledger")}


def test_a_reader_that_does_not_let_go_has_the_file_replaced_and_that_is_said(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db")
    old = dump(live)
    backup = make(tmp_path / "backup.db", rows=900, text="new")
    with client(live) as reader:
        reader("BEGIN")
        assert reader("SELECT count(*) FROM item") == [[200]]
        swap = stage(backup, live, timeout=0.2, mode=0o640)
        swap.apply()
        assert "live.db was replaced as a file" in swap.note
        assert "restart" in swap.note
        assert dump(live) == dump(backup)
        assert stat.S_IMODE(live.stat().st_mode) == 0o640
        assert reader("SELECT count(*) FROM item") == [[200]]
        reader("COMMIT")
        assert "SQLITE_READONLY_DBMOVED" in reader("INSERT INTO ledger VALUES (7)")
        revive(swap).revert()
        assert dump(live) == old
        assert reader("INSERT INTO ledger VALUES (7)") == []


def test_no_write_is_lost_either_where_the_file_is_replaced(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db")
    log = tmp_path / "writer.log"
    with client(live) as reader, writer(live, log):
        reader("BEGIN")
        while isinstance(reader("SELECT count(*) FROM item"), str):
            pass
        # From here on no writer gets beyond its cache, but each holds its lock for a while, again and again.
        swap = stage(make(tmp_path / "backup.db", text="new"), live, timeout=2)
        swap.apply()
        wait_for_more(log)
    assert swap.note
    before, after = numbers(Path(swap.to_journal()["place"], "1/moved/database.db")), numbers(live)
    assert committed(log) <= before | after
    assert not before & after


@MODES
def test_a_transaction_that_is_not_over_by_the_deadline_is_an_error_and_is_not_lost(
    tmp_path: Path, wal: bool
) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    with client(live) as other:
        other("BEGIN IMMEDIATE")
        other("INSERT INTO ledger VALUES (7)")
        swap = stage(make(tmp_path / "backup.db", text="new"), live, timeout=0.2)
        with pytest.raises(DatabaseBusy, match=r"^Database restore failed: .*live\.db is locked"):
            swap.apply()
        other("COMMIT")
    swap.revert()
    assert one(live, "SELECT number FROM ledger") == 7


def test_in_wal_mode_a_long_reader_is_no_hindrance(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db", wal=True)
    with client(live) as reader:
        reader("BEGIN")
        reader("SELECT count(*) FROM item")
        swap = stage(make(tmp_path / "backup.db", rows=900), live)
        swap.apply()
        assert swap.note == ""
        assert reader("SELECT count(*) FROM item") == [[200]]
        reader("COMMIT")
        assert reader("SELECT count(*) FROM item") == [[900]]


@MODES
@pytest.mark.parametrize("page_size", [1024, 16384])
def test_pages_of_another_size(tmp_path: Path, wal: bool, page_size: int) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    old = dump(live)
    backup = make(tmp_path / "backup.db", rows=900, wal=wal, page_size=page_size, text="new")
    with client(live) as other:
        other("INSERT INTO ledger VALUES (7)")
        other("DELETE FROM ledger")
        swap = stage(backup, live)
        swap.apply()
        assert ("pages are of another size" in swap.note) == wal
        assert dump(live) == dump(backup)
        assert one(live, "PRAGMA page_size") == page_size
        swap.settle()
        swap = revive(swap.reversed())
        swap.apply()
        assert dump(live) == old
        assert one(live, "PRAGMA page_size") == 4096


def test_a_database_without_tables_takes_the_place_of_one_in_wal_mode(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db", wal=True)
    with closing(sqlite3.connect(tmp_path / "backup.db")) as database:
        database.execute("VACUUM")
    with client(live) as other:
        other("SELECT count(*) FROM item")
        swap = stage(tmp_path / "backup.db", live)
        swap.apply()
        assert "replaced as a file" in swap.note
    assert dump(live) == ["BEGIN TRANSACTION;", "COMMIT;"]
    revive(swap).revert()
    assert one(live, "SELECT count(*) FROM item") == 200


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 400])
def test_a_damaged_live_file_is_replaced_and_undo_gives_its_bytes_back(tmp_path: Path, damage: bytes) -> None:
    live = make(tmp_path / "live.db")
    backup = make(tmp_path / "backup.db", text="new")
    damage = damage or live.read_bytes()[:5000]
    live.write_bytes(damage)
    Path(f"{live}-wal").write_bytes(b"whatever this is")
    swap = stage(backup, live)
    swap.apply()
    assert "it is damaged" in swap.note
    assert dump(live) == dump(backup)
    swap.settle()
    back = revive(swap.reversed())
    back.apply()
    assert live.read_bytes() == damage
    assert Path(f"{live}-wal").read_bytes() == b"whatever this is"
    back.revert()
    assert dump(live) == dump(backup)
    assert not Path(f"{live}-wal").exists()
    again = revive(swap.reversed())
    again.apply()
    assert live.read_bytes() == damage


def test_a_database_that_somebody_makes_in_the_instant_when_there_is_none_is_an_error_and_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make(tmp_path / "live.db")
    damage = live.read_bytes()[:5000]
    live.write_bytes(damage)
    swap = stage(make(tmp_path / "backup.db", text="new"), live)
    unlink = _sqlite_swap._unlink

    def unlink_and_be_late(path: str | Path) -> None:
        unlink(path)
        if path == live:
            make(live, rows=1)

    with monkeypatch.context() as patched:
        patched.setattr(_sqlite_swap, "_unlink", unlink_and_be_late)
        with pytest.raises(DatabaseBusy, match="made a new"):
            swap.apply()
    revive(swap).revert()
    assert live.read_bytes() == damage


@MODES
def test_locks_of_this_process_outlast_a_swap(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    swap = stage(make(tmp_path / "backup.db", rows=900, text="new"), live)
    with closing(sqlite3.connect(live, isolation_level=None)) as own, client(live) as other:
        assert own.execute("SELECT count(*) FROM item").fetchone() == (200,)
        swap.apply()
        own.execute("BEGIN")
        assert own.execute("SELECT count(*) FROM item").fetchone() == (900,)
        with client(live) as third:
            third("SELECT count(*) FROM item")
        assert Path(f"{live}-wal").exists() == wal
        if not wal:
            assert "SQLITE_BUSY" in other("BEGIN EXCLUSIVE")
        own.execute("COMMIT")
        own.execute("BEGIN IMMEDIATE")
        assert "SQLITE_BUSY" in other("BEGIN IMMEDIATE")


def test_a_missing_database_is_made_and_revert_removes_it(tmp_path: Path) -> None:
    live = tmp_path / "live.db"
    backup = make(tmp_path / "backup.db")
    swap = stage(backup, live, mode=0o600)
    swap.apply()
    assert dump(live) == dump(backup)
    assert stat.S_IMODE(live.stat().st_mode) == 0o600
    revive(swap).revert()
    assert not live.exists()
    make(live, text="since")
    revive(swap).revert()
    assert live.exists(), "a second revert took away what was made since"


def test_undo_of_a_restore_that_made_the_database_removes_it_and_undo_of_that_brings_it_back(
    tmp_path: Path,
) -> None:
    live = tmp_path / "live.db"
    backup = make(tmp_path / "backup.db")
    swap = stage(backup, live)
    swap.apply()
    swap.settle()
    swap = revive(swap.reversed())
    swap.apply()
    assert names(tmp_path) == sorted(["backup.db", Path(swap.to_journal()["place"]).name])
    swap.settle()
    revive(swap.reversed()).apply()
    assert dump(live) == dump(backup)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    live = make(tmp_path / "data/live.db")
    link = tmp_path / "link.db"
    link.symlink_to(live)
    swap = stage(make(tmp_path / "backup.db", text="new"), link)
    swap.apply()
    assert link.is_symlink()
    assert dump(live) == dump(tmp_path / "backup.db")


_APPLY_WITH_A_LIMIT = """
import json, resource, signal, sys
from holdfast.errors import DatabaseError
from holdfast.sources.sqlite import SqliteSwap
swap = SqliteSwap.from_journal(json.loads(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    swap.apply()
except DatabaseError as error:
    print(error)
swap.revert()
"""


@MODES
def test_a_write_that_fails_in_the_middle_leaves_all_as_it_was(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "live.db", wal=wal)
    old = dump(live)
    swap = stage(make(tmp_path / "backup.db", rows=3000, text="new"), live)
    limit = str(live.stat().st_size + 64 * 1024)
    command = [sys.executable, "-c", _APPLY_WITH_A_LIMIT, json.dumps(swap.to_journal()), limit]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.startswith("Database restore failed: ")
    assert dump(live) == old


def test_a_journal_that_names_another_place_is_refused(tmp_path: Path) -> None:
    state = stage(make(tmp_path / "backup.db"), make(tmp_path / "live.db")).to_journal()
    for change in (
        {"place": "/etc"},
        {"place": str(tmp_path / "data" / Path(state["place"]).name)},
        {"live": "live.db"},
        {"step": -1},
        {"attributes": [0]},
    ):
        with pytest.raises(ValueError):
            SqliteSwap.from_journal({**state, **change})


def test_nothing_kept_is_nothing_to_undo(tmp_path: Path) -> None:
    live = make(tmp_path / "live.db")
    swap = stage(make(tmp_path / "backup.db"), live)
    with pytest.raises(NothingToUndo):
        swap.reversed().apply()
    assert one(live, "SELECT count(*) FROM item") == 200


@MODES
def test_within_a_transaction(tmp_path: Path, wal: bool) -> None:
    live = make(tmp_path / "service/live.db", wal=wal)
    backup = make(tmp_path / "backup.db", rows=900, text="new")
    old, new = dump(live), dump(backup)
    state, kinds = tmp_path / "state", {"sqlite": SqliteSwap}
    target = SqliteTarget(live, timeout=5, create_parents=False)
    entry = Entry("database/main.db", "file", size=backup.stat().st_size, mode=0o600)
    with Transaction.begin(state, kinds, verb="restore", subject="full", clock=clock) as transaction:
        swaps = target.stage(iter([entry]), lambda _: iter([backup.read_bytes()]), transaction, ignore)
        assert dump(live) == old
        assert transaction.apply(swaps) == ()
    assert dump(live) == new
    undo(state, kinds, clock)
    assert dump(live) == old
    undo(state, kinds, clock)
    assert dump(live) == new
    later = datetime(2027, 1, 1, tzinfo=UTC)
    assert recover(state, kinds, later) is not None
    assert names(live.parent) == ["live.db"]
