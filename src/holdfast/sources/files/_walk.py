"""Walking trees of files in order, with memory that depends on neither their size nor their shape."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from holdfast.errors import SourceMissing
from holdfast.events import Emit, Skipped
from holdfast.model import Entry
from holdfast.sources.files._content import FileItem, Reader, describe
from holdfast.sources.files._databases import has_database, state_beside
from holdfast.sources.files._directories import Directory, OpenDirectories, failure
from holdfast.sources.files._excludes import Excludes
from holdfast.sources.files._links import HardLinks
from holdfast.sources.files._roots import STAGING_PREFIX, Root, below
from holdfast.sources.files._spill import Spill
from holdfast.sources.sqlite._format import LOGS, SIDE_FILES
from holdfast.text import shown

NAMES_IN_MEMORY = 50_000
"""Names that a walk keeps at most, in the directory that it is in and all those above it."""

SPECIAL = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "fifo", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class _Level:
    """A directory that is being walked."""

    __slots__ = ("directory", "held", "logged", "names", "prefix_length", "spilled_from")

    def __init__(self, directory: Directory, prefix_length: int, spilled_from: int) -> None:
        self.directory = directory
        self.prefix_length = prefix_length
        """Characters of the entry path of what is in it, up to the name."""
        self.names: Iterator[str] = iter(())
        """Those still to come, in order."""
        self.held = 0
        """How many of them are in memory."""
        self.spilled_from = spilled_from
        self.logged: set[str] | None = set()
        """Names that a database's log would belong to; None when they are too many to keep."""


