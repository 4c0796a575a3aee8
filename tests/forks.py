"""Work done in a forked child: as another user, among its own mounts, or until it is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534
_NEW_MOUNTS, _PRIVATE, _BIND = 0x20000, 0x44000, 0x1000  # unshare(2), mount(2)
_COUNTED = ("os.", "open", "shutil.", "fcntl.")


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that every user may enter, in memory where that is possible: hundreds of runs, each with dozens
    of fsyncs, should not wait for a disk."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        os.chmod(name, 0o755)  # noqa: S103  other users are part of the tests
        yield Path(os.path.realpath(name))


def run_child(action: Callable[[], object]) -> int:
    """Runs `action` in a child. Returns 0, or the signal that killed it; what it raises fails the test."""
    with warnings.catch_warnings():
        # A runner may have threads of its own. The child uses nothing that they could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001  a forked test must not go on as a second runner
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "the child failed, see its traceback"
    return 0


def run_killed(action: Callable[[], object], at: int) -> bool:
    """Runs `action` in a child that is killed as it begins its `at`-th (from 1) system call of those that Python
    tells of. Returns whether it got to its end before that."""

    def until_killed() -> None:
        seen = 0

        def count(event: str, arguments: object) -> None:
            nonlocal seen
            if event.startswith(_COUNTED):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        action()

    return run_child(until_killed) == 0


def count_calls(action: Callable[[], object]) -> int:
    """How many points there are at which `run_killed` could kill."""
    with tempfile.TemporaryFile() as file:

        def counted() -> None:
            seen = 0

            def count(event: str, arguments: object) -> None:
                nonlocal seen
                seen += event.startswith(_COUNTED)

            sys.addaudithook(count)
            action()
            file.write(b"%d" % seen)
            file.flush()

        assert run_child(counted) == 0
        file.seek(0)
        return int(file.read())


def as_nobody(action: Callable[[], object]) -> None:
    """Runs `action` in a child that is not root."""

    def demoted() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        action()

    assert run_child(demoted) == 0


def among_own_mounts(action: Callable[[], object]) -> None:
    """Runs `action` in a child whose mounts nobody else sees. Skips the test where that is not allowed."""

    def apart() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        if library.unshare(_NEW_MOUNTS) or library.mount(b"none", b"/", None, _PRIVATE, None):
            os.kill(os.getpid(), signal.SIGUSR1)
        action()

    if sys.platform != "linux" or os.geteuid() != 0 or run_child(apart) == signal.SIGUSR1:
        pytest.skip("only root on Linux can mount, and not in every container")


def bind(directory: Path, at: Path) -> None:
    """Mounts a directory at another, which is a mount point of the same file system then."""
    _mount(directory, at, "none", _BIND, "")


def mount_memory(at: Path, *, size: int) -> None:
    """Mounts an empty file system that holds `size` bytes."""
    _mount("none", at, "tmpfs", 0, f"size={size}")


def unmount(at: Path) -> None:
    assert ctypes.CDLL(None).umount2(os.fsencode(at), 0) == 0


def _mount(what: Path | str, at: Path, kind: str, flags: int, options: str) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(os.fsencode(what), os.fsencode(at), kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {at}")
