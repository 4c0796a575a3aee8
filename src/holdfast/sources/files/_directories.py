"""Directories held open while they are walked, and how the operating system's refusals are told.

Everything below a root is reached through descriptors, one name at a time and without following links, so
that nobody who can write below a root can lead the reader elsewhere. It also lifts PATH_MAX.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from holdfast.errors import SourceChanged, SourceError, SourceMissing, SourceUnreadable
from holdfast.text import shown

OPEN_DIRECTORIES = 32
"""Descriptors that one scan holds for directories at most; a deeper tree has the shallowest opened again."""

READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def failure(path: str, error: OSError) -> SourceError:
    """The error of our own for what the operating system said about `path`."""
    if isinstance(error, FileNotFoundError):
        return SourceMissing(f"{shown(path)} is gone")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return SourceChanged(f"{shown(path)} became something else while it was read")
    return SourceUnreadable(f"cannot read {shown(path)}: {error.strerror}")


class Directory:
    """A directory of a tree, open or ready to be opened again.

    One without a parent stands for no directory: names "in" it are absolute paths.
    """

    __slots__ = ("__weakref__", "_descriptor", "_identity", "_name", "_open", "_parent")

    def __init__(self, opened: OpenDirectories, parent: Directory | None = None, name: str = "") -> None:
        self._open = opened
        self._parent = parent
        self._name = name
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None

    def enter(self, name: str) -> Directory:
        """Opens a directory in this one. Raises OSError."""
        below = Directory(self._open, self, name)
        below._open_again()
        return below

    def descriptor(self) -> int | None:
        """What to pass as ``dir_fd``. Raises SourceChanged when the directory had to be opened again and is
        not where it was, and OSError."""
        if self._descriptor is None and self._parent is not None:
            self._open_again()
        return self._descriptor

    def names(self) -> Iterator[str]:
        """What is in it, in no order. Raises OSError."""
        descriptor = self.descriptor()
        if descriptor is not None:
            with os.scandir(descriptor) as listing:
                for found in listing:
                    yield found.name

    def path(self, name: str) -> str:
        """The file system's path of a name in this directory: for messages, and for what takes only paths."""
        names = [name]
        directory = self
        while directory._parent is not None:
            names.append(directory._name)
            directory = directory._parent
        return os.path.join(*reversed(names))

    def close(self) -> None:
        """Frees the descriptor; `descriptor` opens the directory again."""
        if self._descriptor is not None:
            self._open.remove(self)
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        # An item that is opened after its scan has ended opens its directory again, for as long as it lives.
        self.close()

    def _open_again(self) -> None:
        closed = []
        directory = self
        while directory._descriptor is None and directory._parent is not None:
            closed.append((directory, directory._parent))
            directory = directory._parent
        for directory, parent in reversed(closed):
            directory._open_in(parent)

    def _open_in(self, parent: Directory) -> None:
        try:
            descriptor = os.open(self._name, READ_DIRECTORY, dir_fd=parent._descriptor)
        except FileNotFoundError:
            if self._identity is None:
                raise
            raise self._moved() from None
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        if self._identity not in (None, identity):
            os.close(descriptor)
            raise self._moved()
        self._identity = identity
        self._descriptor = descriptor
        self._open.add(self)

    def _moved(self) -> SourceChanged:
        return SourceChanged(f"{shown(self.path('.'))[:-2]} was moved or removed while it was read")


class OpenDirectories:
    """The directories of one scan that are open now. The one opened longest ago is closed first."""

    def __init__(self) -> None:
        self._directories: WeakKeyDictionary[Directory, None] = WeakKeyDictionary()

    def add(self, directory: Directory) -> None:
        if len(self._directories) >= OPEN_DIRECTORIES:
            next(iter(self._directories)).close()
        self._directories[directory] = None

    def remove(self, directory: Directory) -> None:
        self._directories.pop(directory, None)

    def close(self) -> None:
        for directory in list(self._directories):
            directory.close()
