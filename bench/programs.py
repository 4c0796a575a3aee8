"""Holdfast and the programs it is compared with, each as a few calls that are measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.measure import Sample, run
from bench.workspace import size_of, warm

EVERYTHING = [f"--component={name}" for name in ("database", "models", "config", "logs")]
_NAMES = ("tar", "pigz", "gzip", "restic", "borg")


def _environment(home: Path) -> dict[str, str]:
    """Little, so that no settings of the person who runs the benchmark change what is measured."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return kept | {"HOME": str(home), "LANG": "C.UTF-8"}


class Holdfast:
    """One installation, with its state and its backups below `place`."""

    program = str(Path(sys.executable).with_name("holdfast"))

    def __init__(
        self,
        service: Path,
        place: Path,
        *,
        encrypt: bool = False,
        level: int = 9,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.service = service
        self.place = place
        self.backups = place / "backups"
        self._output = place / "output"
        self._env = _environment(place) | {
            "XDG_STATE_HOME": str(place / "state"),
            "BACKUP_DIR": str(self.backups),
            "BACKUP_COMPRESSION_LEVEL": str(level),
            "BACKUP_ENCRYPT": str(encrypt).lower(),
            "BACKUP_MAX_SIZE_GB": "1000",
            **(environ or {}),
        }
        if encrypt:
            key = place / "key"
            if not key.exists():
                self.run("key", "new", str(key))
            self._env["ENCRYPTION_KEY"] = key.read_text()

    def run(self, *arguments: str) -> Sample:
        return run([self.program, *arguments], cwd=self.service, env=self._env, sink=self._output)

    def on(self, service: Path) -> Holdfast:
        """The same state, keys and backups for another directory."""
        other = Holdfast.__new__(Holdfast)
        other.__dict__ |= self.__dict__ | {"service": service}
        return other

    def backup(self, *options: str) -> Sample:
        """Whatever is there, unless components are named."""
        sample = self.run("backup", "--json", *options)
        return sample.storing(json.loads(self.output())["size_bytes"])

    def output(self) -> str:
        """What the last command has printed."""
        return self._output.read_text()

    def archive(self) -> Path:
        """The newest full archive."""
        return max(self.backups.glob("*/*.tar.gz*"), key=lambda path: path.name.partition("_")[2])


class Peers:
    """The other programs that are installed here."""

    def __init__(self) -> None:
        named = {"restic": os.environ.get("HOLDFAST_RESTIC")}
        found = {name: shutil.which(named.get(name) or name) for name in _NAMES}
        self.programs = {name: path for name, path in found.items() if path}
        self.missing = [name for name, path in found.items() if not path]

    def have(self, *names: str) -> bool:
        return all(name in self.programs for name in names)

    def versions(self) -> list[str]:
        words = {"restic": "version"}
        return [
            subprocess.run([path, words.get(name, "--version")], capture_output=True, text=True, check=False)
            .stdout.partition("\n")[0]
            .strip()
            or name
            for name, path in self.programs.items()
        ]

    def pack(self, source: Path, archive: Path, level: int) -> Sample:
        """``tar | pigz``."""
        tar, pigz = self.programs["tar"], self.programs["pigz"]
        env = _environment(archive.parent)
        sample = run([tar, "-cf", "-", "."], [pigz, f"-{level}"], cwd=source, env=env, sink=archive)
        return sample.storing(archive.stat().st_size)

    def unpack(self, archive: Path, target: Path) -> Sample:
        """``pigz -dc | tar x``."""
        tar, pigz = self.programs["tar"], self.programs["pigz"]
        return run([pigz, "-dc", str(archive)], [tar, "-xf", "-"], cwd=target, env=_environment(target))

    def extract(self, archive: Path, target: Path) -> Sample:
        """``tar xz``, which runs gzip."""
        return run([self.programs["tar"], "-xzf", str(archive)], cwd=target, env=_environment(target))

    def test(self, archive: Path) -> None:
        """``gzip -t``. Raises RunFailed for an archive that is not intact."""
        run([self.programs["gzip"], "-t", str(archive)], cwd=archive.parent, env=_environment(archive.parent))


class Restic:
    """A restic repository below `place`."""

    def __init__(self, program: str, place: Path) -> None:
        self._program = program
        self._repository = place / "repository"
        self._env = _environment(place) | {
            "RESTIC_REPOSITORY": str(self._repository),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(place / "cache"),
        }
        self._run(place, "init")

    def _run(self, cwd: Path, *arguments: str) -> Sample:
        return run([self._program, "--quiet", *arguments], cwd=cwd, env=self._env)

    def backup(self, source: Path) -> Sample:
        return _adding(self._repository, lambda: self._run(source, "backup", "."))

    def check(self) -> Sample:
        """Reads everything back."""
        return self._run(self._repository, "check", "--read-data")

    def restore(self, target: Path, *options: str) -> Sample:
        return self._run(target, "restore", "latest", "--target", str(target), *options)

    def list(self) -> Sample:
        return self._run(self._repository, "snapshots")


class Borg:
    """A Borg repository below `place`, compressed with zstd 3."""

    def __init__(self, program: str, place: Path) -> None:
        self._program = program
        self._repository = place / "repository"
        self._number = 0
        self._env = _environment(place) | {
            "BORG_REPO": str(self._repository),
            "BORG_PASSPHRASE": "benchmark",
            "BORG_BASE_DIR": str(place),
        }
        self._run(place, "init", "--encryption=repokey-blake2")

    def _run(self, cwd: Path, *arguments: str) -> Sample:
        return run([self._program, *arguments], cwd=cwd, env=self._env)

    def backup(self, source: Path) -> Sample:
        self._number += 1
        name = f"::{self._number}"
        sample = _adding(
            self._repository, lambda: self._run(source, "create", "--compression=zstd,3", name, ".")
        )
        # Borg drops what it has read from the page cache, where whoever comes next is to find it.
        warm(source)
        return sample

    def check(self) -> Sample:
        """Reads everything back."""
        return self._run(self._repository, "check", "--verify-data")

    def restore(self, target: Path) -> Sample:
        return self._run(target, "extract", f"::{self._number}")


def _adding(repository: Path, backup: Callable[[], Sample]) -> Sample:
    before = size_of(repository)
    return backup().storing(size_of(repository) - before)
