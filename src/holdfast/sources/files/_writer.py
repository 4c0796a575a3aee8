"""Writing the entries of a backup into directories that nobody uses yet.

Directories are made 0700 and files 0600, and get their attributes once nothing more is done to them.
Directories and symbolic links therefore wait until the end, in a temporary database, so that memory does not
grow with their number. Every name is reached from a descriptor, one component at a time and never through a
link: whatever a backup says, nothing is written outside its roots.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from holdfast.errors import CorruptBackup, HostileBackup, RestoreError
from holdfast.events import Emit, Warned
from holdfast.model import Entry
from holdfast.sources.base import Read
from holdfast.sources.files._attributes import Attributes, AttributeWriter
from holdfast.sources.files._directories import OPEN_DIRECTORIES, READ_DIRECTORY
from holdfast.sources.files._flush import Flusher
from holdfast.text import shown
from holdfast.transaction import restoring

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FLUSH_BYTES = 16 << 20
_BLOCK = 4096
_ZEROS = bytes(_BLOCK)
_PIECE_BYTES = 1 << 20
_NO_NAMES = frozenset(("", ".", ".."))
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


class Spot(NamedTuple):
    """Where a root is written."""

    directory: int
    """A descriptor, of a directory that the caller keeps open."""
    names: tuple[str, ...]
    """The way from there. All but the last may be missing, and are made."""


Locate = Callable[[Entry], Spot]


def write_tree(
    entries: Iterable[Entry], read: Read, roots: Collection[str], locate: Locate, emit: Emit
) -> None:
    """Writes entries, parents first, and their content.

    `roots` are entry paths; when the entry of one comes, `locate` is asked where it is to be. Durable only after
    `sync_file_system`. Raises HostileBackup for an entry that is not in a root, has no directory to be in, comes
    twice, or cannot be; CorruptBackup, NoSpace, RestoreError, and what `read` raises.
    """
    writer = _Writer(read, roots, locate, emit)
    try:
        for entry in entries:
            writer.add(entry)
        writer.finish()
    except FileExistsError as error:
        raise HostileBackup(
            f"{shown(writer.path)} is in the backup twice",
            hint="If two names differ by case only, restore to a file system that tells them apart.",
        ) from error
    except OSError:
        with restoring(f"cannot write {shown(writer.path)}"):
            raise
    except (ValueError, OverflowError) as error:
        raise HostileBackup(f"{writer.path!a} cannot be: {error}") from error
    except sqlite3.Error as error:
        raise RestoreError(
            f"cannot keep the list of directories in {tempfile.gettempdir()}: {error}",
            hint="Free some space there, or set SQLITE_TMPDIR to a directory with room.",
        ) from error
    finally:
        writer.close()


def sync_file_system(descriptor: int) -> None:
    """Makes all that was written to the file system of an open file durable. Raises OSError.

    An fsync of each file costs a disk's full latency 100,000 times, and ``sync`` waits for every disk there is
    and tells of no error. syncfs(2), from Linux 5.8 on, does tell.
    """
    import ctypes  # costs milliseconds, which only a restore should pay

    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except AttributeError:
        os.sync()
        return
    if syncfs(descriptor):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class _Writer:
    def __init__(self, read: Read, roots: Collection[str], locate: Locate, emit: Emit) -> None:
        self.path = ""
        """The entry at hand."""
        self._read = read
        self._roots = frozenset(roots)
        self._locate = locate
        self._emit = emit
        self._told: set[str] = set()
        self._attributes = AttributeWriter(self._tell)
        self._spots: dict[str, Spot] = {}
        self._flusher = Flusher()
        self._here = _Tree(self._spots)
        self._there = _Tree(self._spots)
        self._parent: str | None = None
        self._directory = -1
        self._later = sqlite3.connect("", isolation_level=None)
        self._later.execute("create table later (path, target, mode, uid, gid, mtime_ns, xattrs)")
        self._later.execute("begin")

    def close(self) -> None:
        self._here.close()
        self._there.close()
        self._later.close()
        self._flusher.close()

    def add(self, entry: Entry) -> None:
        self.path = path = entry.path
        parent, _, name = path.rpartition("/")
        if path in self._roots:
            self._begin(entry)
            directory, name = self._here.find(path, make=True)
            self._parent = None
        elif parent == self._parent and name not in _NO_NAMES:
            directory = self._directory
        else:
            directory, name = self._here.find(path)
            self._parent, self._directory = parent, directory
        if entry.kind == "file":
            attributes = Attributes.of_entry(entry)
            self._file(name, directory, self._read(entry), entry.size, entry.sparse, attributes)
        elif entry.kind == "directory":
            os.mkdir(name, 0o700, dir_fd=directory)
            self._postpone(entry, None)
        elif entry.kind == "symlink" and entry.target:
            self._postpone(entry, os.fsencode(entry.target))
        elif entry.kind == "hardlink":
            self._link(entry, name, directory)
        else:
            raise ValueError(f"a {entry.kind} to {entry.target!r}")

    def finish(self) -> None:
        """Makes the symbolic links, then gives the directories their attributes, the deepest first."""
        self._flusher.settle()
        fields = "select path, target, mode, uid, gid, mtime_ns, xattrs from later"
        for path, target, *rest in self._later.execute(f"{fields} where target is not null order by rowid"):
            self.path = os.fsdecode(path)
            directory, name = self._here.find(self.path)
            os.symlink(target, name, dir_fd=directory)
            self._attributes.write_link(name, directory, _attributes(rest), self.path)
        for path, _, *rest in self._later.execute(f"{fields} where target is null order by rowid desc"):
            self.path = os.fsdecode(path)
            self._attributes.write(self._here.enter(self.path), _attributes(rest), self.path)

    def _begin(self, entry: Entry) -> None:
        if entry.path in self._spots:
            raise FileExistsError
        self._spots[entry.path] = self._locate(entry)

    def _postpone(self, entry: Entry, target: bytes | None) -> None:
        mode, uid, gid, mtime_ns, xattrs = Attributes.of_entry(entry)
        encoded = json.dumps({name: value.hex() for name, value in xattrs.items()}) if xattrs else None
        row = (os.fsencode(entry.path), target, mode, uid, gid, mtime_ns, encoded)
        self._later.execute("insert into later values (?, ?, ?, ?, ?, ?, ?)", row)

    def _file(
        self,
        name: str,
        directory: int,
        pieces: Iterable[bytes | memoryview],
        size: int,
        sparse: bool,
        attributes: Attributes,
    ) -> None:
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            done = flushed = 0
            for piece in pieces:
                offset, done = done, done + len(piece)
                if done > size:
                    raise HostileBackup(
                        f"{shown(self.path)} holds more than the {size} bytes that it declares"
                    )
                if sparse:
                    _write_around_holes(descriptor, memoryview(piece), offset)
                else:
                    _write(descriptor, piece, offset)
                if done - flushed >= _FLUSH_BYTES and self._flusher.is_idle:
                    self._flusher.flush(descriptor)
                    flushed = done
            if done != size:
                raise CorruptBackup(f"{shown(self.path)} holds {done} bytes and declares {size}")
            if sparse:
                os.ftruncate(descriptor, size)
            self._attributes.write(descriptor, attributes, self.path)
            if size >= _FLUSH_BYTES:
                # The sync at the end finds less left to do.
                self._flusher.flush(descriptor)
        finally:
            os.close(descriptor)

    def _link(self, entry: Entry, name: str, directory: int) -> None:
        source, first = self._there.find(entry.target)
        try:
            status = os.stat(first, dir_fd=source, follow_symlinks=False)
        except FileNotFoundError:
            raise HostileBackup(f"{shown(entry.path)} is another name for what the backup lacks") from None
        if not stat.S_ISREG(status.st_mode):
            raise HostileBackup(f"{shown(entry.path)} is another name for what is no file")
        try:
            os.link(first, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._tell("hard links", entry.path)
            self._copy(first, source, name, directory)

    def _copy(self, first: str, source: int, name: str, directory: int) -> None:
        original = os.open(first, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            size = os.fstat(original).st_size
            pieces = iter(lambda: os.read(original, _PIECE_BYTES), b"")
            self._file(name, directory, pieces, size, True, Attributes.of_open(original))
        finally:
            os.close(original)

    def _tell(self, what: str, path: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._emit(Warned(f"{what} could not be given back, to {shown(path)} and maybe others"))


class _Tree:
    """The directory of some entry, and those above it, held open: the next entry is mostly near."""

    def __init__(self, spots: dict[str, Spot]) -> None:
        self._spots = spots
        self._top = -1
        self._names: list[str] = []
        self._open: list[int] = []

    def find(self, path: str, *, make: bool = False) -> tuple[int, str]:
        """A descriptor of the directory that an entry is in, and its name there.

        With `make`, missing directories are made. Raises HostileBackup for what cannot be in any.
        """
        top, names = self._way(path)
        return self._enter(top, names[:-1], path, make=make), names[-1]

    def enter(self, path: str) -> int:
        """A descriptor of a directory entry."""
        return self._enter(*self._way(path), path, make=False)

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())
        self._names = []

    def _way(self, path: str) -> tuple[int, list[str]]:
        root = path
        while root not in self._spots:
            if not root:
                raise HostileBackup(f"{path!a} is in no directory of the backup")
            root = root.rpartition("/")[0]
        directory, above = self._spots[root]
        names = [*above, *path[len(root) + 1 :].split("/")] if path != root else list(above)
        if not _NO_NAMES.isdisjoint(names):
            raise HostileBackup(f"{path!a} is no path that a backup has")
        return directory, names

    def _enter(self, top: int, names: list[str], path: str, *, make: bool) -> int:
        if top != self._top:
            self.close()
            self._top = top
        # At most OPEN_DIRECTORIES are held, the shallowest, and the last one.
        common = 0
        for name, held in zip(names[:OPEN_DIRECTORIES], self._names, strict=False):
            if name != held:
                break
            common += 1
        while len(self._open) > common:
            os.close(self._open.pop())
        self._names = names[:common]
        for name in names[common:]:
            above = self._open[-1] if self._open else top
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=above)
            try:
                descriptor = os.open(name, READ_DIRECTORY, dir_fd=above)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                raise HostileBackup(f"{path!a} is in no directory of the backup") from error
            if len(self._open) > OPEN_DIRECTORIES:
                os.close(self._open.pop())
            self._open.append(descriptor)
            self._names.append(name)
        return self._open[-1] if self._open else top


def _attributes(row: list[Any]) -> Attributes:
    mode, uid, gid, mtime_ns, xattrs = row
    decoded = {name: bytes.fromhex(value) for name, value in json.loads(xattrs).items()} if xattrs else None
    return Attributes(mode, uid, gid, mtime_ns, decoded)


def _write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    while (count := os.pwrite(descriptor, data, offset)) < len(data):
        data, offset = memoryview(data)[count:], offset + count


def _write_around_holes(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes `data` at `offset`, but for what is all zeros in a block of the file: a hole reads as zeros."""
    begin = at = 0
    while at < len(data):
        end = min(len(data), at + _BLOCK - (offset + at) % _BLOCK)
        if bytes(data[at:end]) == _ZEROS[: end - at]:
            _write(descriptor, data[begin:at], offset + begin)
            begin = end
        at = end
    _write(descriptor, data[begin:], offset + begin)
