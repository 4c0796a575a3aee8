"""Files that survive a crash: whole or not at all, and told in our own errors when the disk refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from holdfast.errors import LockHeld, NoSpace, StorageError


def make_private(directory: Path, top: Path) -> None:
    """Makes a directory and those between it and `top`, itself included, 0700; those above `top` as usual."""
    top.parent.mkdir(parents=True, exist_ok=True)
    for path in reversed([directory, *directory.parents]):
        if path.is_relative_to(top):
            path.mkdir(mode=0o700, exist_ok=True)


def free_bytes(directory: Path) -> int:
    """Room for us on the file system that holds `directory`, or will hold it."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def replace_file(path: Path, data: bytes, *, temporary: Path | None = None) -> None:
    """Writes a 0600 file whole, atomically and durably. `temporary`: its name until it is whole."""
    temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def file_lock(path: Path, *, shared: bool = False, what: str = "") -> Iterator[None]:
    """Holds an advisory lock on a file, which is left in place. Raises LockHeld at once if another holds it."""
    with explained(f"cannot write {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeld(f"another run is at work in {what or path}") from None
        yield
    finally:
        os.close(fd)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turns the operating system's refusals into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{doing}: the disk is full") from error
        if error.errno == errno.EROFS:
            raise StorageError(f"{doing}: it is mounted read-only") from error
        raise StorageError(f"{doing}: {os.strerror(error.errno or 0)}") from error


def temp_directory() -> Path:
    """Where large private files go that live only as long as a run: ``$TMPDIR``, else ``/var/tmp``.

    ``/tmp`` comes last because it is often held in memory.
    """
    for candidate in (os.environ.get("TMPDIR"), "/var/tmp", tempfile.gettempdir()):  # noqa: S108 - files are private
        if candidate and os.path.isdir(candidate):
            return Path(candidate)
    raise StorageError("there is no directory for temporary files", hint="Set TMPDIR.")


def private_file() -> IO[bytes]:
    """A temporary file without a name, 0600: it is gone with this process, however that ends."""
    directory = temp_directory()
    with explained(f"cannot write to {directory}"):
        return tempfile.TemporaryFile(dir=directory, prefix="holdfast-")
