from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from conformance.source import SECRET, SourceConformance, long_after, read_all
from holdfast.clock import Clock
from holdfast.errors import HoldfastError
from holdfast.sources.base import Restorable, Source
from holdfast.sources.postgres import PostgresSource, PostgresSwap, PostgresSwaps, PostgresTarget
from holdfast.transaction import Kinds
from sources.postgres_server import PostgresServer, postgres_fixture

__all__ = ["postgres_fixture"]


class TestScratch(SourceConformance):
    """By a role that may create databases."""

    recognizes_unchanged = False
    user = "postgres"

    @pytest.fixture(autouse=True)
    def _server(
        self, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        self.server = postgres
        self.sources: list[PostgresSource] = []
        self.database = f"Feature Store-ü {tmp_path.name}"
        self.temp = tmp_path / "temp"
        self.temp.mkdir()
        monkeypatch.setenv("TMPDIR", str(self.temp))
        yield
        for name in postgres.databases():
            if tmp_path.name in name or "__holdfast_" in name:
                postgres.drop(name)

    def kinds(self, root: Path) -> Kinds:
        return {PostgresSwap.kind: PostgresSwaps(lambda: [self.url()], timeout=20)}

    def make(self, root: Path) -> None:
        self.server.create(self.database)
        self.server.run(
            self.database,
            f"CREATE TABLE item (id int PRIMARY KEY, text text); INSERT INTO item VALUES (1, '{SECRET}'), (2, 'two');"
            "CREATE VIEW last AS SELECT max(id) FROM item",
        )

    def change(self, root: Path) -> None:
        self.server.run(
            self.database, "UPDATE item SET text = 'changed' WHERE id = 2; CREATE TABLE extra (id int)"
        )

    def remove(self, root: Path) -> None:
        self.server.drop(self.database)

    def source(self, root: Path, clock: Clock) -> Source:
        self.sources.append(PostgresSource("main", self.url(), timeout=20, clock=clock))
        return self.sources[-1]

    def target(self, root: Path) -> Restorable:
        moments = [source.record().moment for source in self.sources]
        moment = next((moment for moment in reversed(moments) if moment), {})
        return PostgresTarget(self.url(), moment, timeout=20, create_database=True)

    def state(self, root: Path) -> object:
        if not self.server.has(self.database):
            return None
        tables = self.server.run(
            self.database,
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
        )
        return tables, self.server.run(self.database, "SELECT * FROM item ORDER BY id")

    def left_over(self, root: Path) -> list[str]:
        return [name for name in self.server.databases() if "__holdfast_" in name] + super().left_over(
            self.temp
        )

    def same(self, one: bytes, other: bytes) -> bool:
        return script(one) == script(other)

    def url(self) -> URL:
        return self.server.url(self.database, user=self.user)


def script(dump: bytes) -> str:
    """What a dump does, without when it was made."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(dump)
        file.flush()
        text = subprocess.run(
            ["pg_restore", "-f", "-", file.name], capture_output=True, text=True, check=True
        ).stdout
    return "\n".join(line for line in text.splitlines() if not re.match(r"--|\\(un)?restrict", line))


class TestInPlace(TestScratch):
    """By the owner of the database, who may not create another."""

    user = "tenant"

    def make(self, root: Path) -> None:
        self.server.role(self.user)
        self.server.create(self.database, f"OWNER {self.user}")
        self.server.run(
            self.database,
            f"CREATE TABLE item (id int PRIMARY KEY, text text); INSERT INTO item VALUES (1, '{SECRET}'), (2, 'two');"
            "CREATE VIEW last AS SELECT max(id) FROM item",
            user=self.user,
        )

    def change(self, root: Path) -> None:
        self.server.run(
            self.database,
            "UPDATE item SET text = 'changed' WHERE id = 2; CREATE TABLE extra (id int)",
            user=self.user,
        )

    def test_what_is_gone_comes_back(self, root: Path) -> None:
        """Not here: a role that may not create databases cannot make one, and is told so."""
        backup = read_all(self.source(root, long_after))
        self.remove(root)
        with pytest.raises(HoldfastError):
            self.stage(root, backup)
        assert self.state(root) is None
