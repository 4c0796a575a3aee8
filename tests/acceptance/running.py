"""Programs run as a person runs them: as processes of their own, in the current directory."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

PATIENCE = 60.0
"""Seconds. Nothing here takes as long, unless it hangs."""


class Done(NamedTuple):
    """How a program ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, all of it, as JSON."""
        return json.loads(self.out)


def command_of(*arguments: str) -> list[str]:
    """Holdfast's own program."""
    return [sys.executable, "-m", "holdfast", *arguments]


def run(command: list[str], environment: Mapping[str, str] | None = None) -> Done:
    done = subprocess.run(
        command,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def holdfast(*arguments: str, **environment: str) -> Done:
    """Runs ``holdfast`` where there is no terminal."""
    return run(command_of(*arguments), environment)


def shell(script: str) -> Done:
    """Runs lines as they would be typed, up to the first one that fails."""
    return run(["bash", "-e", "-c", script])


def at_terminal(command: list[str], answer: str | None = None) -> Done:
    """Runs a program at a terminal of the usual width, and answers its question, where it is to ask one.

    `out` is all that the terminal shows.
    """
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
            start_new_session=True,
        )
    finally:
        os.close(theirs)
    shown, answered = b"", answer is None
    with child:
        try:
            while piece := _read(ours):
                shown += piece
                if not answered and b"?" in shown.replace(_HIDE_CURSOR, b""):
                    os.write(ours, f"{answer}\n".encode())
                    answered = True
            child.wait(PATIENCE)
        finally:
            child.kill()
            os.close(ours)
    assert answered, f"it never asked: {shown!r}"
    return Done(child.returncode, shown.decode(), "")


_HIDE_CURSOR = b"\x1b[?25l"


def _read(terminal: int) -> bytes:
    """What a terminal shows next; nothing once its program has ended, or says nothing for long."""
    if not select.select([terminal], [], [], PATIENCE)[0]:
        return b""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says EIO once nobody is at the other side any more
        return b""
