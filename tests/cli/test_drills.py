"""`holdfast drill`, as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import BackupNotFound
from installed import Service
from notify.servers import HOST, MailServer

PATIENCE = 60.0


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = Service.make(tmp_path, TMPDIR=str(tmp_path))
    service.back_up()
    return service


def run(service: Service, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "holdfast", "drill", *arguments],
        cwd=service.root,
        env={"PATH": os.environ["PATH"]} | service.environ | environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_latest_backup_is_rehearsed_and_the_evidence_is_shown(service: Service) -> None:
    (service.root / "holdfast.toml").write_text('[drill]\ncommand = "test -f models/a.bin"\n')
    done = run(service)
    assert done.returncode == 0, done.stderr
    assert "rehearsed  full_20240101_020000 of 2024-01-01T02:00:00 UTC" in done.stdout
    assert "1 sound, 1 tables with the rows recorded" in done.stdout
    assert "command    satisfied" in done.stdout
    for stage in ("extract database main", "extract models models", "check database main", "command test"):
        assert f"  {stage}\n" in done.stderr


def test_a_machine_gets_json_on_a_clean_output(service: Service) -> None:
    (service.root / "holdfast.toml").write_text('[drill]\ncommand = "echo said by the command"\n')
    done = run(service, "full_20240101_020000", "--component", "models", "--component", "database", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sources"] == ["database main", "models models"]
    assert found["checks"] == {"entries": 6, "models": 0, "databases": 1, "tables": 1, "command": True}
    assert set(found["stages"]) == {"open", "extract", "check", "command"}
    assert 0 < found["restore_seconds"] <= 60
    assert Path(found["log"]).is_file()
    assert "said by the command" in done.stderr


def test_exit_codes_tell_what_came_of_it(service: Service) -> None:
    assert run(service, "full_20200101_000000").returncode == BackupNotFound.exit_code
    assert run(service, "latest", "--component", "logs").returncode == 2
    (service.root / "holdfast.toml").write_text('[drill]\ncommand = "false"\n')
    failed = run(service, "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["error"] == "HookFailed"
    assert "Error: the drill's command false ended with status 1" in failed.stderr
    assert "[drill]" in failed.stderr


def test_a_warning_is_an_exit_code_of_its_own(service: Service) -> None:
    length = (8 << 20) + 1
    model = service.root / "models/long.safetensors"
    model.write_bytes(length.to_bytes(8, "little") + b" " * length)
    service.back_up()
    done = run(service)
    assert done.returncode == 3
    assert "its header is not checked" in done.stderr


def test_whom_schedules_tell_is_told_of_a_drill_by_hand_too(service: Service) -> None:
    with MailServer().running() as server:
        mail = {"SMTP_SERVER": HOST, "SMTP_PORT": str(server.port), "NOTIFICATION_EMAIL": "ops@example.com"}
        assert run(service, **mail).returncode == 0
        (service.root / "holdfast.toml").write_text('[drill]\ncommand = "false"\n')
        assert run(service, **mail).returncode == 1
    subjects = [str(received.mail["Subject"]) for received in server.received]
    assert subjects == [
        f"IIT ML Service - Restore Drill {word}: full_20240101_020000" for word in ("Success", "Failure")
    ]


def test_the_metrics_file_is_written(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "holdfast.prom"
    assert run(service, BACKUP_METRICS_TEXTFILE=str(path)).returncode == 0
    assert 'backup_drills_total{result="success"} 1.0' in path.read_text()
