"""The deduplicating format through the jobs, as an administrator has it; and both formats in one directory."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.crypto import X25519Identity
from holdfast.errors import CredentialError, ParentMissing
from holdfast.events import Event, StageStarted, ignore
from holdfast.jobs.backup import backup
from holdfast.jobs.expire import expire
from holdfast.jobs.export import export
from holdfast.jobs.gc import gc
from holdfast.jobs.keys import rotate_key
from holdfast.jobs.undo import undo
from holdfast.repository.dedup._rewrite import Rewriter
from installed import Service, agree, seen

DEDUP = {"BACKUP_FORMAT": "dedup"}


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path, **DEDUP)


def change(service: Service) -> None:
    with closing(sqlite3.connect(service.root / "service.db")) as database:
        database.execute("UPDATE sample SET value = 'changed' WHERE id = 7")
        database.commit()
    (service.root / "models/a.bin").write_bytes(b"retrained")


def contents(service: Service) -> object:
    """What the service has, but for its backups; times of the database and of directories are not restored."""
    with closing(sqlite3.connect(service.root / "service.db")) as database:
        rows = database.execute("SELECT * FROM sample").fetchall()
    files = {
        path: path.read_bytes() for path in sorted((service.root / "models").rglob("*")) if path.is_file()
    }
    return rows, files


def test_full_incremental_restore_and_undo(service: Service) -> None:
    (service.root / "models/large.bin").write_bytes(os.urandom(300_000))
    full = service.back_up()
    before = contents(service)
    change(service)
    incremental = service.back_up(incremental=True)
    after = contents(service)
    assert (full.format, incremental.format, incremental.parent) == ("dedup", "dedup", full.backup_id)
    assert incremental.size_bytes < full.size_bytes
    service.verify(full.backup_id)
    service.verify(incremental.backup_id)
    service.restore(full.backup_id)
    assert contents(service) == before
    service.restore("latest")
    assert contents(service) == after
    undo(service.installation(), ignore, confirm=agree)
    assert contents(service) == before


def test_one_component_is_restored_and_nothing_else(service: Service) -> None:
    full = service.back_up()
    before = contents(service)
    change(service)
    service.restore(full.backup_id, components=["models"])
    rows, files = contents(service)  # type: ignore[misc]
    assert (rows != before[0], files == before[1]) == (True, True)  # type: ignore[index]


def test_an_export_is_an_ordinary_archive_that_restores(service: Service, tmp_path: Path) -> None:
    service.back_up()
    before = contents(service)
    written = export(service.installation(), "latest", tmp_path / "exported.tar.gz", ignore)
    change(service)
    service.restore(written, trust=True)
    assert contents(service) == before


def test_a_backup_that_begins_leaves_alone_what_gc_is_writing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        (service.root / f"models/many{number}.bin").write_bytes(os.urandom(200_000))
    service.back_up(components=["models"])
    for number in range(5):
        (service.root / f"models/many{number}.bin").unlink()
    service.clock.forward(40 * 86_400)
    kept = service.back_up(components=["models"])
    expire(service.installation(), ignore)
    flush = Rewriter._flush
    made = []

    def begun_meanwhile(self: Rewriter) -> None:
        if self._pack is not None:
            service.clock.forward(1)
            made.append(service.back_up(components=["models"]))
        flush(self)

    monkeypatch.setattr(Rewriter, "_flush", begun_meanwhile)
    freed = gc(service.installation(), ignore)
    assert (len(made), freed.rewritten) == (1, 1)
    assert freed.later_bytes > 1_000_000
    service.clock.forward(2 * 86_400)
    assert gc(service.installation(), ignore).bytes > 1_000_000
    service.verify(kept.backup_id)
    service.verify(made[0].backup_id)


def test_what_is_dropped_gives_its_room_back_a_day_later(service: Service) -> None:
    shutil.rmtree(service.root / "models/d")
    (service.root / "models/a.bin").write_bytes(os.urandom(400_000))
    old = service.back_up(components=["models"])
    (service.root / "models/a.bin").write_bytes(os.urandom(400_000))
    service.clock.forward(40 * 86_400)
    new = service.back_up(components=["models"])
    dropped = [verdict.backup for verdict in expire(service.installation(), ignore) if not verdict.keep]
    assert dropped == [old]
    gc(service.installation(), ignore)
    service.clock.forward(2 * 86_400)
    freed = gc(service.installation(), ignore)
    assert any(name.startswith("packs/") for name in freed.names)
    service.verify(new.backup_id)


def test_gc_beside_a_run_does_not_destroy_it(service: Service) -> None:
    done: list[list[str]] = []

    def collect(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "seal":
            done.append(gc(service.installation(), ignore))

    (service.root / "models/large.bin").write_bytes(os.urandom(3_000_000))
    metadata = backup(service.installation(), collect).metadata
    assert done
    service.verify(metadata.backup_id)


def test_an_incremental_of_one_format_never_rests_on_the_other(tmp_path: Path) -> None:
    archives = Service.make(tmp_path)
    full = archives.back_up()
    before = contents(archives)
    dedup = Service(archives.root, archives.environ | DEDUP, archives.clock)
    with pytest.raises(ParentMissing):
        dedup.back_up(incremental=True)
    change(dedup)
    second = dedup.back_up()
    after = contents(dedup)
    # Each is read as what it is, whatever new ones are made as.
    for reader in (archives, dedup):
        reader.verify(full.backup_id)
        reader.verify(second.backup_id)
        reader.restore(full.backup_id)
        assert contents(reader) == before
        reader.restore(second.backup_id)
        assert contents(reader) == after
    assert archives.back_up(incremental=True).parent == full.backup_id


def test_a_host_with_a_recipient_alone_backs_up_and_cannot_read(tmp_path: Path) -> None:
    identity = X25519Identity.generate()
    encrypted = {"BACKUP_ENCRYPT": "true"}
    host = Service.make(tmp_path, **DEDUP, **encrypted, ENCRYPTION_KEY=str(identity.recipient))
    (host.root / "models/large.bin").write_bytes(os.urandom(300_000))
    first = host.back_up()
    change(host)
    second = host.back_up(incremental=True)
    assert second.size_bytes < first.size_bytes
    with pytest.raises(CredentialError):
        host.restore("latest")
    with pytest.raises(CredentialError):
        gc(host.installation(), ignore)
    after = contents(host)
    owner = Service(host.root, host.environ | {"ENCRYPTION_KEY": identity.reveal()}, host.clock)
    owner.restore(first.backup_id)
    owner.restore(second.backup_id)
    assert contents(owner) == after


def test_a_key_is_rotated_for_both_formats(tmp_path: Path) -> None:
    key, other = tmp_path / "old.key", tmp_path / "new.key"
    identities = {path: X25519Identity.generate() for path in (key, other)}
    for path, identity in identities.items():
        path.write_text(identity.reveal() + "\n")
        path.chmod(0o600)
    environ = {"BACKUP_ENCRYPT": "true", "ENCRYPTION_KEY": identities[key].reveal()}
    archives = Service.make(tmp_path, **environ)
    archives.back_up()
    dedup = Service(archives.root, archives.environ | DEDUP, archives.clock)
    dedup.back_up()
    assert rotate_key(dedup.installation(), other, ignore) == 2
    rotated = Service(dedup.root, dedup.environ | {"ENCRYPTION_KEY": identities[other].reveal()}, dedup.clock)
    for metadata in rotated.installation().repository.backups():
        rotated.verify(metadata.backup_id)
        with pytest.raises(CredentialError):
            dedup.verify(metadata.backup_id)


def test_nothing_secret_lies_open_in_a_repository(tmp_path: Path) -> None:
    identity = X25519Identity.generate()
    service = Service.make(tmp_path, **DEDUP, BACKUP_ENCRYPT="true", ENCRYPTION_KEY=identity.reveal())
    (service.root / "models/a.bin").write_bytes(b"a secret that must not be read" * 1000)
    service.back_up()
    for path, (*_, content) in seen(service.backups).items():
        assert b"a secret that" not in (content or b""), path
        assert b"a.bin" not in (content or b""), path
    assert all(path.stat().st_mode & 0o077 == 0 for path in service.backups.rglob("*"))
