"""Two installations with one backup directory and nothing to read it with, as their administrators set them up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.crypto import X25519Identity, fingerprint
from holdfast.errors import RepositoryError, UsageError
from holdfast.events import ignore
from holdfast.jobs.backup import backup
from holdfast.jobs.keys import adopt_writer_key, read_secret, writer_key
from installed import Service

IDENTITY = X25519Identity(bytes(range(1, 33)))
CONTENT = os.urandom(400_000)


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Service, Service]:
    made = [
        Service.make(
            tmp_path / name,
            BACKUP_FORMAT="dedup",
            BACKUP_DIR=str(tmp_path / "backups"),
            BACKUP_ENCRYPT="true",
            ENCRYPTION_KEY=str(IDENTITY.recipient),
        )
        for name in ("one", "two")
    ]
    for service in made:
        (service.root / "models/large.bin").write_bytes(CONTENT)
    made[1].clock = made[0].clock
    return made[0], made[1]


def run(service: Service, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("holdfast"), *arguments],
        cwd=service.root,
        env={"PATH": os.environ["PATH"], **service.environ},
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("how", ["fingerprint", "public key"])
def test_hosts_share_what_they_store_when_they_are_told_to(hosts: tuple[Service, Service], how: str) -> None:
    one, two = hosts
    first = one.back_up(components=["models"])
    assert adopt_writer_key(two.installation(), writer_key(one.installation()) + "\n") is True
    public = one.installation().signing_key().public
    named = public if how == "public key" else fingerprint(public)
    (two.root / "holdfast.toml").write_text(f"[backup]\ntrust_writers = ['{named}']\n")
    second = two.back_up(components=["models"])
    assert (first.size_bytes > 400_000, second.size_bytes < 10_000) == (True, True)
    two.environ["ENCRYPTION_KEY"] = IDENTITY.reveal()
    two.verify(second.backup_id)
    (two.root / "models/large.bin").write_bytes(b"lost")
    two.restore(second.backup_id)
    assert (two.root / "models/large.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("format_", ["dedup", "archive"])
def test_an_incremental_is_compared_with_what_its_own_host_has(
    hosts: tuple[Service, Service], format_: str
) -> None:
    one, two = hosts
    for service in hosts:
        service.environ["BACKUP_FORMAT"] = format_
    (one.root / "service.db").unlink()
    mine = one.back_up()
    theirs = two.back_up()
    assert "database" in theirs.components
    report = backup(one.installation(), ignore, incremental=True)
    assert (report.metadata.parent, report.warnings) == (mine.backup_id, ())
    one.clock.forward()
    assert backup(one.installation(), ignore).warnings == ()


def test_what_a_host_knows_of_its_backups_outlasts_many_of_others(hosts: tuple[Service, Service]) -> None:
    one, two = hosts
    mine = one.back_up()
    two.back_up()
    for _ in range(8):
        two.back_up(components=["config"])
    one.back_up(components=["config"])
    report = backup(one.installation(), ignore, incremental=True)
    assert (report.metadata.parent, report.warnings) == (mine.backup_id, ())


def test_the_writer_key_goes_from_one_host_to_another_through_a_pipe(hosts: tuple[Service, Service]) -> None:
    one, two = hosts
    one.back_up(components=["models"])
    printed = run(one, "key", "writer")
    assert (printed.returncode, printed.stderr) == (0, "")
    done = run(two, "key", "writer", "--import", "-", "--json", given=printed.stdout)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"adopted": True})
    assert writer_key(two.installation()) == printed.stdout.strip()
    wrong = run(two, "key", "writer", "--import", "-", given="HOLDFAST-WRITER-1SECRET")
    assert (wrong.returncode, "SECRET" in wrong.stderr, "no writer key" in wrong.stderr) == (12, False, True)


def test_a_writer_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "writer.key"
    path.write_text("HOLDFAST-WRITER-1…")
    path.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others"):
        read_secret(path)


def test_without_a_repository_there_is_no_writer_key(hosts: tuple[Service, Service]) -> None:
    with pytest.raises(RepositoryError, match="no repository here yet"):
        writer_key(hosts[0].installation())


def test_an_index_that_is_not_true_is_a_warning_of_the_run(hosts: tuple[Service, Service]) -> None:
    one, two = hosts
    one.back_up(components=["models"])
    adopt_writer_key(two.installation(), writer_key(one.installation()))
    two.environ["BACKUP_TRUST_WRITERS"] = fingerprint(one.installation().signing_key().public)
    (path,) = (Path(one.environ["BACKUP_DIR"]) / "index").iterdir()
    path.write_bytes(path.read_bytes()[:50] + b"x" + path.read_bytes()[51:])
    done = run(two, "backup", "--component", "models")
    assert (done.returncode, "forgery" in done.stderr) == (3, True), done.stderr
