"""A PostgreSQL database, against PostgreSQL's own programs."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.measure import Contender, RunFailed, Sample, in_turns, run
from bench.postgres_server import PostgresServer, installed, running
from bench.programs import Holdfast, Peers
from bench.report import Goal, Result, Table, size_goal, speed_goal
from bench.workspace import Workspace, warm

_PGBENCH = 20  # its scale: 2,000,000 accounts, 307 MB on the server, a dump of 204 MB
_DUMP, _LOAD = "pg_dump -Fc -Z1", "pg_restore -j2"
_HIGH, _LOW = "holdfast, level 9", "holdfast, level 1"
_NO_SLOWER = 0.87  # the speed of what takes 1.15 times as long
_LIVE, _LOADED, _HISTORY = "live", "loaded", "history"
_DATABASE = "--component=database"

_ROWS = 3_900_000  # in the history: 500 MB on the server
_CHANGED = 100  # one row of so many
_SIZE_LIMIT = 0.05  # of the full backup

_MAKE_HISTORY = """
CREATE TABLE prediction (id bigint PRIMARY KEY, made_at timestamptz, model text, label text, confidence real,
                         request text);
INSERT INTO prediction
SELECT n, '2026-01-01'::timestamptz + n * interval '7 seconds', 'model-' || n / 100000, (ARRAY['normal', 'wear',
       'leak', 'imbalance'])[1 + abs(hashint8(n)) %% 4], abs(hashint8(n * 7)) / 2147483648.0, md5(n::text)
