"""Runs whole programs, in turns, and measures them from outside."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux


class RunFailed(Exception):
    """A program that is measured failed, or gave a wrong result: there is nothing to compare then."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a program, or of a pipeline of them."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds, user and system, of all processes."""
    rss: int
    """Bytes: the most that any one of the processes had resident at a time."""
    others: float | None
    """Processor cores that were busy meanwhile with somebody else's work; None where it cannot be told."""
    stored: int | None = None
    """Bytes it has written that count as the backup."""
    read: int | None = None
    """Bytes that all processes have read(2), whatever it was; None where the system does not tell."""

    def storing(self, size: int) -> Sample:
        return replace(self, stored=size)


def run(*pipeline: Sequence[str], cwd: Path, env: Mapping[str, str], sink: Path | None = None) -> Sample:
    """Runs programs that read from one another; the last one writes to `sink`.

    Raises RunFailed when one of them exits with anything but 0.
    """
    processes: list[subprocess.Popen[bytes]] = []
    cpu, rss = 0.0, 0
    read: int | None = 0
    with tempfile.TemporaryFile() as complaints, open(sink or os.devnull, "wb") as out:
        os.sync()  # What others have left to write is not this program's work.
        busy, start = _busy_seconds(), time.perf_counter()
        try:
            for number, argv in enumerate(pipeline, 1):
                upstream = processes[-1].stdout if processes else None
                processes.append(
                    subprocess.Popen(
                        argv,
                        cwd=cwd,
                        env=env,
                        stdin=upstream or subprocess.DEVNULL,
                        stdout=out if number == len(pipeline) else subprocess.PIPE,
                        stderr=complaints,
                    )
                )
                if upstream is not None:
                    upstream.close()
            for process in processes:
                more = _bytes_read(process.pid)
                read = None if read is None or more is None else read + more
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu += usage.ru_utime + usage.ru_stime
                # The kernel counts the larger of a process and the children that it has waited for.
                rss = max(rss, usage.ru_maxrss * _RSS_UNIT)
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    process.wait()
        wall = time.perf_counter() - start
        all_busy = _busy_seconds()
        complaints.seek(0)
        told = complaints.read()[-2000:].decode(errors="replace")
    for process, argv in zip(processes, pipeline, strict=True):
        if process.returncode:
            raise RunFailed(f"{' '.join(argv)} exited with {process.returncode}:\n{told}")
    others = None if busy is None or all_busy is None else max(0.0, (all_busy - busy - cpu) / wall)
    return Sample(wall, cpu, rss, others, read=read)


def _busy_seconds() -> float | None:
    """Seconds that the cores have worked since the machine started; proc_stat(5). None where that is not told."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except FileNotFoundError:
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _bytes_read(pid: int) -> int | None:
    """What a process has read when it ends, with its children; proc_pid_io(5). It is left to be waited for.

    None where that is not told."""
    if sys.platform != "linux":
        return None
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        facts = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in facts.splitlines())["rchar"])


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to measure: what it does beside running a program is not measured."""

    name: str
    measure: Callable[[], Sample]
    is_peer: bool = False
    once: bool = False
    """For information: one run is enough."""


@dataclass(frozen=True, slots=True)
class Row:
    """All runs of one contender."""

    name: str
    is_peer: bool
    samples: tuple[Sample, ...]

    @property
    def wall(self) -> float:
        return statistics.median(sample.wall for sample in self.samples)

    @property
    def best(self) -> float:
        return min(sample.wall for sample in self.samples)

    @property
    def cpu(self) -> float:
        return statistics.median(sample.cpu for sample in self.samples)

    @property
    def rss(self) -> int:
        return max(sample.rss for sample in self.samples)

    @property
    def others(self) -> float | None:
        known = [sample.others for sample in self.samples if sample.others is not None]
        return statistics.median(known) if known else None

    @property
    def stored(self) -> int | None:
        known = [sample.stored for sample in self.samples if sample.stored is not None]
        return int(statistics.median(known)) if known else None

    @property
    def read(self) -> int | None:
        known = [sample.read for sample in self.samples if sample.read is not None]
        return int(statistics.median(known)) if known else None


def in_turns(runs: int, contenders: Sequence[Contender]) -> list[Row]:
    """Measures A, B, C, then A, B, C again: a machine that slows down slows down all of them."""
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for number in range(runs):
        for contender in contenders:
            if number and contender.once:
                continue
            sample = contender.measure()
            samples[contender.name].append(sample)
            print(f"    {contender.name}: {sample.wall:.2f} s", file=sys.stderr, flush=True)
    return [
        Row(contender.name, contender.is_peer, tuple(samples[contender.name])) for contender in contenders
    ]
