"""The benchmark's directory: data sets, kept from one run to the next, and what the programs write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
"""Where programs that are part of the benchmark are run.

What needs memory must be such a program: a process that starts another one lends it its own memory until exec(2), and
the kernel counts that as the other one's peak. So the process that measures stays small."""

_MARKER = "holdfast-bench"
_READ = 1 << 20


class Workspace:
    """`directory` holds ``data/`` and ``work/``; `scale` makes all data larger or smaller."""

    def __init__(self, directory: Path, scale: float) -> None:
        """Raises FileExistsError for a directory that is somebody else's: it is going to delete there."""
        self.directory = directory.absolute()
        self.scale = scale
        self._work = self.directory / "work"
        self.directory.mkdir(parents=True, exist_ok=True)
        marker = self.directory / _MARKER
        if not marker.exists() and any(self.directory.iterdir()):
            raise FileExistsError(f"{self.directory} is not empty, and no directory of the benchmark")
        marker.touch()
        self.clear()

    def clear(self) -> None:
        """Deletes what the programs have written."""
        shutil.rmtree(self._work, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where something of that name is written."""
        return self._work / name

    def fresh(self, name: str) -> Path:
        """An empty directory of that name, whatever was there before."""
        path = self.path(name)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def service(self) -> Path:
        """A machine-learning service of 1136 MB times the scale."""
        return self._made(f"service-{self.scale:g}", "service", "--scale", str(self.scale))

    def small(self) -> Path:
        """A service whose models are 100,000 files of 1 to 4 KiB, times the scale."""
        count = max(200, round(100_000 * self.scale))
        return self._made(f"small-{count}", "small", "--count", str(count), inside="models")

    def models(self) -> Path:
        """A service of 40 models of 8 MB each, times the scale, two at least."""
        count = max(2, round(40 * self.scale))
        return self._made(f"models-{count}", "models", "--count", str(count), inside="models")

    def copy(self, source: Path, name: str) -> Path:
        """A copy of a data set that may be changed."""
        path = self.fresh(name)
        shutil.copytree(source, path, symlinks=True, dirs_exist_ok=True)
        return path

    def data_file(self, name: str) -> Path:
        """The path of a file that is kept with the data."""
        return self.directory / "data" / name

    def _made(self, name: str, kind: str, *options: str, inside: str = ".") -> Path:
        path = self.data_file(name)
        if not path.exists():
            unfinished = path.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            make_data(kind, unfinished / inside, *options)
            unfinished.rename(path)
        warm(path)
        return path


def make_data(kind: str, directory: Path, *options: str) -> None:
    """Runs the generator, as a program of its own."""
    argv = [sys.executable, "-m", "bench.data", kind, str(directory), *options]
    subprocess.run(argv, check=True, cwd=PROJECT)


def warm(top: Path) -> None:
    """Reads a file, or all files of a directory, so that they are in the page cache."""
    buffer = bytearray(_READ)
    found = (Path(directory, name) for directory, _, names in os.walk(top) for name in names)
    for path in [top] if top.is_file() else found:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def size_of(path: Path) -> int:
    """Bytes in all files of a directory."""
    return sum(
        Path(directory, name).stat().st_size for directory, _, names in os.walk(path) for name in names
    )


def count_of(path: Path) -> int:
    """How many files a directory holds."""
    return sum(len(names) for _, _, names in os.walk(path))
