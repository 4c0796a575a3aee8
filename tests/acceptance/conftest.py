"""The example service, small and ready, as the project that the contract's samples are run in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from acceptance.service_state import PREDICTIONS, BackUpAt
from holdfast import BackupManager, BackupMetadata
from holdfast.crypto import X25519Identity

ROOT = Path(__file__).parents[2]
ML_SERVICE = ROOT / "backend" / "ml-service"

sys.path.insert(0, str(ML_SERVICE))


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests take a copy of it, `project`."""
    directory = tmp_path_factory.mktemp("seeded")
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    subprocess.run(
        [
            sys.executable,
            ML_SERVICE / "scripts/seed_service.py",
            "--rows",
            str(PREDICTIONS),
            "--samples",
            "1000",
        ],
        cwd=directory,
        env=inherited | {"PYTHONPATH": str(ML_SERVICE), "OPENBLAS_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return directory


@pytest.fixture
def project(
    seeded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_home: Path
) -> Iterator[Path]:
    """The current directory: a copy of the service, with ``backend/`` beside it as the contract's paths have it.

    Nothing is configured but the service's own ``.env``: backups are encrypted, and there is no key yet.
    """
    directory = tmp_path / "project"
    shutil.copytree(seeded, directory)
    (directory / "backend").symlink_to(ROOT / "backend")
    for name in list(os.environ):
        if name.startswith(("BACKUP_", "HOLDFAST_")) or name in (
            "DATABASE_URL",
            "ENCRYPTION_KEY",
            "COLUMNS",  # a test runner's, to which `ps` would cut its lines
            "LOG_LEVEL",
            "LOG_FORMAT",
            "NOTIFICATION_EMAIL",
            "SMTP_SERVER",
            "SMTP_PORT",
            "SMTP_USERNAME",
            "SMTP_PASSWORD",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ML_SERVICE}{os.pathsep}{ROOT / 'src'}")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.chdir(directory)
    from app.utils.encryption import encryption

    yield directory
    encryption.key = None


@pytest.fixture
def plain(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project without encryption: its archives have the names that the contract's samples print."""
    monkeypatch.setenv("BACKUP_ENCRYPT", "false")
    return project


@pytest.fixture
def identity() -> X25519Identity:
    return X25519Identity.generate()


@pytest.fixture
def sealed(project: Path, identity: X25519Identity, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with a key, `identity`."""
    monkeypatch.setenv("ENCRYPTION_KEY", identity.reveal())
    return project


@pytest.fixture
def back_up_at() -> BackUpAt:
    """Makes a backup as it would have been made at another time: ``back_up_at("2024-01-01T02:00:00")``.

    `since` makes it an incremental one.
    """

    def back_up_at(
        moment: str,
        components: list[str] | None = None,
        *,
        incremental: bool = False,
        since: str | None = None,
    ) -> BackupMetadata:
        then = datetime.fromisoformat(moment).replace(tzinfo=UTC)
        manager = BackupManager(clock=lambda: then)
        if incremental or since is not None:
            return manager.create_incremental_backup(since)
        return manager.create_full_backup(components)

    return back_up_at
