"""Reading one entry of a tree of files: its attributes afresh, and its content as of one moment."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from holdfast.clock import Clock
from holdfast.errors import SourceChanged
from holdfast.model import Entry, EntryKind
from holdfast.sources.base import RACY_NS, Content, Pieces
from holdfast.sources.files._databases import (
    SMALLEST,
    close_database,
    is_database,
    open_file,
    state_beside,
    token_to_remember,
)
from holdfast.sources.files._directories import READ_DIRECTORY, Directory, failure
from holdfast.sources.files._links import HardLinks
from holdfast.sources.sqlite._format import MAGIC
from holdfast.sources.sqlite._snapshot import Snapshot
from holdfast.text import shown

SMALL_BYTES = 256 * 1024
"""Up to this size a file is read whole."""
PIECE_BYTES = 1024 * 1024
SPARSE_BYTES = 64 * 1024
"""Below this size holes are not worth keeping."""
BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the file system's own: stat(2)."""

ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")


def describe(
    path: str,
    kind: EntryKind,
    status: os.stat_result,
    *,
    size: int = 0,
    target: str = "",
    xattrs: dict[str, bytes] | None = None,
    token: str = "",
    racy: bool = False,
) -> Entry:
    """The entry of what has this status."""
    return Entry(
        path,
        kind,
        size,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        "",
        target,
        xattrs,
        size >= SPARSE_BYTES and kind == "file" and status.st_blocks * BLOCK_BYTES < size,
        token,
        racy,
    )


