"""What has changed since the last full backup: a row and a line, and a day of work."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from functools import partial
from pathlib import Path

from bench.measure import Contender, Sample, in_turns
from bench.programs import EVERYTHING, Borg, Holdfast, Peers, Restic
from bench.report import Goal, Result, Table
from bench.workspace import Workspace, make_data, warm

_SIZE_LIMIT = 0.01  # of the full backup


def incremental(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """One row changed in the database and one line appended to a large log; then a day of work."""
    change, goal = _small_change(space, runs)
    return Result("incremental", [change, _day(space, peers)], [goal])


def _small_change(space: Workspace, runs: int) -> tuple[Table, Goal]:
    service = space.copy(space.service(), "live")
    log = _one_log(service / "logs")
    holdfast = Holdfast(service, space.fresh("holdfast"))
    full = in_turns(1, [Contender("holdfast, full", partial(holdfast.backup, *EVERYTHING))])

    def changed() -> Sample:
        with closing(sqlite3.connect(service / "service.db")) as connection, connection:
            connection.execute(
                "UPDATE predictions SET label = 'reviewed' WHERE id ="
                " (SELECT max(id) / 2 FROM predictions WHERE label <> 'reviewed')"
            )
        with log.open("ab") as file:
            file.write(b'{"level": "INFO", "message": "one more line"}\n')
        return holdfast.backup("--incremental", *EVERYTHING)

    rows = in_turns(runs, [Contender("holdfast, incremental", changed)])
    table = Table(
        f"one row of {_megabytes(service / 'service.db')}, a line of {_megabytes(log)}", [*full, *rows]
    )
    added, whole = rows[0].stored or 0, full[0].stored or 1
    goal = Goal(
        f"holdfast: an incremental for one row and one line stores under {_SIZE_LIMIT:.0%} of the full backup",
        f"{added / 1e6:.3f} MB, {added / whole:.3%}",
        added < _SIZE_LIMIT * whole,
    )
    return table, goal


def _day(space: Workspace, peers: Peers) -> Table:
    service = space.copy(space.service(), "live")
    holdfast = Holdfast(service, space.fresh("holdfast"))
    holdfast.backup(*EVERYTHING)
    contenders = [Contender("holdfast", lambda: holdfast.backup("--incremental", *EVERYTHING))]
    for name in filter(peers.have, ("restic", "borg")):
        kind = Restic if name == "restic" else Borg
        peer = kind(peers.programs[name], space.fresh(name))
        peer.backup(service)
        contenders.append(Contender(name, partial(peer.backup, service), is_peer=True))
    make_data("day", service)
    warm(service)
    return Table(
        "after a day of work: a fine-tuned model, 1 % of the rows, a quarter of a log",
        in_turns(1, contenders),
    )


def _one_log(directory: Path) -> Path:
    """All logs joined into one large one."""
    first, *others = sorted(directory.iterdir())
    with first.open("ab") as file:
        for path in others:
            file.write(path.read_bytes())
            path.unlink()
    return first


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.0f} MB in {path.name}"
