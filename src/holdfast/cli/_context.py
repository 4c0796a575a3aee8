"""What every command does around its own work: recover first, tell errors, choose the exit code."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from holdfast.cli._interruption import interruption
from holdfast.cli._terminal import print_json, say
from holdfast.errors import HoldfastError, Interrupted, JournalRefused, LockHeld, RestoreError
from holdfast.events import Event, Noted, Warned

if TYPE_CHECKING:
    from holdfast.installation import Installation

_THREADS = "OPENBLAS_NUM_THREADS"


@contextmanager
def command(
    *, as_json: bool = False, recovering: bool = True, looking: bool = False, measured: bool = False
) -> Iterator[Installation]:
    """Runs a command's body: loads the settings, recovers what a crashed restore left, turns errors into words and
    exit codes. `looking`: the command only looks, and may do so while a restore is at work. `measured`: its result is
    written to the metrics' textfile, where that is configured."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interruption.handle)
    try:
        from holdfast.installation import Installation
        from holdfast.jobs.recover import recover

        gc.freeze()
        gc.enable()
        installation = Installation.load()
        if installation.settings.format == "dedup" and not looking:
            _load_numpy()
        _set_up_logging(installation.settings.log_level)
        if recovering:
            try:
                recover(installation, _tell)
            except LockHeld:
                if not looking:
                    raise
            except RestoreError as error:
                # A server that is down must not keep a person from looking at what backups there are.
                if not looking or isinstance(error, JournalRefused):
                    raise
                say(f"Warning: {error}")
        try:
            yield installation
        finally:
            for message in installation.mended:
                say(f"Warning: {message}")
            if measured and installation.settings.metrics_textfile is not None:
                _write_metrics(installation)
    except (HoldfastError, KeyboardInterrupt) as error:
        fail(error, as_json=as_json)


def fail(error: BaseException, *, as_json: bool = False) -> NoReturn:
    """Tells an error, and exits with its code."""
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("interrupted")
    assert isinstance(error, HoldfastError)
    if as_json:
        print_json(
            {
                "error": type(error).__name__,
                "message": str(error),
                "hint": error.hint,
                "exit_code": error.exit_code,
            }
        )
    say(f"Error: {error}")
    for note in getattr(error, "__notes__", ()):
        say(f"Also: {note}")
    if error.hint:
        say(f"Hint: {error.hint}")
    raise typer.Exit(error.exit_code) from error


def _write_metrics(installation: Installation) -> None:
    from holdfast.metrics import after_run  # it takes long to load, and few need it

    backups = installation.repository.backups
    after_run(installation.settings, installation.state, backups, installation.clock, _tell)


def _tell(event: Event) -> None:
    if isinstance(event, Warned):
        say(f"Warning: {event.message}")
    if isinstance(event, Noted):
        say(event.message)


def _load_numpy() -> None:
    """Without the threads that it starts for linear algebra. They wait for work busily, and nobody here has any."""
    configured = os.environ.get(_THREADS)
    os.environ.setdefault(_THREADS, "1")
    try:
        importlib.import_module("numpy")
    finally:
        if configured is None:
            del os.environ[_THREADS]


def _set_up_logging(configured: str | None) -> None:
    root = logging.getLogger("holdfast")
    if level := verbosity["level"] or configured:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(level)
    else:
        # Warnings reach a person through the events; without this, logging would print them a second time.
        root.addHandler(logging.NullHandler())


verbosity: dict[str, str] = {"level": ""}
"""Set by ``-v``."""