class Reader:
    """What the items of one scan share."""

    def __init__(
        self, clock: Clock, snapshot: Callable[[Path], Snapshot], links: HardLinks, *, may_grow: bool
    ) -> None:
        """`may_grow`: a file is read up to its size at opening, and may become longer meanwhile."""
        self._clock = clock
        self._snapshot = snapshot
        self._links = links
        self._may_grow = may_grow

    def read(
        self, listed: Entry, directory: Directory, name: str, settle: bool
    ) -> tuple[Entry, Content | None]:
        """What `listed` is by now; see `Item.open`."""
        try:
            if listed.kind == "directory":
                return self._directory(listed.path, directory, name), None
            if listed.kind == "symlink":
                return self._symlink(listed.path, directory, name), None
            if listed.kind == "hardlink":
                status = os.stat(name, dir_fd=directory.descriptor(), follow_symlinks=False)
                if status.st_ino == listed.inode:
                    return self._entry(listed.path, "hardlink", status, target=listed.target), None
            return self._file(listed, directory, name, settle)
        except OSError as error:
            raise failure(directory.path(name), error) from error

    def _directory(self, path: str, directory: Directory, name: str) -> Entry:
        descriptor = os.open(name, READ_DIRECTORY, dir_fd=directory.descriptor())
        try:
            return self._entry(path, "directory", os.fstat(descriptor), xattrs=read_xattrs(descriptor))
        finally:
            os.close(descriptor)

    def _symlink(self, path: str, directory: Directory, name: str) -> Entry:
        status = os.stat(name, dir_fd=directory.descriptor(), follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            raise SourceChanged(f"{shown(directory.path(name))} became something else while it was read")
        return self._entry(path, "symlink", status, target=os.readlink(name, dir_fd=directory.descriptor()))

    def _file(self, listed: Entry, directory: Directory, name: str, settle: bool) -> tuple[Entry, Content]:
        try:
            descriptor = open_file(directory, name)
        except FileNotFoundError:
            self._links.forget(listed.path)
            raise
        close: Callable[[int], None] | None = os.close
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SourceChanged(f"{shown(directory.path(name))} became something else while it was read")
            if status.st_ino != listed.inode:
                self._links.forget(listed.path)
            size = status.st_size
            xattrs = read_xattrs(descriptor)
            entry = self._entry(
                listed.path, "file", status, size=size, xattrs=xattrs
            )  # the time before reading counts
            opened = _Opened(descriptor, status, directory, name, self._may_grow, settle)
            if size <= SMALL_BYTES:
                # Read before it is known whether it is a database: looking first costs a system call a file.
                data = opened.read()
                database = size >= SMALLEST and data.startswith(MAGIC)
            else:
                database = is_database(descriptor, size)
            if database:
                close = close_database
            else:
                if size <= SMALL_BYTES:
                    opened.take(data)
                else:
                    close = None  # the stream does
                    opened.content.stream = _started(opened.pieces())
                return entry, opened.content
        finally:
            if close is not None:
                close(descriptor)
        # Only now: closing our descriptor would take away the locks of the snapshot's connection.
        return self._database(listed.path, status, xattrs, directory, name)

    def _database(
        self,
        path: str,
        status: os.stat_result,
        xattrs: dict[str, bytes] | None,
        directory: Directory,
        name: str,
    ) -> tuple[Entry, Content]:
        before, changed_ns = state_beside(directory, name, status.st_size)
        snapshot = self._snapshot(Path(directory.path(name)))
        stream = _started(_closing(snapshot))
        after, _ = state_beside(directory, name, status.st_size)
        entry = self._entry(
            path,
            "file",
            status,
            size=snapshot.size,
            xattrs=xattrs,
            token=token_to_remember(before, after),
            changed_ns=changed_ns,
        )
        return entry, Content(snapshot.size, stream=stream)

    def _entry(
        self,
        path: str,
        kind: EntryKind,
        status: os.stat_result,
        *,
        size: int = 0,
        target: str = "",
        xattrs: dict[str, bytes] | None = None,
        token: str = "",
        changed_ns: int = 0,
    ) -> Entry:
        safe_ns = int(self._clock().timestamp() * 1_000_000_000) - RACY_NS
        racy = max(status.st_mtime_ns, status.st_ctime_ns, changed_ns) > safe_ns
        return describe(path, kind, status, size=size, target=target, xattrs=xattrs, token=token, racy=racy)


class _Opened:
    """An open file, and its content as it comes."""

    def __init__(
        self,
        descriptor: int,
        status: os.stat_result,
        directory: Directory,
        name: str,
        may_grow: bool,
        settle: bool,
    ) -> None:
        self.content = Content(status.st_size)
        self._descriptor = descriptor
        self._status = status
        self._directory = directory
        self._name = name
        self._may_grow = may_grow
        self._settle = settle

    def read(self) -> bytes:
        """What a small file holds. Leaves the descriptor open."""
        size = self._status.st_size
        # Not moving the offset: a database's descriptor is put by, and read from the start another time.
        data = os.pread(self._descriptor, size, 0)
        while 0 < len(data) < size and (more := os.pread(self._descriptor, size - len(data), len(data))):
            data += more
        return data

    def take(self, data: bytes) -> None:
        """Makes what was read the content, if it is one state of the file."""
        self._compare(len(data))
        self.content.data = data.ljust(self._status.st_size, b"\0")

    def pieces(self) -> Pieces:
        """For a large file. Closes the descriptor."""
        try:
            given = yield b""
            own = memoryview(b"")
            left = self._status.st_size
            while left:
                if given is None and not own:
                    own = memoryview(bytearray(PIECE_BYTES))
                buffer = own if given is None else given
                if not (count := os.readv(self._descriptor, [buffer[:left]])):
                    break
                left -= count
                given = yield buffer[:count]
            self._compare(self._status.st_size - left)
            while left:
                zeros = bytes(min(left, PIECE_BYTES))
                left -= len(zeros)
                yield zeros
        except OSError as error:
            raise failure(self._directory.path(self._name), error) from error
        finally:
            os.close(self._descriptor)

    def _compare(self, count: int) -> None:
        """Whether `count` bytes read since `_status` was taken are one state of the file."""
        before, after = self._status, os.fstat(self._descriptor)
        if self._may_grow:
            same = after.st_size >= before.st_size
        else:
            same = (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (
                before.st_size,
                before.st_mtime_ns,
                before.st_ctime_ns,
            )
        self.content.changed = not same or count != before.st_size
        if self.content.changed and not self._settle:
            raise SourceChanged(f"{shown(self._directory.path(self._name))} changed while it was read")


class FileItem:
    """An entry of a tree of files. It is best opened before the scan goes on; later works, by way of opening
    its directory again. A scan and its items are for one thread at a time; a stream may go to another."""

    __slots__ = ("_directory", "_name", "_reader", "entry")

    def __init__(self, entry: Entry, directory: Directory, name: str, reader: Reader) -> None:
        self.entry = entry
        self._directory = directory
        self._name = name
        self._reader = reader

    def open(self, *, settle: bool = False) -> tuple[Entry, Content | None]:
        """See `Item.open`. A name that has become a file of its own since it was listed as a hard link comes as a
        file. What has become something else than it was listed as is SourceChanged, even with `settle`."""
        return self._reader.read(self.entry, self._directory, self._name, settle)


def read_xattrs(descriptor: int) -> dict[str, bytes] | None:
    """The extended attributes worth keeping; None when there are none, or the system or the file system has no
    such thing. Left out are ``security.selinux``, which policy sets anew, and of ``system.*`` all but the
    access control lists, for they are the file system's own (xattr(7)). Raises OSError."""
    if not hasattr(os, "listxattr"):
        return None
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return None
        raise
    found = {}
    for name in sorted(names):
        if name == "security.selinux" or (name.startswith("system.") and name not in ACCESS_LISTS):
            continue
        try:
            found[name] = os.getxattr(descriptor, name)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed
                raise
    return found or None


def _closing(snapshot: Snapshot) -> Pieces:
    with snapshot:
        yield b""
        yield from snapshot.pieces()


def _started(pieces: Pieces) -> Pieces:
    """Past the empty first piece: closing a generator that has not begun would not run its ``finally``."""
    next(pieces)
    return pieces