class Walk:
    """One pass over the roots of a source."""

    def __init__(
        self,
        roots: Sequence[Root],
        reader: Reader,
        links: HardLinks,
        excludes: Excludes | None,
        never: Collection[str],
        emit: Emit,
    ) -> None:
        self.found: list[str] = []
        """Entry paths of the roots that were there, as far as the walk has come."""
        self._roots = roots
        self._reader = reader
        self._links = links
        self._excludes = excludes
        self._never = never
        self._emit = emit
        self._open = OpenDirectories()
        self._spill = Spill()
        self._held = 0
        self._starts: tuple[int, int] = (0, 0)
        self._hidden: dict[str, set[str]] = {}

    def items(self) -> Iterator[FileItem]:
        """Everything in the roots, ordered by `order_key` where the roots are.

        Raises SourceMissing when a root that is required is gone, or there was nothing at all.
        """
        try:
            for root in self._roots:
                yield from self._root(root)
            if not self.found:
                places = ", ".join(shown(root.real) for root in self._roots[:5])
                raise SourceMissing(f"there is nothing that can be backed up at {places}")
        finally:
            self._open.close()
            self._spill.close()
            self._links.close()

    def _root(self, root: Root) -> Iterator[FileItem]:
        self._starts = (root.path.find("/") + 1 or len(root.path) + 1, len(root.path) + 1)
        self._hidden = {}
        for path in self._never:
            relative = below(path, root.real)
            if relative:
                directory, _, name = f"{root.path}/{relative}".rpartition("/")
                self._hidden.setdefault(directory, set()).add(name)
        anchor = Directory(self._open)
        try:
            status = os.lstat(root.real)
            level = self._enter(anchor, root.real, root.path) if stat.S_ISDIR(status.st_mode) else None
        except OSError as error:
            if root.required or not isinstance(error, FileNotFoundError):
                raise failure(root.real, error) from error
            return
        if level is not None:
            self.found.append(root.path)
            yield FileItem(describe(root.path, "directory", status), anchor, root.real, self._reader)
            yield from self._tree(level, root.path + "/")
        else:
            item = self._item(anchor, root.real, root.path, status, None)
            if item is not None:
                self.found.append(root.path)
                yield item

    def _tree(self, level: _Level, prefix: str) -> Iterator[FileItem]:
        levels = [level]
        excludes = self._excludes
        while levels:
            level = levels[-1]
            directory = level.directory
            prefix = prefix[: level.prefix_length]
            for name in level.names:
                path = prefix + name
                if excludes is not None and excludes.matches(name, path, self._starts):
                    continue
                try:
                    status = os.stat(name, dir_fd=directory.descriptor(), follow_symlinks=False)
                except FileNotFoundError:
                    continue  # since it was listed; the next backup sees it deleted
                except OSError as error:
                    raise failure(directory.path(name), error) from error
                if not stat.S_ISDIR(status.st_mode):
                    item = self._item(directory, name, path, status, level.logged)
                    if item is not None:
                        yield item
                elif excludes is None or not excludes.matches_directory(name, path, self._starts):
                    try:
                        levels.append(self._enter(directory, name, path))
                    except FileNotFoundError:
                        continue
                    yield FileItem(describe(path, "directory", status), directory, name, self._reader)
                    prefix = path + "/"
                    break
            else:
                levels.pop()
                directory.close()
                self._held -= level.held
                self._spill.release(level.spilled_from)

    def _item(
        self,
        directory: Directory,
        name: str,
        path: str,
        status: os.stat_result,
        logged: Collection[str] | None,
    ) -> FileItem | None:
        """The item for what is no directory; None for what is passed over."""
        try:
            if stat.S_ISREG(status.st_mode):
                if name.endswith(SIDE_FILES) and has_database(directory, name.rpartition("-")[0]):
                    return None
                entry = self._file(directory, name, path, status, logged)
            elif stat.S_ISLNK(status.st_mode):
                target = os.readlink(name, dir_fd=directory.descriptor())
                entry = describe(path, "symlink", status, target=target)
            else:
                what = SPECIAL.get(stat.S_IFMT(status.st_mode), "special file")
                self._emit(Skipped(f"{shown(directory.path(name))} is a {what} and was passed over"))
                return None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise failure(directory.path(name), error) from error
        return FileItem(entry, directory, name, self._reader)

    def _file(
        self,
        directory: Directory,
        name: str,
        path: str,
        status: os.stat_result,
        logged: Collection[str] | None,
    ) -> Entry:
        if status.st_nlink > 1:
            first = self._links.first(status, path)
            if first is not None:
                return describe(path, "hardlink", status, target=first)
        token = ""
        if logged is None or name in logged:
            token, _ = state_beside(directory, name, status.st_size)
            if token and not has_database(directory, name):
                token = ""
        return describe(path, "file", status, size=status.st_size, token=token)

    def _enter(self, parent: Directory, name: str, path: str) -> _Level:
        """Opens and lists a directory. Raises FileNotFoundError when it is gone."""
        try:
            level = _Level(parent.enter(name), len(path) + 1, self._spill.end)
            self._list(level, self._hidden.get(path, frozenset()))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise failure(parent.path(name), error) from error
        return level

    def _list(self, level: _Level, hidden: Collection[str]) -> None:
        found = level.directory.names()
        logged: set[str] = set()
        runs: list[Iterator[str]] = []
        while batch := list(islice(found, NAMES_IN_MEMORY)):
            is_full = len(batch) == NAMES_IN_MEMORY
            names = sorted(
                name for name in batch if name not in hidden and not name.startswith(STAGING_PREFIX)
            )
            if len(logged) <= NAMES_IN_MEMORY:
                logged.update(name.rpartition("-")[0] for name in names if name.endswith(LOGS))
            if is_full or runs or self._held + len(names) > NAMES_IN_MEMORY:
                runs.append(self._spill.write(names))
            else:
                level.names = iter(names)
                level.held = len(names)
        if runs:
            level.names = heapq.merge(*runs)
        level.held += len(logged)
        if self._held + level.held > NAMES_IN_MEMORY:
            level.logged = None
            level.held -= len(logged)
        else:
            level.logged = logged
        self._held += level.held
