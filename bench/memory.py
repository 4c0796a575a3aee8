"""Whether memory grows with the size of a file, or with the number of files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

from bench.dedup import FORMAT, MEMORY_LIMIT, SETTLE
from bench.measure import Contender, Row, in_turns
from bench.programs import Holdfast, Peers
from bench.report import Goal, Result, Table
from bench.workspace import Workspace, make_data

_SAME = (
    16_000_000  # bytes: what the allocator keeps of the blocks that were in flight differs from run to run
)


def memory(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """A file of 1 GB and one of 10 GB; 1,000 files and 1,000,000 files."""
    pairs = _pairs(space, {})
    goals = [goal for pair in pairs for goal in _same(*pair)]
    return Result("memory", [table for pair in pairs for table in pair], goals)


def dedup_memory(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """The same in the deduplicating format, which takes some bytes for each chunk."""
    tables = [table for pair in _pairs(space, FORMAT) for table in pair]
    return Result("dedup-memory", tables, (), (), MEMORY_LIMIT)


def _pairs(space: Workspace, environ: Mapping[str, str]) -> list[tuple[Table, Table]]:
    sizes = [max(1e-3, size * space.scale) for size in (1, 10)]
    counts = [max(10, round(count * space.scale)) for count in (1_000, 1_000_000)]
    big = [_measure(space, environ, f"a file of {size:g} GB", partial(_big, size), _grow) for size in sizes]
    many = [_measure(space, environ, f"{count:,} files", partial(_many, count), _leave) for count in counts]
    return [(big[0], big[1]), (many[0], many[1])]


def _measure(
    space: Workspace,
    environ: Mapping[str, str],
    what: str,
    make: Callable[[Path], None],
    change: Callable[[Path], None],
) -> Table:
    service = space.fresh("service")
    make(service / "models")
    time.sleep(SETTLE)
    holdfast = Holdfast(service, space.fresh("holdfast"), encrypt=True, environ=environ)
    target = space.path("restored")

    def one(name: str, *arguments: str) -> Row:
        return in_turns(1, [Contender(name, lambda: holdfast.run(*arguments))])[0]

    rows = in_turns(1, [Contender("backup", holdfast.backup)])
    rows.append(one("verify --deep", "verify", "latest", "--deep"))
    rows.append(one("restore --target", "restore", "latest", "--target", str(target)))
    shutil.rmtree(target)
    rows.append(one("restore --confirm", "restore", "latest", "--confirm"))
    holdfast.run("undo", "--discard")
    change(service / "models")
    rows += in_turns(1, [Contender("incremental", lambda: holdfast.backup("--incremental"))])
    space.clear()
    return Table(what, rows)


def _same(small: Table, large: Table) -> Iterable[Goal]:
    for few, many in zip(small.rows, large.rows, strict=True):
        difference = many.rss - few.rss
        yield Goal(
            f"{few.name}: as much memory for {large.title} as for {small.title}",
            f"{few.rss / 1e6:.1f} and {many.rss / 1e6:.1f} MB, {difference / 1e6:+.1f} MB",
            difference <= _SAME,
        )


def _big(gigabytes: float, directory: Path) -> None:
    make_data("big", directory, "--gigabytes", str(gigabytes))


def _grow(directory: Path) -> None:
    """A few bytes in the middle and a few at the end."""
    with (directory / "big.bin").open("r+b") as file:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        file.write(b"a few changed bytes")
        file.seek(0, os.SEEK_END)
        file.write(b"a few more bytes")


def _many(count: int, directory: Path) -> None:
    """Every second file is empty, the others nearly so; in 1,000 directories."""
    folders = min(1_000, count)
    for number in range(folders):
        folder = directory / f"{number:04d}"
        folder.mkdir(parents=True)
        for index in range(number, count, folders):
            with open(folder / f"{index:07d}", "xb") as file:
                file.write(b"%d" % index if index % 2 else b"")


def _leave(directory: Path) -> None:
    """Changes nothing."""
