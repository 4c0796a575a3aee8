"""Dumps are counted and cut into statements, wherever the pieces they come in are cut."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from holdfast.errors import CorruptBackup, RestoreError
from holdfast.sources.mysql._dump import Tally, statements

HEAD = b"-- MySQL dump 10.13  Distrib 8.0.36\n\n"
END = b"-- Dump completed\n"
DUMP = (
    HEAD
    + b"-- CHANGE MASTER TO MASTER_LOG_FILE='binlog.000001', MASTER_LOG_POS=4849;\n"
    + b"-- SET GLOBAL gtid_slave_pos='0-1-22';\n"
    + b"CREATE TABLE `a``b` (\n  `x` int DEFAULT ';\\n'\n);\n"
    + b"CREATE TABLE `none` (\n  `x;\ny` int\n);\n"
    # as MySQL writes rows, and as MariaDB does
    + b"INSERT INTO `a``b` VALUES (1,'it\\'s (;'),(2,'\\\\'),(3,NULL),(4,'\\\\\\'(');\n"
    + b"INSERT INTO `a``b` (`p(`, `q`) VALUES\n(5,0xFF),\n(6,'''('),\n(7,'a\\n;');\n"
    + b"DELIMITER ;;\n"
    + b"CREATE PROCEDURE `p`()\nBEGIN -- don't;;\nINSERT INTO `a``b` VALUES (8);\nSELECT ';;\n';\nEND ;;\n"
    + b"DELIMITER ;\n"
    + b"/*!50001 CREATE VIEW `v` AS SELECT 1 */;\n"
    + END
)


def cut(data: bytes, seed: int) -> Iterator[bytes]:
    random_ = random.Random(seed)
    at = 0
    while at < len(data):
        size = random_.choice([1, 2, 3, 7, 40, 1000])
        yield data[at : at + size]
        at += size


@pytest.mark.parametrize("seed", range(40))
def test_rows_are_counted(seed: int) -> None:
    tally = Tally()
    for piece in cut(DUMP, seed):
        tally.feed(piece)
    assert tally.rows == {"a`b": 7, "none": 0}
    assert tally.binlog == ("binlog.000001", 4849)
    assert tally.gtid == "0-1-22"
    assert tally.is_complete
    assert tally.odd is None


@pytest.mark.parametrize("end", range(len(HEAD), len(DUMP) - len(END) + 16, 7))
def test_a_dump_that_is_cut_off_is_not_complete(end: int) -> None:
    tally = Tally()
    tally.feed(DUMP[:end])
    assert not tally.is_complete
    with pytest.raises(CorruptBackup):
        list(statements(cut(DUMP[:end], end), limit=10_000))


def test_rows_in_an_unknown_form_are_noticed() -> None:
    tally = Tally()
    tally.feed(HEAD + b"INSERT INTO `t` SELECT 1;\n" + END)
    assert tally.odd is not None


@pytest.mark.parametrize("seed", range(40))
def test_statements_are_told_apart(seed: int) -> None:
    found = list(statements(cut(DUMP, seed), limit=10_000))
    assert [statement.text[:20] for statement in found] == [
        b"CREATE TABLE `a``b` ",
        b"CREATE TABLE `none` ",
        b"INSERT INTO `a``b` V",
        b"INSERT INTO `a``b` (",
        b"CREATE PROCEDURE `p`",
        b"/*!50001 CREATE VIEW",
    ]
    assert [statement.is_program for statement in found] == [False] * 4 + [True, False]
    assert found[1].text.endswith(b"`x;\ny` int\n)")
    assert found[4].text.endswith(b"SELECT ';;\n';\nEND")


@pytest.mark.parametrize("content", [b"", b"PGDMP", b"SELECT 1;\n", b"\0" * 5_000_000])
def test_what_is_no_dump_is_refused(content: bytes) -> None:
    with pytest.raises(CorruptBackup):
        list(statements(cut(content, 1) if len(content) < 100 else iter([content]), limit=10_000))


def test_a_statement_beyond_the_limit_is_not_held_in_memory() -> None:
    def endless() -> Iterator[bytes]:
        yield HEAD + b"INSERT INTO `t` VALUES ("
        while True:
            yield b"1" * 1000

    with pytest.raises(RestoreError, match="more than 1000000 bytes") as raised:
        list(statements(endless(), limit=1_000_000))
    assert "max_allowed_packet" in raised.value.hint


def test_a_tally_does_not_grow() -> None:
    tally = Tally()
    tally.feed(HEAD + b"INSERT INTO `t` VALUES ('")
    for _ in range(200):
        tally.feed(b"x" * 100_000)
        assert len(tally._rest) <= 1
