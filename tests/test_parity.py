"""Parity as an administrator has it: a setting, a warning, `verify --deep` and `repair`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.crypto import X25519Identity
from holdfast.errors import CorruptBackup
from holdfast.events import Event, Noted, Warned, ignore
from holdfast.installation import Installation
from holdfast.jobs.export import export
from holdfast.jobs.keys import rotate_key
from holdfast.jobs.repair import repair
from installed import Service
from repository.dedup.mendable import flip

PARITY = {"BACKUP_FORMAT": "dedup", "BACKUP_PARITY": "true"}
KEY = X25519Identity.generate()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    made = Service.make(tmp_path, **PARITY, BACKUP_ENCRYPT="true", ENCRYPTION_KEY=KEY.reveal())
    (made.root / "models/large.bin").write_bytes(os.urandom(300_000))
    return made


def damage(service: Service) -> list[str]:
    """A flipped bit in every object."""
    found = sorted(service.backups.rglob("*"))
    objects = [path for path in found if path.with_name(f"{path.name}.parity").exists()]
    for path in objects:
        path.write_bytes(flip(4 * path.stat().st_size)(path.read_bytes()))
    return [str(path.relative_to(service.backups)) for path in objects]


def run(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments],
        cwd=service.root,
        env=os.environ | service.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_commands_mend_and_say_so(service: Service, tmp_path: Path) -> None:
    service.back_up()
    objects = damage(service)
    assert len(objects) == 6
    restored = run(service, "restore", "latest", "--target", str(tmp_path / "out"))
    assert restored.returncode == 0
    assert (tmp_path / "out/models/large.bin").read_bytes() == (
        service.root / "models/large.bin"
    ).read_bytes()
    # Nothing is restored from an index.
    for name in objects:
        told = f"Warning: {name} is damaged, and was read mended: `holdfast repair` writes it anew"
        assert restored.stderr.count(told) == (not name.startswith("index/"))
    verified = run(service, "verify", "latest", "--deep", "--json")
    assert verified.returncode == 1
    told = json.loads(verified.stdout)
    assert "is damaged: 1 bad sector" in told["message"]
    assert "`holdfast repair` mends it" in told["hint"]
    repaired = run(service, "repair")
    assert repaired.returncode == 0
    assert all(f"{name}: mended (1 bad sector)" in repaired.stderr for name in objects)
    assert "Warning" not in repaired.stderr
    assert run(service, "verify", "latest", "--deep").returncode == 0
    assert "There is nothing to repair." in run(service, "repair").stderr


def test_what_was_stored_without_gets_it_from_repair(service: Service) -> None:
    before = Service(service.root, service.environ | {"BACKUP_PARITY": "false"}, service.clock)
    before.back_up()
    assert not list(service.backups.rglob("*.parity"))
    repair(service.installation(), ignore)
    damage(service)
    service.restore("latest")


def test_an_export_a_new_backup_and_another_key_come_out_of_what_is_damaged(
    service: Service, tmp_path: Path
) -> None:
    first = service.back_up()
    large = (service.root / "models/large.bin").read_bytes()
    damage(service)
    export(service.installation(), "latest", tmp_path / "exported.tar.gz", ignore)
    again = service.back_up()
    assert again.size_bytes < 20_000
    new = tmp_path / "new.key"
    new.touch(0o600)
    new.write_text(X25519Identity.generate().reveal())
    assert rotate_key(service.installation(), new, ignore) == 2
    after = Service(service.root, service.environ | {"ENCRYPTION_KEY": new.read_text()}, service.clock)
    (service.root / "models/large.bin").unlink()
    after.restore(first.backup_id)
    assert (service.root / "models/large.bin").read_bytes() == large
    repair(after.installation(), ignore)
    after.verify(first.backup_id)
    after.verify(again.backup_id)


def test_a_host_that_cannot_read_mends_what_it_can(service: Service) -> None:
    service.back_up()
    writer = Service(service.root, service.environ | {"ENCRYPTION_KEY": str(KEY.recipient)}, service.clock)
    damage(service)
    told: list[Event] = []
    assert repair(writer.installation(), told.append) == 5
    warned = [event.message for event in told if isinstance(event, Warned)]
    assert len(warned) == 2
    assert warned[0].startswith("index/")
    assert "identity" in warned[1]
    with pytest.raises(CorruptBackup, match="index/"):
        service.verify("latest")
    told.clear()
    repair(service.installation(), told.append)
    assert sum(isinstance(event, Noted) and "mended" in event.message for event in told) == 1
    service.verify("latest")


def test_metadata_that_is_lost_beyond_mending_is_made_again(service: Service) -> None:
    metadata = service.back_up()
    path = service.backups / "full" / f"{metadata.backup_id}.metadata.json"
    path.write_bytes(b"lost")
    path.with_name(f"{path.name}.parity").write_bytes(b"lost too")
    installation: Installation = service.installation()
    repair(installation, ignore)
    assert installation.repository.find("latest").backup_id == metadata.backup_id
    service.restore("latest", trust=True)
