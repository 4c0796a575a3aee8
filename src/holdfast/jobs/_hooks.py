"""Commands of the user's own, run before and after a backup."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from holdfast.errors import HookFailed


@contextmanager
def hooks(before: Sequence[Sequence[str]], after: Sequence[Sequence[str]], root: Path) -> Iterator[None]:
    """Runs `before`, and `after` whatever happens in between: what was paused must go on.

    Raises HookFailed for the first command that fails. Where the body failed too, its error is the one raised.
    """
    try:
        for command in before:
            _run(command, root)
        yield
    except BaseException as error:
        try:
            _run_all(after, root)
        except HookFailed as second:
            error.add_note(str(second))
        raise
    _run_all(after, root)


def _run_all(commands: Sequence[Sequence[str]], root: Path) -> None:
    failures = []
    for command in commands:
        try:
            _run(command, root)
        except HookFailed as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _run(command: Sequence[str], root: Path) -> None:
    # Its output goes to our standard error: it must not mix with --json, and what it says may be secret, so it is
    # neither kept nor put into the error.
    try:
        done = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, stdout=2, check=False)
    except OSError as error:
        raise HookFailed(f"the command {command[0]} could not be run: {error.strerror}") from error
    if done.returncode != 0:
        raise HookFailed(f"the command {command[0]} ended with status {done.returncode}")
