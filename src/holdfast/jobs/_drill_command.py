"""The user's own command on what a drill has restored: a golden prediction, say."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from holdfast.errors import HookFailed
from holdfast.events import Emit, Progressed

_GLANCE = 0.5
_PATIENCE = 5.0
"""Seconds in which a command that was asked to stop must have done so."""
_KEPT_BACK = ("ENCRYPTION_KEY", "SMTP_PASSWORD")
"""What it runs on came out of a backup, and has no use for them."""
_HINT = "Its own output says why. It stands under [drill] in holdfast.toml."


def run_command(
    command: Sequence[str], directory: Path, variables: Mapping[str, str], emit: Emit, *, timeout: float
) -> None:
    """Runs it in the directory, with the environment of this process and these variables. Its exit code decides.

    `timeout` is in seconds. `emit` is called about twice a second, and may raise Interrupted. Whatever is raised,
    the command has ended, with the processes that it started in its group. Raises HookFailed.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _KEPT_BACK}
    try:
        # Its output goes to our standard error: it must not mix with --json, and what it says may be secret, so it
        # is neither kept nor put into the error.
        child = subprocess.Popen(
            command,
            cwd=directory,
            env={**environ, **variables, "HOLDFAST_DRILL": "1"},
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
    except OSError as error:
        raise HookFailed(
            f"the drill's command {command[0]} could not be run: {error.strerror}", hint=_HINT
        ) from error
    deadline = time.monotonic() + timeout
    try:
        while (code := _wait(child, _GLANCE)) is None:
            emit(Progressed(0))
            if time.monotonic() >= deadline:
                raise HookFailed(
                    f"the drill's command {command[0]} took longer than {timeout:g} seconds", hint=_HINT
                )
    finally:
        _end(child)
    if code != 0:
        raise HookFailed(f"the drill's command {command[0]} ended with status {code}", hint=_HINT)


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends its group: what it left in the background would work on what is about to be removed."""
    if child.returncode is None:
        _signal(child, signal.SIGTERM)
        _wait(child, _PATIENCE)
    _signal(child, signal.SIGKILL)
    child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left in the group
        os.killpg(child.pid, number)