FROM generate_series(1, %d) n;
"""
_CHANGE = "UPDATE prediction SET label = 'reviewed', request = md5(request) WHERE id > %d AND id <= %d"

_DIGEST = "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {} t"
_TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers")


def postgres(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """A pgbench database saved and put back; then one row of a hundred changed, next to each other."""
    programs = installed()
    if programs is None:
        missing = Goal(
            "a PostgreSQL database as fast as pg_dump and pg_restore", "no server is installed", None
        )
        return Result("postgres", [], [missing])
    with running(programs) as server:
        # Both sides run the very same programs, without the wrappers that some systems have on PATH.
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        return _Measured(space, server, path).all(runs)


class _Measured:
    def __init__(self, space: Workspace, server: PostgresServer, path: str) -> None:
        self._space = space
        self._server = server
        self._path = path
        self._service = space.fresh("service")

    def all(self, runs: int) -> Result:
        scale = max(1, round(_PGBENCH * self._space.scale))
        self._server.call("createdb", _LIVE)
        self._server.call("pgbench", "--initialize", "--quiet", f"--scale={scale}", _LIVE)
        expected = self._digest(_LIVE)
        saved, dump = self._saved(scale, runs)
        restored = self._restored(dump, runs)
        checks = []
        for database, name in ((_LIVE, "holdfast"), (_LOADED, _LOAD)):
            if self._digest(database) != expected:
                raise RunFailed(f"{name} has not restored what was there")
            checks.append(f"{name}: every row of {len(_TABLES)} tables is there again")
        changed, goal = self._changed(runs)
        goals = [
            speed_goal(saved, _HIGH, _DUMP, _NO_SLOWER),
            size_goal(saved, _HIGH, _DUMP),
            speed_goal(saved, _LOW, _DUMP, _NO_SLOWER),
            speed_goal(restored, "holdfast", _LOAD, _NO_SLOWER),
            goal,
        ]
        return Result("postgres", [saved, restored, changed], goals, checks)

    def _holdfast(self, name: str, database: str, *, level: int = 9) -> Holdfast:
        return Holdfast(
            self._service,
            self._space.fresh(name),
            level=level,
            environ={"DATABASE_URL": self._server.url(database), "PATH": self._path},
        )

    def _saved(self, scale: int, runs: int) -> tuple[Table, Path]:
        dump = self._space.fresh("dumped") / "live.dump"

        def holdfast(level: int) -> Sample:
            self._server.settle()
            return self._holdfast(f"level-{level}", _LIVE, level=level).backup(_DATABASE)

        contenders = [
            Contender(_HIGH, lambda: holdfast(9)),
            Contender(_LOW, lambda: holdfast(1)),
            Contender(_DUMP, lambda: self._dumped(_LIVE, dump), is_peer=True),
        ]
        size = self._size(_LIVE)
        title = f"backup of pgbench's database, scale {scale}: {size} on the server"
        return Table(title, in_turns(runs, contenders)), dump

    def _dumped(self, database: str, dump: Path) -> Sample:
        dump.unlink(missing_ok=True)
        self._server.settle()
        sample = self._run(self._server.program("pg_dump", "-Fc", "-Z1", "-f", str(dump), database))
        return sample.storing(dump.stat().st_size)

    def _restored(self, dump: Path, runs: int) -> Table:
        saved = self._holdfast("restored", _LIVE)
        saved.backup(_DATABASE)
        warm(saved.backups)
        warm(dump)
        self._server.call("createdb", _LOADED)

        def holdfast() -> Sample:
            self._server.settle()
            sample = saved.run("restore", "latest", _DATABASE, "--confirm")
            saved.run("undo", "--discard")
            return sample

        def loaded() -> Sample:
            self._server.settle()
            return _in_all(
                self._run(self._server.program("dropdb", _LOADED)),
                self._run(self._server.program("createdb", _LOADED)),
                self._run(self._server.program("pg_restore", "-j2", "-d", _LOADED, str(dump))),
            )

        contenders = [Contender("holdfast", holdfast), Contender(_LOAD, loaded, is_peer=True)]
        return Table("restore of it, over the one that is there", in_turns(runs, contenders))

    def _changed(self, runs: int) -> tuple[Table, Goal]:
        rows = max(_CHANGED, round(_ROWS * self._space.scale))
        self._server.call("createdb", _HISTORY)
        self._server.ask(_HISTORY, _MAKE_HISTORY % rows)
        size = self._size(_HISTORY)
        holdfast = self._holdfast("history", _HISTORY)
        dump = self._space.fresh("dumped") / "history.dump"
        contenders = [
            Contender("holdfast, full", lambda: holdfast.backup(_DATABASE)),
            Contender(_DUMP, lambda: self._dumped(_HISTORY, dump), is_peer=True),
        ]
        full = in_turns(1, contenders)
        self._server.ask(_HISTORY, _CHANGE % (rows // 2, rows // 2 + rows // _CHANGED))
        again = in_turns(
            runs, [Contender("holdfast, incremental", lambda: holdfast.backup("--incremental", _DATABASE))]
        )
        added, whole = again[0].stored or 0, full[0].stored or 1
        goal = Goal(
            f"holdfast: an incremental for 1 % of the rows stores under {_SIZE_LIMIT:.0%} of the full backup",
            f"{added / 1e6:.2f} MB of {whole / 1e6:.2f} MB, {added / whole:.2%}",
            added < _SIZE_LIMIT * whole,
        )
        title = f"{rows // _CHANGED:,} of {rows:,} rows changed, next to each other: {size} on the server"
        return Table(title, [*full, *again]), goal

    def _run(self, argv: Sequence[str]) -> Sample:
        return run(argv, cwd=self._service, env={"PATH": self._path, **self._server.environment})

    def _size(self, database: str) -> str:
        return (
            f"{int(self._server.ask(database, 'SELECT pg_database_size(current_database())')) / 1e6:,.0f} MB"
        )

    def _digest(self, database: str) -> list[str]:
        """The same for the same rows, in whichever order they lie."""
        return [self._server.ask(database, _DIGEST.format(table)) for table in _TABLES]


def _in_all(*samples: Sample) -> Sample:
    """Runs after one another, as one."""
    wall = sum(sample.wall for sample in samples)
    others = [(sample.others or 0) * sample.wall for sample in samples]
    return Sample(
        wall,
        sum(sample.cpu for sample in samples),
        max(sample.rss for sample in samples),
        None if any(sample.others is None for sample in samples) else sum(others) / wall,
    )
