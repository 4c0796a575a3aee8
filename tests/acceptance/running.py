"""Programs run as a person runs them: as processes of their own, in the current directory."""

from __future__ import annotations

import json
import os
import pty
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


def at_terminal(command: list[str], answer: str, *, question: str = "[y/N] ") -> Done:
    """Runs a program at a terminal, and answers its question. `out` is all that the terminal shows."""
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
            start_new_session=True,
        )
    finally:
        os.close(theirs)
    shown = b""
    answered = False
    try:
        with child:
            while piece := _read(ours):
                shown += piece
                if not answered and question.encode() in shown:
                    os.write(ours, answer.encode() + b"\n")
                    answered = True
    finally:
        os.close(ours)
    assert answered, f"it never asked: {shown!r}"
    return Done(child.returncode, shown.decode(), "")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says EIO once nobody is at the other side any more
        return b""
