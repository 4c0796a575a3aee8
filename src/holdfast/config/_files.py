"""Which files there are to back up, and whether they get into each other's way."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from holdfast.config._tables import FilesTable
from holdfast.errors import ConfigError
from holdfast.model import Component

USUAL: dict[Component, tuple[str, ...]] = {
    "models": ("models/",),
    "config": (".env", "*.toml", "*.yaml", "*.yml", "Dockerfile", "docker-compose.yml", "config/"),
    "logs": ("logs/",),
}
"""Where each component usually is. What ends in a slash is a directory, everything else is none: some keep a
virtual environment in ``.env``."""


@dataclass(frozen=True, slots=True)
class FilesSpec:
    """Files to back up."""

    component: Component
    name: str
    paths: tuple[Path, ...]
    """Absolute, and patterns replaced by what they match. What is configured is listed even when it is not
    there, so that it is missed. Without configuration what is there is listed; empty when nothing is."""
    exclude: tuple[str, ...] = ()
    """Patterns such as ``*.tmp`` and ``cache/``."""
    never: tuple[Path, ...] = ()
    """Absolute paths that are left out wherever they lie: keys and ``holdfast.toml``."""


def absolute(root: Path, text: str) -> Path:
    """A configured path; a relative one is relative to `root`. Links in it stay as they are."""
    return Path(os.path.normpath(root / os.path.expanduser(text)))


def find_files(root: Path, component: Component, table: FilesTable, never: Sequence[Path]) -> FilesSpec:
    """The files of a component as they lie there now."""
    if table.paths is None:
        found = [
            path for usual in USUAL[component] for path in _expand(root, usual) if _is_there(path, usual)
        ]
    else:
        found = [path for text in table.paths for path in _expand(root, text)]
    paths = tuple(path for path in dict.fromkeys(found) if path not in never)
    return FilesSpec(component, component, paths, table.exclude, tuple(never))


def _expand(root: Path, text: str) -> list[Path]:
    """What a pattern matches, in order; the path itself where it is none, or matches nothing."""
    path = absolute(root, text)
    if not glob.has_magic(text) or os.path.lexists(path):
        return [path]
    matches = glob.glob(os.path.expanduser(text), root_dir=root)
    return [absolute(root, match) for match in sorted(matches)] or [path]


def _is_there(path: Path, usual: str) -> bool:
    # A link whose target is gone counts: an unmounted disk is to be missed.
    return os.path.lexists(path) and (usual.endswith("/") or not path.is_dir())


def check_apart(backup_dir: Path, specs: Sequence[FilesSpec]) -> None:
    """Raises ConfigError when one of these places is, or lies inside, another, naming both."""
    places = [(backup_dir.resolve(), f"the backup directory {backup_dir}", True)]
    places += [(path.resolve(), f"{path} ({spec.name})", False) for spec in specs for path in spec.paths]
    # In this order a directory stands directly before something inside it, if there is any.
    places.sort(key=lambda place: (place[0].parts, place[1]))
    for (outer, outer_name, outer_backups), (inner, inner_name, inner_backups) in pairwise(places):
        # One file by two names is read twice, and that is all.
        if not inner.is_relative_to(outer) or outer.is_file():
            continue
        if outer_backups or inner_backups:
            hint = "Move the backups elsewhere with BACKUP_DIR: they cannot be part of a backup."
        else:
            hint = "Take one of them out of its `paths` in holdfast.toml."
        relation = "is the same place as" if inner == outer else "lies inside"
        raise ConfigError(f"{inner_name} {relation} {outer_name}", hint=hint)
