"""Programs that come with a database server, such as ``pg_dump``: found, run, and their refusals told as ours.

Arguments are lists, never shell strings, and never hold a secret: whoever may list processes can read them. Passwords
go through files or the child's environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from holdfast.errors import DatabaseError
from holdfast.sources.base import Pieces
from holdfast.text import harmless

PIECE_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20
_TOLD_BYTES = 4000
"""Of what a program says of its failure, the end."""
_PATIENCE = 5.0
"""Seconds in which a program that was asked to stop must have done so."""


@dataclass(frozen=True, slots=True)
class Program:
    """A command to run."""

    arguments: Sequence[str]
    doing: str
    """What an error's message begins with: ``Database backup failed``."""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What is added to the environment of this process."""
    secrets: Sequence[str] = field(default=(), repr=False)
    """Never told, whatever the program says."""
    descriptors: Sequence[int] = ()
    """Open files that it inherits."""

    def output(self) -> Pieces:
        """What it writes to its standard output, in pieces of a MiB at most.

        Raises DatabaseError after the last piece when it ended with an error: what came before is then no dump.
        Closing the generator stops the program.
        """
        with self._running(stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            _widen(child.stdout)
            buffer = bytearray(PIECE_BYTES)
            view = memoryview(buffer)
            with child.stdout as output:
                while filled := _fill(output, view):
                    yield view[:filled]

    def feed(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Writes everything to its standard input, and waits for its end. Raises DatabaseError, and what `pieces`
        raises; the program is stopped then."""
        with self._running(stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
            assert child.stdin is not None
            _widen(child.stdin)
            try:
                for piece in pieces:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[child.stdin.write(rest) :]
                child.stdin.close()
            except BrokenPipeError:
                with suppress(OSError):
                    child.stdin.close()
                if child.wait() == 0:
                    raise DatabaseError(f"{self.doing}: {self._name} ended before its input") from None

    def run(self) -> str:
        """Runs it to its end, and returns what it wrote. For short answers. Raises DatabaseError."""
        return b"".join(bytes(piece) for piece in self.output()).decode("utf-8", "replace")

    @property
    def _name(self) -> str:
        return os.path.basename(self.arguments[0])

    @contextmanager
    def _running(self, **streams: int) -> Iterator[subprocess.Popen[bytes]]:
        # A file, not a pipe: nobody reads it meanwhile, and a program that complains a lot would wait for ever.
        with tempfile.TemporaryFile() as complaints:
            try:
                child = subprocess.Popen(
                    self.arguments,
                    stdin=streams.get("stdin", subprocess.DEVNULL),
                    stdout=streams.get("stdout", subprocess.DEVNULL),
                    stderr=complaints,
                    env={**_speaking_english(os.environ), **self.environ},
                    bufsize=0,
                    pass_fds=self.descriptors,
                )
            except OSError as error:
                raise DatabaseError(f"{self.doing}: {self._name} cannot be run: {error.strerror}") from error
            try:
                yield child
                code = child.wait()
            except BaseException:
                _stop(child)
                raise
            if code:
                raise DatabaseError(f"{self.doing}: {self._name} {_ending(code)}{self._told(complaints)}")

    def _told(self, complaints: IO[bytes]) -> str:
        size = complaints.seek(0, os.SEEK_END)
        complaints.seek(max(0, size - _TOLD_BYTES))
        text = complaints.read().decode("utf-8", "replace")
        for secret in self.secrets:
            text = text.replace(secret, "…") if secret else text
        lines = [harmless(line) for line in text.splitlines() if line.strip()]
        return ": " + "; ".join(lines[-5:]) if lines else ""


def find_program(*names: str, package: str) -> str:
    """The path of the first of these programs that is installed. `package` is what to install else.

    Raises DatabaseError.
    """
    for name in names:
        if path := shutil.which(name):
            return path
    raise DatabaseError(
        f"{names[0]} is needed and not installed", hint=f"Install {package}, or put {names[0]} on PATH."
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    child.terminate()
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _fill(file: IO[bytes], view: memoryview) -> int:
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]  # a raw file, because of bufsize=0
        if not count:
            break
        filled += count
    return filled


def _widen(pipe: IO[bytes]) -> None:
    """Lets the program run ahead a little: a pipe holds 64 KiB by default (fcntl(2), F_SETPIPE_SZ)."""
    try:
        from fcntl import F_SETPIPE_SZ, fcntl
    except ImportError:  # other systems have pipes of one size
        return
    with suppress(OSError):
        fcntl(pipe, F_SETPIPE_SZ, _PIPE_BYTES)


def _speaking_english(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a program's messages are not translated, and all else is as it was: LC_ALL, which would
    win, becomes what it stands for (locale(7))."""
    names = {name: value for name, value in environ.items() if name != "LANGUAGE"}
    if everything := names.pop("LC_ALL", ""):
        names = {name: value for name, value in names.items() if not name.startswith("LC_")}
        names["LANG"] = everything
    return {**names, "LC_MESSAGES": "C"}


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
