"""What a person sees: progress on a terminal, plain lines elsewhere, tables; and JSON for a machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from holdfast.cli._interruption import interruption
from holdfast.events import Emit, Event, Noted, Progressed, RunStarted, StageStarted, Warned
from holdfast.text import harmless

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def human_size(count: float) -> str:
    """Bytes as a person reads them, in powers of 1000: ``104.9 MB``."""
    for unit in _UNITS[:-1]:
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def human_time(seconds: float) -> str:
    """``0.4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def say(line: str = "") -> None:
    """A line for a person, on standard error."""
    print(harmless(line), file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """A document for a machine, on standard output."""
    json.dump(data, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table on standard output. Nothing is cut: an id that is not whole is of no use."""
    # Not rich's: laying out a thousand rows takes it as long as reading what is in them.
    lines = [[harmless(cell) for cell in row] for row in rows]
    if any(columns):
        lines.insert(0, list(columns))
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())


def ask(question: str) -> bool:
    """Puts a question to the person at the terminal; no where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    say()
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    with interruption.immediate():
        return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def watching(*, quiet: bool = False) -> Iterator[Emit]:
    """Shows a job's events: bars on a terminal, plain lines elsewhere, on standard error; nothing when `quiet`."""
    from holdfast.eventlog import log

    with interruption.deferred():
        if quiet:
            yield _all(log)
        elif sys.stderr.isatty():
            with _bars() as show:
                yield _all(show, log)
        else:
            yield _all(_plain, log)


def _all(*subscribers: Emit) -> Emit:
    def emit(event: Event) -> None:
        interruption.check()
        for subscriber in subscribers:
            subscriber(event)

    return emit


def _plain(event: Event) -> None:
    match event:
        case RunStarted(verb, subject):
            say(f"{verb} {subject}")
        case StageStarted(stage, subject):
            say(f"  {stage} {subject}")
        case Warned(message):
            say(f"  warning: {message}")
        case Noted(message):
            say(f"  {message}")


@contextmanager
def _bars() -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    progress = Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[entries]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bars = _Bars(progress)
    try:
        yield bars.show
    finally:
        bars.finish()
        progress.stop()


class _Bars:
    """A bar for each stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._entries = 0

    def show(self, event: Event) -> None:
        match event:
            case RunStarted(verb, subject):
                self._progress.console.print(harmless(f"{verb} {subject}"), markup=False)
            case StageStarted(stage, subject, total):
                self.finish()
                self._progress.start()  # not before: a question may come first
                self._entries = 0
                self._task = self._progress.add_task(f"{stage} {subject}", total=total, entries="")
            case Progressed(done, entries) if self._task is not None:
                self._entries += entries
                noun = "entry" if self._entries == 1 else "entries"
                told = f"{self._entries:,} {noun}" if self._entries else ""
                self._progress.update(self._task, advance=done, entries=told)
            case Warned(message):
                self._progress.console.print(harmless(f"warning: {message}"), style="yellow", markup=False)
            case Noted(message):
                self._progress.console.print(harmless(message), markup=False)

    def finish(self) -> None:
        if self._task is not None:
            done = self._progress.tasks[-1].completed
            self._progress.update(self._task, total=max(done, 1), completed=max(done, 1))
            self._progress.stop_task(self._task)
            self._task = None
