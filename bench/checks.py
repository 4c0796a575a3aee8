"""Proves that what came back is what went in."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from bench.measure import RunFailed


def same_tree(expected: Path, found: Path) -> str:
    """Compares names, modes, times and contents of two directories, databases row by row. Says what it compared.

    Raises RunFailed naming a path that differs.
    """
    want, have = _tree(expected), _tree(found)
    if want != have:
        differing = sorted(path for path, _ in want.items() ^ have.items())
        raise RunFailed(f"{found} is not what {expected} was: {', '.join(differing[:5])} differ")
    return f"{len(want):,} restored entries compared with the source"


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
