from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from conformance.source import SECRET, SourceConformance
from holdfast.clock import Clock
from holdfast.sources.base import Restorable, Source
from holdfast.sources.sqlite import SqliteSource, SqliteSwap, SqliteTarget
from holdfast.transaction import Kinds
from sources.sqlite_files import dump, make


class TestRollbackMode(SourceConformance):
    wal = False

    def kinds(self, root: Path) -> Kinds:
        return {SqliteSwap.kind: SqliteSwap}

    def make(self, root: Path) -> None:
        make(root / "data.db", wal=self.wal)
        self.execute(root, f"INSERT INTO item (text) VALUES ('{SECRET}')")

    def change(self, root: Path) -> None:
        self.execute(root, "UPDATE account SET amount = amount + 1 WHERE id = 2")

    def remove(self, root: Path) -> None:
        (root / "data.db").unlink()

    def source(self, root: Path, clock: Clock) -> Source:
        return SqliteSource("main", root / "data.db", root, timeout=5, clock=clock)

    def target(self, root: Path) -> Restorable:
        return SqliteTarget(root / "data.db", timeout=5, create_parents=False)

    def state(self, root: Path) -> object:
        return dump(root / "data.db") if (root / "data.db").exists() else None

    def execute(self, root: Path, statement: str) -> None:
        with closing(sqlite3.connect(root / "data.db", isolation_level=None)) as database:
            database.execute(statement)


class TestWalMode(TestRollbackMode):
    wal = True
