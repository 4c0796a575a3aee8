"""Measures Holdfast beside the programs that people use for backups: `python -m bench`, or `make bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from bench.dedup import dedup, dedup_small
from bench.incremental import incremental
from bench.index_memory import index_memory
from bench.memory import dedup_memory, memory
from bench.one_model import one_model
from bench.postgres import postgres
from bench.programs import Peers
from bench.report import Goal, Result
from bench.service import archive, reading
from bench.small_files import small_files
from bench.start import start
from bench.weights import weights
from bench.workspace import Workspace

SCENARIOS = {
    "archive-plain": archive,
    "archive-encrypted": archive,
    "verify-deep": reading,
    "restore": reading,
    "small-files": small_files,
    "incremental": incremental,
    "dedup": dedup,
    "dedup-small": dedup_small,
    "weights": weights,
    "one-model": one_model,
    "index-memory": index_memory,
    "postgres": postgres,
    "memory": memory,
    "dedup-memory": dedup_memory,
    "start": start,
}
_LONG = ("memory", "dedup-memory")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=SCENARIOS, help=f"of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--all", action="store_true", help=f"also {', '.join(_LONG)}, which take an hour")
    parser.add_argument("--scale", type=float, default=1.0, help="less data for a quick look (default: 1)")
    parser.add_argument("--dir", type=Path, default=Path(".bench"), help="where to work (default: .bench)")
    parser.add_argument("--runs", type=int, default=3, help="runs of which the median is told (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every run there")
    arguments = parser.parse_args()
    if arguments.runs < 1 or arguments.scale <= 0:
        parser.error("--runs and --scale must be positive")
    names = arguments.only or [name for name in SCENARIOS if arguments.all or name not in _LONG]

    try:
        space = Workspace(arguments.dir, arguments.scale)
    except FileExistsError as error:
        parser.error(str(error))
    peers = Peers()
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    for version in peers.versions():
        print(f"  {version}")
    if peers.missing:
        print(f"  missing: {', '.join(peers.missing)}")
    results = []
    try:
        for scenario in dict.fromkeys(SCENARIOS[name] for name in SCENARIOS if name in names):
            together = [name for name in names if SCENARIOS[name] is scenario]
            print(f"  {', '.join(together)} …", file=sys.stderr)
            result = scenario(space, peers, arguments.runs, together)
            result.print()
            sys.stdout.flush()
            results.append(result)
            space.clear()
    finally:
        space.clear()
    print("\nall of it")
    for limit in sorted({result.memory_limit for result in results}):
        print(_memory_goal([result for result in results if result.memory_limit == limit], limit).line())
    if arguments.json:
        arguments.json.write_text(json.dumps([result.to_json() for result in results], indent=1))


def _memory_goal(results: list[Result], limit: int) -> Goal:
    rows = [row for result in results for table in result.tables for row in table.rows]
    titles = ", ".join(result.title for result in results)
    text = f"never over {limit / 1e6:.0f} MB of memory ({titles})"
    most = max((row for row in rows if not row.is_peer), key=lambda row: row.rss, default=None)
    if most is None:
        return Goal(text, "nothing was run", None)
    return Goal(
        text,
        f"at most {most.rss / 1e6:.0f} MB ({most.name})",
        most.rss < limit,
    )


if __name__ == "__main__":
    main()
