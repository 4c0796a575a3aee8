"""From what a person types to the entries of a backup."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.jobs._selection import SourceKey
from holdfast.model import SourceRecord
from holdfast.repository.base import StoredBackup
from holdfast.text import shown

_AREAS = ("files/", "absolute/", "database/")
_FULL = "Write one of them as an absolute path, or name its --component."


def find_paths(
    stored: StoredBackup, records: Sequence[SourceRecord], paths: Sequence[str], root: Path
) -> dict[SourceKey, list[str]]:
    """The entry paths that somebody chose, in each source that has some; none lies in another.

    `paths`: each as `ls` prints it, or relative to the service `root`, or absolute. Reads the manifest, once or
    twice. Raises UsageError for one that the backup lacks, and for one that may mean two things in it.
    """
    readings = {path: _readings(path, root) for path in paths}
    wanted = {reading for each in readings.values() for reading in each}
    found: dict[str, SourceKey] = {}
    for record in records:
        for entry in stored.entries(record):
            if entry.path in wanted:
                found.setdefault(entry.path, record.key)
    # A SQLite database also goes by where its file was.
    databases = {
        record.roots[0]: (f"database/{record.name}.db", record.key)
        for record in records
        if record.kind == "sqlite" and len(record.roots) == 1
    }
    chosen: dict[str, SourceKey] = {}
    for path, each in readings.items():
        here = {reading: found[reading] for reading in each if reading in found}
        here = here or dict(databases[reading] for reading in each if reading in databases)
        if not here:
            known = chain(databases, (e.path for record in records for e in stored.entries(record)))
            near = _nearest(known, each[0], path)
            raise UsageError(
                f"{stored.metadata.backup_id} does not hold {shown(path)}",
                hint=f"Did you mean {shown(near)}?" if near else "`holdfast ls ID` prints what it holds.",
            )
        if len(here) > 1:
            names = " and ".join(shown(entry) for entry in here)
            raise UsageError(f"{shown(path)} may mean {names}, and the backup holds both", hint=_FULL)
        chosen |= here
    by_source: dict[SourceKey, list[str]] = {}
    for path, key in chosen.items():
        if not any(path.startswith(f"{other}/") for other in chosen):
            by_source.setdefault(key, []).append(path)
    return by_source


def _readings(path: str, root: Path) -> list[str]:
    """The entry paths that it may stand for."""
    if not path or "\0" in path or ".." in path.split("/"):
        raise UsageError(
            f"{path!r} is not the path of something in a backup", hint="`holdfast ls ID` prints them."
        )
    normal = os.path.normpath(path)
    if not normal.startswith("/"):
        return [*([normal] if normal.startswith(_AREAS) else []), f"files/{normal}"]
    normal = "/" + normal.lstrip("/")
    inside = [
        Path(normal).relative_to(top) for top in (root, root.resolve()) if Path(normal).is_relative_to(top)
    ]
    return list(dict.fromkeys([*(f"files/{relative}" for relative in inside), f"absolute{normal}"]))


def _nearest(paths: Iterable[str], wanted: str, typed: str) -> str:
    """The most similar path, or one that ends in what was typed; empty where there is nothing like it."""
    matcher = difflib.SequenceMatcher(b=wanted, autojunk=False)
    ending = "/" + typed.strip("/")
    best, similarity = "", 0.6
    for path in paths:
        if path.endswith(ending):
            return path
        matcher.set_seq1(path)
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
        if all(bound() > similarity for bound in bounds):
            best, similarity = path, matcher.ratio()
    return best
