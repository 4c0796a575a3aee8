"""Proves that what came back is what went in: `python -m bench.checks EXPECTED FOUND`."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from bench.measure import RunFailed
from bench.workspace import PROJECT


def same_tree(expected: Path, found: Path) -> str:
    """Compares names, modes, times and contents of two directories, databases row by row. Says what it compared.

    Raises RunFailed naming a path that differs.
    """
    argv = [sys.executable, "-m", "bench.checks", str(expected), str(found)]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(done.stderr)
    return done.stdout.strip()


def main() -> None:
    expected, found = map(Path, sys.argv[1:])
    want, have = _tree(expected), _tree(found)
    if want != have:
        differing = sorted({path for path, _ in want.items() ^ have.items()})
        sys.exit(f"{found} is not what {expected} was: {', '.join(differing[:5])} differ")
    print(f"{len(want):,} restored entries compared with the source")


def _tree(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, directories, names in os.walk(top):
        for name in [*directories, *names]:
            path = Path(directory, name)
            status = path.lstat()
            facts: tuple[object, ...] = (status.st_mode,)
            if path.suffix == ".db":
                facts += (_rows(path),)  # The same rows may lie in the file in another way.
            elif path.is_file():
                facts += (status.st_mtime_ns, _digest(path))
            found[str(path.relative_to(top))] = facts
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(path: Path) -> str:
    digest = hashlib.sha256()
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        for row in connection.execute("SELECT * FROM predictions ORDER BY id"):
            digest.update(repr(row).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
