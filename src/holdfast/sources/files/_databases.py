"""SQLite databases among other files: how they are recognized, and how they are touched without harm.

A live database is never copied as a file. Its state is spread over the main file, a write-ahead log (``-wal``)
or rollback journal (``-journal``), and shared memory (``-shm``): https://www.sqlite.org/tempfiles.html.
"""

from __future__ import annotations

import os
import re
from collections import Counter

from holdfast.sources.files._directories import Directory
from holdfast.sources.sqlite._format import LOGS, MAGIC

SMALLEST = 512
"""Bytes of the smallest page, so of the smallest database."""

READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_file(directory: Directory, name: str) -> int:
    """A descriptor to read a file by, with the offset at its start; a link is refused. Raises OSError."""
    if _retired:
        status = os.stat(name, dir_fd=directory.descriptor(), follow_symlinks=False)
        for descriptor, identity in list(_retired.items()):
            if identity == (status.st_dev, status.st_ino) and _retired.pop(descriptor, None) is not None:
                return descriptor
    return os.open(name, READ_FILE, dir_fd=directory.descriptor())


def is_database(descriptor: int, size: int) -> bool:
    """Whether an open file of `size` bytes is a SQLite database. Leaves the offset alone."""
    return size >= SMALLEST and os.pread(descriptor, len(MAGIC), 0) == MAGIC


def has_database(directory: Directory, name: str) -> bool:
    """Whether a file is a SQLite database; False for what cannot be opened to find out."""
    try:
        descriptor = open_file(directory, name)
    except OSError:
        return False
    try:
        found = is_database(descriptor, os.fstat(descriptor).st_size)
    except OSError:
        found = False
    if found:
        close_database(descriptor)
    else:
        os.close(descriptor)
    return found


def state_beside(directory: Directory, name: str, size: int) -> tuple[str, int]:
    """The token for the logs beside a database of `size` bytes, and when they last changed, in nanoseconds.

    Empty and 0 when it has none, or only empty ones. Shared memory is no state: it can be made from the log.
    """
    parts = []
    changed = 0
    for suffix in LOGS:
        try:
            log = os.stat(name + suffix, dir_fd=directory.descriptor(), follow_symlinks=False)
        except FileNotFoundError:
            continue
        if log.st_size:
            parts.append(f"{suffix[1:]}:{log.st_size}:{log.st_mtime_ns}:{log.st_ctime_ns}:{log.st_ino}")
            changed = max(changed, log.st_mtime_ns, log.st_ctime_ns)
    return ";".join([*parts, f"size:{size}"]) if parts else "", changed


def token_to_remember(before: str, after: str) -> str:
    """The token of a snapshot, of those that `state_beside` gave before and after it was taken: the earlier, so that
    what is written meanwhile is seen as a change next time.

    But a process of root that opens a log has SQLite set the log's owner, which moves its time of change and
    nothing else. Then it is the later, or every backup would be the cause of the next one.
    """
    same = _CHANGE_TIMES.sub(r"\1", before) == _CHANGE_TIMES.sub(r"\1", after)
    return after if same else before


_CHANGE_TIMES = re.compile(r":\d+(:\d+;)")

_retired: dict[int, tuple[int, int]] = {}
"""Descriptors that wait until closing them does no harm: for each its device and inode."""


def close_database(descriptor: int) -> None:
    """Closes a descriptor of a database as soon as that does no harm.

    When a process closes any descriptor of a file, the system drops all POSIX locks that the process has on
    that file (fcntl(2)). A service that calls us has its own connections, whose locks would be gone:
    https://www.sqlite.org/howtocorrupt.html, section 2.2. So while this process has the file open elsewhere,
    the descriptor is put by, for `open_file` to take up again.
    """
    _retired[descriptor] = _identity(descriptor)
    try:
        numbers = os.listdir("/dev/fd")
    except OSError:
        return  # nobody can tell, so it waits: one for each database
    users = Counter(_identity(int(number)) for number in numbers)
    waiting = Counter(_retired.values())
    for retired, identity in list(_retired.items()):
        if users[identity] == waiting[identity] and _retired.pop(retired, None) is not None:
            os.close(retired)


def _identity(descriptor: int) -> tuple[int, int]:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return (0, 0)  # closed since it was listed
    return status.st_dev, status.st_ino
