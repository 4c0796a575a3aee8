"""Private places: directories of our own beside live data, and how they are made, opened and deleted."""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from holdfast.errors import JournalRefused, NoSpace, RestoreError

_PLACE = re.compile(r"\.holdfast-[0-9a-f]{16}-[0-9]{1,6}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH = 1000


_HINTS = {
    errno.EROFS: "Mount it writable, or restore elsewhere with --target DIR.",
    errno.EACCES: "Run as a user who may write there, or restore elsewhere with --target DIR.",
    errno.EPERM: "Run as a user who may write there, or restore elsewhere with --target DIR.",
    errno.EXDEV: "In a container, keep data on a volume, not in the image; or restore elsewhere with --target DIR.",
    errno.EBUSY: "If something is mounted there, unmount it; or restore elsewhere with --target DIR.",
}


@contextmanager
def restoring(doing: str) -> Iterator[None]:
    """Turns the operating system's refusals to change a target into NoSpace and RestoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{doing}: the disk is full") from error
        raise RestoreError(f"{doing}: {error.strerror}", hint=_HINTS.get(error.errno or 0, "")) from error


def place_name(run: str, number: int) -> str:
    """What the `number`-th private place of a run is called."""
    return f".holdfast-{run}-{number}"


def is_place_name(name: str) -> bool:
    """Whether a file of this name is a private place, never part of anybody's data."""
    return _PLACE.fullmatch(name) is not None


def open_directory(name: str | Path, dir_fd: int | None = None) -> int:
    """A descriptor of a directory that is not itself a link. Raises OSError."""
    return os.open(name, _DIRECTORY, dir_fd=dir_fd)


def open_place(name: str, dir_fd: int) -> int:
    """A descriptor of a private place. Raises FileNotFoundError; JournalRefused where it is not ours alone."""
    try:
        place = open_directory(name, dir_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise JournalRefused(f"{name} is not a directory of ours") from error
    if is_private(os.fstat(place)):
        return place
    os.close(place)
    raise JournalRefused(
        f"{name} could have been filled by somebody else: it is not a directory that only we may use",
        hint="Find out who made it, and remove it.",
    )


def is_private(status: os.stat_result) -> bool:
    """Whether we own it and nobody else may read or write it."""
    return status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077


def remove_place(path: Path) -> None:
    """Deletes a private place and all that is in it; does nothing where there is none.

    Raises OSError, and JournalRefused where the directory is not ours alone.
    """
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        place = open_place(path.name, parent)
        try:
            _empty(place)
        finally:
            os.close(place)
        os.rmdir(path.name, dir_fd=parent)
        os.fsync(parent)
    except FileNotFoundError:
        return
    finally:
        os.close(parent)


def _empty(top: int) -> None:
    # What is in a subdirectory's subdirectories rises to the top before the subdirectory goes. So a tree of any
    # depth takes two descriptors and no recursion, and a deletion that was cut short can simply start again.
    device = os.fstat(top).st_dev
    serial = itertools.count()
    while entries := list_some(top):
        for name, is_directory in entries:
            if not is_directory:
                os.unlink(name, dir_fd=top)
                continue
            inner = _open_to_empty(name, top, device)
            try:
                while inner_entries := list_some(inner):
                    for inner_name, inner_is_directory in inner_entries:
                        if inner_is_directory:
                            _raise_up(inner_name, inner, top, serial)
                        else:
                            os.unlink(inner_name, dir_fd=inner)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)


def list_some(directory: int) -> list[tuple[str, bool]]:
    """Some names in a directory, and which are directories. Empty only when there is nothing in it."""
    with os.scandir(directory) as entries:
        return [
            (entry.name, entry.is_dir(follow_symlinks=False)) for entry in itertools.islice(entries, _BATCH)
        ]


def _open_to_empty(name: str, top: int, device: int) -> int:
    try:
        inner = open_directory(name, top)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=top)
        inner = open_directory(name, top)
    status = os.fstat(inner)
    if status.st_dev != device:
        os.close(inner)
        raise OSError(errno.EXDEV, "another file system is mounted there", name)
    if status.st_mode & 0o700 != 0o700:
        os.fchmod(inner, 0o700)
    return inner


def _raise_up(name: str, inner: int, top: int, serial: itertools.count[int]) -> None:
    while True:
        risen = f"risen-{next(serial)}"
        try:
            os.stat(risen, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            break
    try:
        os.rename(name, risen, src_dir_fd=inner, dst_dir_fd=top)
    except PermissionError:
        # A directory can move to another parent only where we may write into it.
        with suppress(PermissionError):
            os.chmod(name, 0o700, dir_fd=inner)
        os.rename(name, risen, src_dir_fd=inner, dst_dir_fd=top)
