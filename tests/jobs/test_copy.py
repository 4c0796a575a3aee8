"""Copies of backups in another directory, in either format."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import forks
from conformance.repository import EVERYTHING
from conformance.trees import (
    Trees,
    assert_holds,
    content_of,
    directory,
    file,
    models,
    noise,
    read_back,
    record,
    store,
    tree,
)
from holdfast.crypto import X25519Identity
from holdfast.errors import (
    ConfigError,
    CorruptBackup,
    HoldfastError,
    KeyMissing,
    LockHeld,
    NoSpace,
    RepositoryError,
    UntrustedSignature,
    UsageError,
)
from holdfast.events import Event, StageStarted, ignore
from holdfast.installation import Installation
from holdfast.jobs.copy import Copied, copy
from holdfast.jobs.diff import diff
from holdfast.jobs.expire import expire
from holdfast.jobs.gc import gc
from holdfast.jobs.pin import pin
from holdfast.jobs.repair import repair
from holdfast.jobs.undo import undo
from holdfast.model import BackupFormat, BackupMetadata
from holdfast.repository.base import RunPlan
from installed import Service, agree, seen, untouched

KEPT = ("backup_id", "timestamp", "type", "components", "entries", "source_bytes", "duration_seconds", "host")
KEPT += ("tags", "schedule_id", "pinned", "warnings", "coherent")
FORMATS: tuple[BackupFormat, ...] = ("archive", "dedup")
both_ways = pytest.mark.parametrize(
    ("of", "to"), [(of, to) for of in FORMATS for to in FORMATS], ids=lambda name: str(name)
)


def service_of(top: Path, format_: str, **environ: str) -> Service:
    service = Service.make(top, BACKUP_FORMAT=format_, **environ)
    (service.root / "models/large.bin").write_bytes(noise(700_000, 1))
    return service


def disk(service: Service, name: str = "disk") -> Path:
    place = service.root.parent / name
    place.mkdir(exist_ok=True)
    return place


def at(service: Service, place: Path, **environ: str) -> Service:
    """The same service with its backups at another place."""
    return Service(service.root, service.environ | {"BACKUP_DIR": str(place)} | environ, service.clock)


def copy_to(service: Service, place: Path, *references: str, **how: Any) -> list[Copied]:
    return copy(service.installation(), references, place, ignore, **how)


def made(outcomes: list[Copied]) -> list[str]:
    return [one.copy.backup_id for one in outcomes if one.made and one.copy is not None]


def change(service: Service, number: int) -> None:
    with closing(sqlite3.connect(service.root / "service.db")) as database:
        database.execute("UPDATE sample SET value = ? WHERE id = 7", [f"changed {number}"])
        database.commit()
    (service.root / "models/a.bin").write_bytes(b"retrained %d" % number)
    with (service.root / "models/large.bin").open("r+b") as model:
        model.seek(100_000 * number)
        model.write(b"another weight")


def contents(service: Service) -> tuple[object, object]:
    with closing(sqlite3.connect(service.root / "service.db")) as database:
        rows = database.execute("SELECT * FROM sample").fetchall()
    paths = sorted((service.root / "models").rglob("*"))
    return rows, {path: path.read_bytes() for path in paths if path.is_file()}


def history(service: Service, count: int = 3) -> list[tuple[BackupMetadata, tuple[object, object]]]:
    """A full backup and incrementals, each with what the service was."""
    found = [(service.back_up(), contents(service))]
    for number in range(1, count):
        change(service, number)
        found.append((service.back_up(incremental=True), contents(service)))
    return found


def installations(top: Path, of: BackupFormat, to: BackupFormat) -> tuple[Installation, Installation]:
    service = Service.make(top, BACKUP_FORMAT=of)
    return service.installation(), at(service, disk(service), BACKUP_FORMAT=to).installation()


def copy_one(source: Installation, target: Installation, metadata: BackupMetadata) -> BackupMetadata:
    to, format_ = target.settings.backup_dir, target.settings.format
    outcomes = copy(source, [metadata.backup_id], to, ignore, format_=format_)
    (wanted,) = [one.copy for one in outcomes if one.backup == metadata]
    assert wanted is not None
    return wanted


@both_ways
def test_everything_about_every_kind_of_entry_is_copied_there_and_back(
    tmp_path: Path, of: BackupFormat, to: BackupFormat
) -> None:
    source, target = installations(tmp_path, of, to)
    original = store(source.repository, EVERYTHING, tags=("nightly",), schedule_id="daily-full")
    original = pin(source, original.backup_id, pinned=True)
    copied = copy_one(source, target, original)
    assert [getattr(copied, name) for name in KEPT] == [getattr(original, name) for name in KEPT]
    assert (copied.format, copied.original) == (to, original.manifest and original.manifest.digest)
    assert target.repository.find("latest") == copied
    assert_holds(target.repository, copied, EVERYTHING)
    target.repository.verify(copied, deep=True, progress=lambda count: None)
    with source.repository.open(original) as one, target.repository.open(copied) as other:
        assert one.sources() == other.sources()
    back = source.at(disk_of(source, "back"), of)
    again = copy_one(target, back, copied)
    assert again.identity == copied.identity == original.identity
    assert_holds(back.repository, again, EVERYTHING)


def disk_of(installation: Installation, name: str) -> Path:
    place = installation.settings.root.parent / name
    place.mkdir(exist_ok=True)
    return place


@both_ways
def test_a_chain_is_copied_with_what_it_rests_on_and_stays_small(
    tmp_path: Path, of: BackupFormat, to: BackupFormat
) -> None:
    source, target = installations(tmp_path, of, to)
    trees: list[Trees] = []
    found: list[BackupMetadata] = []
    for number in range(3):
        large = noise(2_000_000, 1) + b"%d" % number
        nodes = [file("files/models/a", b"%d" % number), file("files/models/large", large)]
        if number == 1:
            nodes += [directory("files/models/new"), file("files/models/new/x", b"x")]
        trees.append(models(*nodes))
        parent = found[-1] if found else None
        found.append(store(source.repository, trees[-1], parent=parent))
        source.clock.forward()  # type: ignore[attr-defined]
    copy(source, [found[-1].backup_id], target.settings.backup_dir, ignore, format_=to)
    there = target.repository.backups()
    assert [known.backup_id for known in there] == [
        known.backup_id for known in (found[::-1] if to == "archive" else found[-1:])
    ]
    copy(source, [], target.settings.backup_dir, ignore, format_=to, all_=True)
    for metadata, held in zip(found, trees, strict=True):
        copied = target.repository.find(metadata.backup_id)
        assert (copied.type, copied.parent) == (metadata.type, metadata.parent)
        assert_holds(target.repository, copied, held)
        target.repository.verify(copied, deep=True, progress=lambda count: None)
    assert sum(known.size_bytes for known in target.repository.backups()) < 3_500_000


@both_ways
def test_copies_restore_and_can_be_worked_with_as_backups_are(
    tmp_path: Path, of: str, to: BackupFormat
) -> None:
    key = {"BACKUP_ENCRYPT": "true", "ENCRYPTION_KEY": X25519Identity.generate().reveal()}
    service = service_of(tmp_path, of, **key if of != to else {})
    originals = history(service)
    there = at(service, disk(service), BACKUP_FORMAT=to)
    with untouched(service.backups, but=[service.backups / "temp"]):
        outcomes = copy_to(service, there_dir(there), all_=True, format_=to)
    assert made(outcomes) == [metadata.backup_id for metadata, _ in originals]
    assert [path for path in there_dir(there).rglob("*") if path.stat().st_mode & 0o077] == []
    shutil.rmtree(service.backups)
    now = contents(service)
    for metadata, was in originals:
        there.verify(metadata.backup_id)
        there.restore(metadata.backup_id)
        assert contents(there) == was
    there.restore(originals[0][0].backup_id)
    undo(there.installation(), ignore, confirm=agree)
    assert contents(there) == now
    there.restore("latest")
    assert contents(there) == now
    found = [getattr(one, "path", "") for one in diff(there.installation(), "full", "latest")]
    assert "files/models/a.bin" in found
    # An incremental rests on a copy, and knows what that holds.
    change(there, 5)
    incremental = there.back_up(incremental=True)
    assert incremental.parent == originals[0][0].backup_id
    change(there, 6)
    there.restore(incremental.backup_id)
    there.verify(incremental.backup_id)
    # And all of it goes when it is due.
    there.clock.forward(90 * 86_400)
    last = there.back_up()
    dropped = [
        verdict.backup.backup_id for verdict in expire(there.installation(), ignore) if not verdict.keep
    ]
    assert set(dropped) == {incremental.backup_id, *(metadata.backup_id for metadata, _ in originals)}
    there.verify(last.backup_id)


def there_dir(service: Service) -> Path:
    return Path(service.environ["BACKUP_DIR"])


def test_a_passphrase_opens_copies_as_well(tmp_path: Path) -> None:
    key = {"BACKUP_ENCRYPT": "true", "ENCRYPTION_KEY": "correct horse battery staple"}
    service = service_of(tmp_path, "archive", **key)
    service.back_up(components=["models"])
    was = contents(service)
    there = at(service, disk(service), BACKUP_FORMAT="dedup")
    copy_to(service, there_dir(there), "latest", format_="dedup")
    change(service, 1)
    there.restore("latest")
    assert contents(there)[1] == was[1]


@both_ways
def test_a_second_call_copies_nothing_and_a_third_what_is_new(
    tmp_path: Path, of: str, to: BackupFormat
) -> None:
    service = service_of(tmp_path, of)
    place = disk(service)
    originals = history(service)
    copy_to(service, place, all_=True, format_=to)
    with untouched(place, but=[place / "temp"]):
        outcomes = copy_to(service, place, all_=True, format_=to)
        assert made(outcomes) == []
        assert [one.copy.backup_id for one in outcomes if one.copy] == [
            known.backup_id for known, _ in originals
        ]
        copy_to(service, place, "latest", format_=to)
    change(service, 4)
    new = service.back_up(incremental=True)
    assert made(copy_to(service, place, all_=True, format_=to)) == [new.backup_id]


def test_history_that_becomes_a_repository_shares_what_it_has_in_common(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    (service.root / "models/large.bin").write_bytes(os.urandom(3_000_000))
    for number in range(3):
        change(service, number)
        service.back_up()
    outcomes = copy_to(service, disk(service), all_=True, format_="dedup")
    sizes = [one.copy.size_bytes for one in outcomes if one.copy]
    assert sizes[0] > 3_000_000
    assert max(sizes[1:]) < 2_200_000
    assert sum(known.size_bytes for known in service.installation().repository.backups()) > 9_000_000


def test_what_has_no_parent_to_rest_on_becomes_a_full_archive_and_is_known_again(tmp_path: Path) -> None:
    service = service_of(tmp_path, "dedup")
    (full, _), (incremental, was) = history(service, 2)
    service.installation().repository.delete(full)
    there = at(service, disk(service), BACKUP_FORMAT="archive")
    (outcome,) = copy_to(service, there_dir(there), incremental.backup_id, format_="archive")
    assert outcome.copy is not None
    assert outcome.copy.backup_id == incremental.backup_id.replace("incr", "full")
    assert (outcome.copy.type, outcome.copy.parent) == ("full", None)
    assert outcome.copy.timestamp == incremental.timestamp
    there.verify("latest")
    change(there, 9)
    there.restore("latest")
    assert contents(there) == was
    assert made(copy_to(service, there_dir(there), all_=True, format_="archive")) == []
    # What was compared with it rests on the full archive that it has become.
    change(service, 3)
    child = service.back_up(since=incremental.backup_id)
    (outcome, _) = copy_to(service, there_dir(there), child.backup_id, format_="archive")[::-1]
    assert outcome.copy is not None
    assert (outcome.copy.backup_id, outcome.copy.parent) == (
        child.backup_id,
        incremental.backup_id.replace("incr", "full"),
    )
    there.verify(child.backup_id)


def test_a_dump_is_copied_in_pieces_that_tar_gives_back(tmp_path: Path) -> None:
    source, target = installations(tmp_path, "dedup", "archive")
    dump = noise(400_000, 3)
    trees: Trees = {("database", "main"): tree(file("database/main.dump", dump, sized=False))}
    with source.repository.begin(RunPlan("full", ("database",), None)) as run:
        run.begin_source("database", "main")
        node = trees["database", "main"]["database/main.dump"]
        run.add(node.entry, content_of(node), None)
        kept = replace(record(("database", "main"), trees["database", "main"]), kind="postgresql")
        run.end_source(kept)
        original = run.commit(warnings=0, duration_seconds=0, coherent=True)
    copied = copy_one(source, target, original)
    assert copied.coherent is True
    assert_holds(target.repository, copied, trees)
    with tarfile.open(target.settings.backup_dir / "full" / f"{copied.backup_id}.tar.gz") as archive:
        member = archive.extractfile("database/main.dump.00001")
        assert member is not None
        assert member.read() == dump


@both_ways
def test_of_a_damaged_backup_nothing_appears_and_the_others_are_copied(
    tmp_path: Path, of: str, to: BackupFormat
) -> None:
    service = service_of(tmp_path, of)
    place = disk(service)
    for _ in range(3):
        (service.root / "models/large.bin").write_bytes(os.urandom(500_000))
        service.back_up(components=["models"])
    good = [known.backup_id for known in service.installation().repository.backups()]
    bad = good.pop(1)
    damage(service, bad)
    with pytest.raises(HoldfastError):
        copy_to(service, place, bad, format_=to)
    assert at(service, place).installation().repository.backups() == []
    outcomes = copy_to(service, place, all_=True, format_=to)
    assert made(outcomes) == good[::-1]
    (failed,) = [one for one in outcomes if one.error is not None]
    assert isinstance(failed.error, CorruptBackup)
    assert failed.backup.backup_id == bad
    there = at(service, place).installation()
    assert [known.backup_id for known in there.repository.backups()] == good
    for known in there.repository.backups():
        there.repository.verify(known, deep=True, progress=lambda count: None)
    records = [one for one in service.installation().state.history() if one["verb"] == "copy"]
    assert [one["status"] for one in records].count("failed") == 2


def damage(service: Service, backup_id: str) -> None:
    installation = service.installation()
    metadata = installation.repository.find(backup_id)
    if metadata.format == "archive":
        path = service.backups / installation.repository.name_of(metadata)
    else:
        with installation.repository.dedup.open(metadata) as stored:
            own = stored.manifest.run
            pack = next(pack.name for pack in stored.manifest.packs if pack.name.startswith(own))
        path = service.backups / "packs" / pack[:2] / pack
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_metadata_that_cannot_be_read_is_told_and_hides_no_other(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    first, second = service.back_up(), service.back_up()
    (service.backups / "full" / f"{first.backup_id}.metadata.json").write_text("{")
    outcomes = copy_to(service, disk(service), all_=True)
    assert made(outcomes) == [second.backup_id]
    assert [one.backup.backup_id for one in outcomes if one.error] == [first.backup_id]


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_not_trusted_is_not_copied_unless_told(tmp_path: Path, to: BackupFormat) -> None:
    service = service_of(tmp_path, "archive")
    metadata = service.back_up()
    stranger = Service(
        service.root, service.environ | {"XDG_STATE_HOME": str(tmp_path / "other")}, service.clock
    )
    place = disk(service)
    with pytest.raises(UntrustedSignature):
        copy_to(stranger, place, "latest", format_=to)
    assert at(stranger, place).installation().repository.backups() == []
    copy_to(stranger, place, "latest", format_=to, trust=True)
    there = at(stranger, place).installation()
    copied = there.repository.find("latest")
    assert copied.signature is not None
    assert metadata.signature is not None
    assert copied.signature.key == there.signing_key().public != metadata.signature.key
    at(stranger, place).restore("latest")
    # Who is asked about the fingerprint of a copy is sent to the host that made the copy.
    with pytest.raises(UntrustedSignature) as raised:
        at(service, place).restore("latest")
    assert "on the host that copied it" in raised.value.hint


def test_a_forged_signature_is_refused_whatever_one_says(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    one, other = service.back_up(), service.back_up()
    path = service.backups / "full" / f"{one.backup_id}.metadata.json"
    data = json.loads(path.read_text())
    assert other.signature is not None
    data["signature"]["value"] = other.signature.value
    path.write_text(json.dumps(data))
    with pytest.raises(CorruptBackup, match="does not fit"):
        copy_to(service, disk(service), one.backup_id, trust=True)


@both_ways
def test_an_id_that_another_backup_has_there_is_refused(tmp_path: Path, of: str, to: BackupFormat) -> None:
    service = service_of(tmp_path, of)
    other = service_of(tmp_path / "other", to)
    metadata, taken = service.back_up(), other.back_up()
    assert metadata.backup_id == taken.backup_id
    with (
        untouched(other.backups, but=[other.backups / "temp"]),
        pytest.raises(RepositoryError, match="another backup has the id"),
    ):
        copy_to(service, other.backups, "latest", format_=to)
    other.verify("latest")


def test_copying_to_where_the_backups_are_is_refused(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    service.back_up()
    link = tmp_path / "link"
    link.symlink_to(service.backups)
    for place in (service.backups, link, Path("backups")):
        with untouched(service.backups), pytest.raises(UsageError, match="where the backups are"):
            copy_to(service, place, "latest", format_="dedup")


def test_an_archive_from_elsewhere_can_be_brought_in(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    service.back_up()
    metadata = service.back_up()
    was = contents(service)
    stick = disk(service, "stick")
    for path in (service.backups / "full").glob(f"{metadata.backup_id}*"):
        shutil.move(path, stick / path.name)
    change(service, 1)
    copied = copy_to(service, service.backups, str(stick / f"{metadata.backup_id}.tar.gz"), format_="dedup")
    assert made(copied) == [metadata.backup_id]
    service.restore("latest")
    assert contents(service) == was


def test_a_place_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    service.back_up()
    with pytest.raises(ConfigError, match="is not there"):
        copy_to(service, tmp_path / "unmounted/backups", "latest")
    assert not (tmp_path / "unmounted").exists()
    with pytest.raises(ConfigError):
        copy_to(service, service.root / "models", "latest")  # a copy would be part of the next backup


@pytest.mark.parametrize("of", FORMATS)
def test_a_host_that_cannot_read_cannot_copy_and_says_so(tmp_path: Path, of: str) -> None:
    recipient = str(X25519Identity.generate().recipient)
    service = service_of(tmp_path, of, BACKUP_ENCRYPT="true", ENCRYPTION_KEY=recipient)
    service.back_up()
    place = disk(service)
    with pytest.raises(KeyMissing, match="can write backups and not read them"):
        copy_to(service, place, all_=True)
    assert seen(place) == {}


@pytest.mark.parametrize("to", FORMATS)
def test_copies_are_encrypted_as_the_settings_say(tmp_path: Path, to: BackupFormat) -> None:
    service = service_of(tmp_path, "archive")
    (service.root / "models/a.bin").write_bytes(b"a secret that must not be read" * 1000)
    service.back_up()
    key = X25519Identity.generate().reveal()
    encrypting = Service(
        service.root, service.environ | {"BACKUP_ENCRYPT": "true", "ENCRYPTION_KEY": key}, service.clock
    )
    place = disk(service)
    (outcome,) = copy_to(encrypting, place, "latest", format_=to)
    assert outcome.copy is not None
    assert outcome.copy.encrypted
    for path, (*_, content) in seen(place).items():
        assert b"a secret that" not in (content or b""), path
    at(encrypting, place).restore("latest")


@pytest.mark.parametrize("to", FORMATS)
def test_metadata_of_a_copy_can_be_made_again_and_is_known_again(tmp_path: Path, to: BackupFormat) -> None:
    service = service_of(tmp_path, "archive")
    metadata = service.back_up()
    place = disk(service)
    copy_to(service, place, "latest", format_=to)
    (place / "full" / f"{metadata.backup_id}.metadata.json").unlink()
    there = at(service, place, BACKUP_FORMAT=to)
    assert repair(there.installation(), ignore) >= 1
    assert there.installation().repository.find("latest").identity == metadata.identity
    assert made(copy_to(service, place, all_=True, format_=to)) == []


def test_an_original_that_is_not_in_the_manifest_is_refused(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    metadata = service.back_up()
    path = service.backups / "full" / f"{metadata.backup_id}.metadata.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"original": "0" * 64}))
    with pytest.raises(CorruptBackup, match="contradict"):
        copy_to(service, disk(service), "latest")
    path.write_text(json.dumps(data | {"original": "../../etc"}))
    assert service.installation().repository.backups()[0].status == "damaged"


def test_a_record_without_its_backup_is_no_copy(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    metadata = service.back_up()
    place = disk(service)
    copy_to(service, place, "latest")
    (place / "full" / f"{metadata.backup_id}.tar.gz").unlink()
    with pytest.raises(CorruptBackup, match="is not there"):
        copy_to(service, place, "latest")
    (place / "full" / f"{metadata.backup_id}.metadata.json").unlink()
    assert made(copy_to(service, place, "latest")) == [metadata.backup_id]


def test_all_and_an_id_are_not_both_given(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    with pytest.raises(UsageError):
        copy_to(service, disk(service), "latest", all_=True)


# Interrupted


@both_ways
@pytest.mark.parametrize("count", [4, pytest.param(150, marks=pytest.mark.torture)])
def test_after_kill_9_at_any_point_the_next_call_takes_it_up(
    tmp_path: Path, of: str, to: BackupFormat, count: int
) -> None:
    with forks.scratch() as top:
        service = service_of(top, of)
        originals = history(service, 2)
        place = disk(service)
        there = at(service, place, BACKUP_FORMAT=to)
        pristine = tmp_path / "pristine"
        shutil.copytree(top, pristine, symlinks=True)

        def run() -> None:
            copy_to(service, place, all_=True, format_=to)

        def begin_again() -> None:
            for path in top.iterdir():
                shutil.rmtree(path)
            shutil.copytree(pristine, top, symlinks=True, dirs_exist_ok=True)

        run()  # what is imported for it is imported now, and counts no more
        begin_again()
        total = forks.count_calls(run)
        assert total > 100
        # Threads make a few calls more or less from run to run.
        for point in random.Random(f"{of} {to}").sample(range(1, total - 10), count):
            begin_again()
            assert not forks.run_killed(run, point)
            for known in there.installation().repository.backups():
                if known.is_good:  # killed after its commit: then it is whole
                    there.verify(known.backup_id)
            run()
            left = there.installation().repository.backups()
            assert [(known.backup_id, known.status) for known in left] == [
                (known.backup_id, "success") for known, _ in originals[::-1]
            ], f"killed at {point} of {total}"
            for known in left:
                there.verify(known.backup_id)
            assert not list((place / "temp").glob("*.partial"))


def test_packs_of_a_killed_copy_are_found_again(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    (service.root / "models/large.bin").write_bytes(os.urandom(150_000_000))
    service.back_up()
    place = disk(service)

    def run() -> None:
        def until_sealed(event: Event) -> None:
            if isinstance(event, StageStarted) and event.stage == "seal":
                os.kill(os.getpid(), 9)

        copy(service.installation(), ["latest"], place, until_sealed, format_="dedup")

    assert forks.run_child(run) == 9
    (outcome,) = copy_to(service, place, "latest", format_="dedup")
    assert outcome.copy is not None
    assert outcome.copy.size_bytes < 100_000_000
    at(service, place).verify("latest")


@pytest.mark.parametrize("to", FORMATS)
def test_an_interrupted_copy_leaves_its_id_free(tmp_path: Path, to: BackupFormat) -> None:
    service = service_of(tmp_path, "archive")
    metadata = service.back_up()
    place = disk(service)

    def interrupt(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "seal":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(service.installation(), ["latest"], place, interrupt, format_=to)
    assert at(service, place).installation().repository.backups() == []
    assert made(copy_to(service, place, "latest", format_=to)) == [metadata.backup_id]


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_leaves_no_backup_and_what_was_copied_before(tmp_path: Path, to: BackupFormat) -> None:
    def apart() -> None:
        service = service_of(tmp_path, "archive")
        (service.root / "models/large.bin").write_bytes(os.urandom(3_000_000))
        first = service.back_up()
        (service.root / "models/large.bin").write_bytes(os.urandom(9_000_000))
        service.back_up()
        place = disk(service)
        forks.mount_memory(place, size=8 << 20)
        with pytest.raises(NoSpace):
            copy_to(service, place, all_=True, format_=to)
        there = at(service, place)
        assert [known.backup_id for known in there.installation().repository.backups()] == [first.backup_id]
        # Not `verify`: it hashes in threads of a library, which a forked child does not have.
        read_back(there.installation().repository, there.installation().repository.find("latest"))

    forks.among_own_mounts(apart)


# Beside others


@pytest.mark.parametrize("to", FORMATS)
def test_two_copies_of_the_same_at_once_do_not_happen(tmp_path: Path, to: BackupFormat) -> None:
    service = service_of(tmp_path, "archive")
    service.back_up()
    place = disk(service)
    refused: list[LockHeld] = []

    def beside(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "seal":
            with pytest.raises(LockHeld) as raised:
                copy_to(service, place, "latest", format_=to)
            refused.append(raised.value)

    copy(service.installation(), ["latest"], place, beside, format_=to)
    assert refused
    at(service, place).verify("latest")


def test_expire_and_gc_leave_a_copy_of_something_old_alone(tmp_path: Path) -> None:
    service = service_of(tmp_path, "archive")
    service.back_up()
    place = disk(service)
    there = at(service, place, BACKUP_FORMAT="dedup")
    there.clock.forward(90 * 86_400)
    there.back_up()
    done: list[object] = []

    def collect(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "seal":
            done.append([verdict for verdict in expire(there.installation(), ignore) if not verdict.keep])
            gc(there.installation(), ignore)
            there.clock.forward(30 * 3600)
            gc(there.installation(), ignore)

    (outcome,) = copy(service.installation(), ["full_20240101"], place, collect, format_="dedup")
    assert done == [[]]
    assert outcome.copy is not None
    there.verify(outcome.copy.backup_id)


def test_what_backups_hold_is_the_same_after_any_number_of_copies(tmp_path: Path) -> None:
    source, _ = installations(tmp_path, "archive", "dedup")
    chance = random.Random(7)
    trees = models(*(file(f"files/models/{n:02}", noise(chance.randrange(1, 600_000), n)) for n in range(6)))
    metadata = store(source.repository, trees)
    here, wanted = source, read_back(source.repository, metadata)
    for step in range(4):
        following = source.at(disk_of(source, f"step-{step}"), chance.choice(FORMATS))
        metadata = copy_one(here, following, metadata)
        here = following
    assert read_back(here.repository, metadata) == wanted
