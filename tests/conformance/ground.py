"""What a suite needs of a repository under test, and how it runs something in another process."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Protocol

from conformance.trees import Clock
from holdfast.model import BackupMetadata
from holdfast.repository.base import Repository


class Ground(Protocol):
    """A repository under test, and where it lies."""

    clock: Clock
    is_chained: ClassVar[bool]
    """Whether an incremental rests on its parent. Else every backup is whole."""
    directory: Path
    """Of the backups. Beside it lies the local state, and nothing else."""

    def repository(self) -> Repository:
        """The repository as a process that has just started sees it."""
        ...

    def files_of(self, metadata: BackupMetadata) -> list[Path]:
        """The files that hold this backup, the one with its metadata last; not those of what it rests on."""
        ...

    def strays(self) -> list[str]:
        """Files that hold no backup and record none: what nobody would ever clean up."""
        ...

    def forget(self) -> None:
        """Loses the local state, as on a new machine with the same keys."""
        ...


def ignore_progress(count: int) -> None:
    """For `Repository.verify`."""


@contextmanager
def in_child(work: Callable[[], None]) -> Iterator[int]:
    """Runs `work` in another process, up to where it raises or returns; that process then waits for its end.

    Gives the process's id once `work` is done.
    """
    done_reader, done = os.pipe()
    end_reader, end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(end)
            work()
            os.write(done, b"1")
            os.read(end_reader, 1)  # until it is killed, or the parent is gone
        except BaseException:  # noqa: BLE001  a forked test must not go on as a second runner
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(done)
    os.close(end_reader)
    try:
        assert os.read(done_reader, 1) == b"1", "the child failed"
        yield child
    finally:
        os.close(done_reader)
        os.close(end)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
