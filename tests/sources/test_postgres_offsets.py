"""A streamed dump is told where its data lies, just as pg_dump tells it in a file."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from holdfast.sources.postgres._offsets import note_offsets
from sources.postgres_server import (
    PostgresServer,
    database_fixture,
    installed,
    newer,
    own_server,
    postgres_fixture,
)

__all__ = ["database_fixture", "postgres_fixture"]

_TIMES = slice(16, 51)
"""When a dump was made: seven numbers of five bytes."""

_TABLES = """
CREATE TABLE empty (id int);
CREATE TABLE small (id int, text text);
INSERT INTO small VALUES (1, E'\\\\.'), (2, NULL), (3, E'a\\nb\\t\\x01'), (10, ''), (256, repeat('x', 70000));
CREATE TABLE large AS SELECT n, md5(n::text) FROM generate_series(1, 100000) n;
CREATE TABLE part (id int, word text) PARTITION BY LIST (id);
CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1);
INSERT INTO part VALUES (1, 'one');
CREATE TABLE nothing ();
INSERT INTO nothing DEFAULT VALUES;
SELECT lo_from_bytea(0, decode(repeat('0a0000000000010001', 5000), 'hex'));
SELECT lo_from_bytea(0, '');
"""


def dumps(server: PostgresServer, database: str, directory: Path, *options: str) -> tuple[Path, Path]:
    """One that was streamed, and one that pg_dump wrote to a file."""
    command = [
        str(server.programs / "pg_dump"), "--format=custom", f"--dbname={server.conninfo(database)}",
        *(options or ["--compress=0"]),
    ]  # fmt: skip
    streamed, told = directory / "streamed.dump", directory / "told.dump"
    streamed.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    subprocess.run([*command, f"--file={told}"], check=True)
    return streamed, told


def without_times(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[_TIMES] = bytes(35)
    return bytes(data)


def test_the_places_are_those_that_pg_dump_writes_to_a_file(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    postgres.run(database, _TABLES)
    streamed, told = dumps(postgres, database, tmp_path)
    assert without_times(streamed) != without_times(told)
    assert note_offsets(streamed) == 6  # five tables, and the large objects
    assert without_times(streamed) == without_times(told)
    assert note_offsets(streamed) == 0


@pytest.mark.skipif(installed() is None or newer() is None, reason="there is no newer server")
def test_so_are_they_in_a_newer_format(tmp_path: Path) -> None:
    with own_server(newer()) as server:
        server.create("other")
        server.run("other", _TABLES)
        streamed, told = dumps(server, "other", tmp_path)
    assert note_offsets(streamed) == 6
    assert streamed.read_bytes()[51:] == told.read_bytes()[51:]


def test_a_dump_that_is_compressed_stays_as_it_is(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    postgres.run(database, _TABLES)
    streamed, _ = dumps(postgres, database, tmp_path, "--compress=1")
    before = streamed.read_bytes()
    assert note_offsets(streamed) == 0
    assert streamed.read_bytes() == before


def test_a_dump_that_is_damaged_stays_as_it_is(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    postgres.run(database, _TABLES)
    streamed, _ = dumps(postgres, database, tmp_path)
    whole = streamed.read_bytes()
    rng = random.Random(1)
    cuts = [whole[:size] for size in (0, 4, 40, 300, len(whole) // 2, len(whole) - 1)]
    for data in (*cuts, whole + b"\x07", whole[:200] + rng.randbytes(2000) + whole[2200:]):
        streamed.write_bytes(data)
        assert note_offsets(streamed) == 0
        assert streamed.read_bytes() == data
