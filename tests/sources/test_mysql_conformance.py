from __future__ import annotations

import re
from pathlib import Path

import pytest

from conformance.source import SECRET, SourceConformance
from holdfast.clock import Clock
from holdfast.sources.base import Restorable, Source
from holdfast.sources.mysql import MySqlSource, MySqlSwap, MySqlSwaps, MySqlTarget
from holdfast.transaction import Kinds
from sources.mysql_server import Server, description, make_everything
from sources.mysql_server import server as server

DATABASE = "shop-db_%ü"


class TestMariaDb(SourceConformance):
    recognizes_unchanged = False
    server: Server

    @pytest.fixture(autouse=True)
    def _server(self, server: Server) -> None:
        self.server = server
        self.sources: list[MySqlSource] = []

    def kinds(self, root: Path) -> Kinds:
        return {MySqlSwap.kind: MySqlSwaps(lambda: [self.server.url(DATABASE)], timeout=5)}

    def make(self, root: Path) -> None:
        self.server.drop(*self.server.schemas("__holdfast_"), DATABASE)
        make_everything(self.server, DATABASE)
        self.server.run(f"INSERT INTO parent (name) VALUES ('{SECRET}')", database=DATABASE)

    def change(self, root: Path) -> None:
        self.server.run("UPDATE parent SET name = CONCAT(name, 'x') WHERE id = 2", database=DATABASE)

    def remove(self, root: Path) -> None:
        self.server.drop(DATABASE)

    def source(self, root: Path, clock: Clock) -> Source:
        self.sources.append(MySqlSource("main", self.server.url(DATABASE), timeout=5, clock=clock))
        return self.sources[-1]

    def target(self, root: Path) -> Restorable:
        moments = [source.record().moment for source in self.sources]
        moment = next((moment for moment in reversed(moments) if moment), {})
        return MySqlTarget(self.server.url(DATABASE), moment, timeout=5, create_database=True)

    def state(self, root: Path) -> object:
        return description(self.server, DATABASE)

    def left_over(self, root: Path) -> list[str]:
        return self.server.schemas("__holdfast_")

    def same(self, one: bytes, other: bytes) -> bool:
        position = re.compile(rb"-- (CHANGE MASTER TO MASTER_LOG_FILE|SET GLOBAL gtid_slave_pos)=.*")
        return position.sub(b"", one) == position.sub(b"", other)
