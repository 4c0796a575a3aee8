"""A process that is killed anywhere in a swap loses nothing, and the next one puts it right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sources import sqlite_crashes

SCENARIOS = ["rollback", "wal", "other-pages", "damaged", "missing"]


@pytest.mark.parametrize("victim", ["apply", "revert", "undo"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_anywhere(tmp_path: Path, scenario: str, victim: str) -> None:
    assert killed(tmp_path, scenario, victim, stride=23) > 5


@pytest.mark.torture
@pytest.mark.parametrize("victim", ["apply", "revert", "undo"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_line(tmp_path: Path, scenario: str, victim: str) -> None:
    assert killed(tmp_path, scenario, victim, stride=1) > 50


def killed(directory: Path, scenario: str, victim: str, *, stride: int) -> int:
    done = subprocess.run(
        [sys.executable, sqlite_crashes.__file__, str(directory), scenario, victim, str(stride)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
