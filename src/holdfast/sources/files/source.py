"""Directories and files: models, configuration, logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from holdfast.clock import Clock
from holdfast.errors import SourceMissing
from holdfast.events import Emit, ignore
from holdfast.model import Component, Finding, SourceRecord
from holdfast.sources.base import Method
from holdfast.sources.files._content import FileItem, Reader
from holdfast.sources.files._excludes import Excludes
from holdfast.sources.files._links import HardLinks
from holdfast.sources.files._roots import Root, RootFinder
from holdfast.sources.files._walk import Walk
from holdfast.sources.sqlite._snapshot import Snapshot
from holdfast.text import shown


class FilesSource:
    """Trees of files below some paths, and single files. Implements `Source`.

    What lies in the service root has the entry path ``files/<path in the service root>``; all else has
    ``absolute/<absolute path>``. A path that is a link is followed; links further down are entries.
    A SQLite database among the files is read through a snapshot, and the files beside it that belong to it are
    left out. Left out as well: what a restore is staging (``.holdfast-*``), and sockets, fifos and devices,
    which are told as `Skipped`.
    """

    method: ClassVar[Method] = Method.FILES

    def __init__(
        self,
        component: Component,
        name: str,
        root: Path,
        paths: Sequence[str | Path],
        *,
        exclude: Sequence[str] = (),
        never: Collection[Path] = (),
        optional: bool = False,
        clock: Clock,
        snapshot: Callable[[Path], Snapshot],
    ) -> None:
        """`root` is the service root. `paths` are absolute, or relative to it; the last part of one may be a
        pattern (``*.toml``), which may match nothing. `exclude`: patterns, see `Excludes`. `never`: files and
        directories that are left out wherever they are met. `optional`: paths that are not there are passed
        over, so long as there is one. `snapshot` opens a database as of one moment.

        Raises ConfigError for a path or pattern that means nothing.
        """
        self.component = component
        self.name = name
        self.tolerates_change = component in ("config", "logs")
        self._excludes = Excludes(exclude) if exclude else None
        self._never = frozenset(os.path.realpath(path) for path in never)
        self._paths = [os.fspath(path) for path in paths]
        self._finder = RootFinder(os.path.abspath(root), self._paths, optional=optional, never=self._never)
        self._clock = clock
        self._snapshot = snapshot
        self._found: list[str] = []

    def present(self) -> bool:
        """Whether there is anything to back up. Raises SourceUnreadable."""
        try:
            return bool(self._roots())
        except SourceMissing:
            return False

    def record(self) -> SourceRecord:
        """The roots are those that the last scan found."""
        return SourceRecord(self.component, self.name, "files", roots=tuple(self._found))

    def check(self) -> Iterator[Finding]:
        """See `Source.check`. Lists everything."""
        subject = self.component if self.name == self.component else f"{self.component} {self.name}"
        size = entries = 0
        for item in self.scan(ignore):
            entries += 1
            size += item.entry.size if item.entry.kind == "file" else 0
        yield Finding(subject, "ok", f"{entries:,} entries, {size / 1e6:,.1f} MB")

    def scan(self, emit: Emit) -> Iterator[FileItem]:
        """See `Source.scan`. Raises SourceUnreadable for a directory that may not be listed, SourceChanged for
        one that is moved while it is read."""
        roots = self._roots()
        links = HardLinks()
        reader = Reader(self._clock, self._snapshot, links, may_grow=self.component == "logs")
        walk = Walk(roots, reader, links, self._excludes, self._never, emit)
        self._found = walk.found
        return walk.items()

    def _roots(self) -> list[Root]:
        roots = self._finder.find(self._is_excluded)
        if not roots:
            raise SourceMissing(
                f"there is nothing to back up as {self.component} {self.name}: of {self._some_paths()} nothing is "
                "there, or all of it is excluded",
                hint="Correct the paths in holdfast.toml, or leave the component out.",
            )
        return roots

    def _some_paths(self) -> str:
        return ", ".join([shown(path) for path in self._paths[:5]] + ["…"] * (len(self._paths) > 5))

    def _is_excluded(self, path: str, is_directory: bool) -> bool:
        if self._excludes is None:
            return False
        name = path.rpartition("/")[2]
        starts = (path.find("/") + 1,)
        return self._excludes.matches(name, path, starts) or (
            is_directory and self._excludes.matches_directory(name, path, starts)
        )
