"""Archives that are not what they pass for: unsigned, replayed, swapped, foreign, damaged, or closed to us."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from forge import Forge, honest
from holdfast.crypto import SigningKey, X25519Identity
from holdfast.errors import (
    BackupNotFound,
    CorruptBackup,
    HoldfastError,
    HostileBackup,
    KeyMissing,
    KeyWrong,
    ParentMissing,
    UntrustedSignature,
    UsageError,
)
from holdfast.events import ignore
from holdfast.jobs.export import export
from holdfast.jobs.ls import ls
from holdfast.jobs.verify import verify_all
from holdfast.model import Signature
from installed import Service, agree, refused, untouched

FORGED = "full_20240101_050000"
LATER = "incr_20240101_060000"

MINE = X25519Identity(bytes(range(1, 33)))
THEIRS = X25519Identity(bytes(range(2, 34)))


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """One service, with backups, for all that is refused, since that changes nothing. It encrypts."""
    keyed = {"BACKUP_ENCRYPT": "true", "ENCRYPTION_KEY": MINE.reveal()}
    service = Service.make(tmp_path_factory.mktemp("standing"), **keyed)
    full = service.back_up()
    service.back_up(components=["models"])
    service.back_up()
    service.back_up(since=full.backup_id)
    return service


@pytest.fixture
def sealed(tmp_path: Path) -> Service:
    """A service that encrypts its backups."""
    return Service.make(tmp_path, BACKUP_ENCRYPT="true", ENCRYPTION_KEY=MINE.reveal())


def save(service: Service, forge: Forge, **how: Any) -> Path:
    return forge.save(service.backups, service.installation().sign, **how)


def tell(archive: Path, **says: Any) -> None:
    """Changes what the metadata beside an archive says."""
    path = record_of(archive)
    path.write_text(json.dumps(json.loads(path.read_text()) | says))


def record_of(archive: Path) -> Path:
    return archive.parent / f"{archive.name.partition('.')[0]}.metadata.json"


def stranger(statement: bytes) -> Signature:
    key = SigningKey.generate()
    return Signature(key.public, key.sign(statement))


# Who made it


def test_an_unsigned_backup_is_refused_where_this_installation_signs(service: Service) -> None:
    service.back_up()
    honest(FORGED).save(service.backups, None)
    with refused(service, UntrustedSignature, match="not signed"):
        service.restore(FORGED, vouch=agree)
    service.restore(FORGED, trust=True)


def test_a_backup_signed_by_a_stranger_is_refused(service: Service) -> None:
    service.back_up()
    honest(FORGED).save(service.backups, stranger)
    with refused(service, UntrustedSignature, match="SHA256:"):
        service.restore(FORGED, vouch=agree)
    service.restore(FORGED, trust=True)


def test_a_new_machine_is_asked_once_and_then_believes_that_key_alone(service: Service) -> None:
    key = SigningKey.generate()
    honest(FORGED).save(service.backups, lambda statement: Signature(key.public, key.sign(statement)))
    asked: list[str] = []
    with refused(service, UntrustedSignature):
        service.restore(FORGED)
    service.restore(FORGED, vouch=lambda question: not asked.append(question))
    assert len(asked) == 1
    assert "SHA256:" in asked[0]
    service.restore(FORGED)
    honest("full_20240101_060000").save(service.backups, stranger)
    with refused(service, UntrustedSignature):
        service.restore("full_20240101_060000", vouch=agree)


@pytest.mark.parametrize(
    "signature",
    [
        {"key": "A" * 44, "value": "A" * 88},
        {"key": "", "value": ""},
        {"key": "not base64!", "value": "\u00fc"},
        {"key": "QUJD", "value": "QUJD"},
    ],
    ids=["zeros", "empty", "not base64", "too short"],
)
def test_a_signature_that_is_none_is_refused_whoever_is_trusted(
    service: Service, signature: dict[str, str]
) -> None:
    tell(save(service, honest(FORGED)), signature=signature)
    with refused(service, HostileBackup, match="signature"):
        service.restore(FORGED, trust=True, vouch=agree)


def test_the_signature_of_another_backup_is_refused(service: Service) -> None:
    other = json.loads(record_of(save(service, honest("full_20240101_040000"))).read_text())
    tell(save(service, honest(FORGED)), signature=other["signature"])
    with refused(service, HostileBackup, match="signature"):
        service.restore(FORGED, trust=True)


def test_content_changed_after_it_was_signed_is_refused(service: Service) -> None:
    """Archive, checksum and manifest digest all agree, as whoever can write to the directory can arrange."""
    true = json.loads(record_of(save(service, honest(FORGED))).read_text())
    changed = Forge(FORGED).source().entry("files/models").file("files/models/a.bin", b"changed!")
    tell(save(service, changed), signature=true["signature"])
    with refused(service, HostileBackup, match="signature"):
        service.restore(FORGED, trust=True)


def test_a_replayed_archive_under_another_id_is_refused(service: Service) -> None:
    """An old backup, honestly signed, is not to pass for tonight's."""
    old = save(service, honest("full_20230101_000000"))
    replayed = old.with_name(f"{FORGED}.tar.gz")
    shutil.copy(old, replayed)
    told = json.loads(record_of(old).read_text())
    record_of(replayed).write_text(
        json.dumps(told | {"backup_id": FORGED, "timestamp": "2024-01-01T05:00:00"})
    )
    with refused(service, HostileBackup):
        service.restore(FORGED, trust=True)
    with refused(service, CorruptBackup):
        service.verify(FORGED)
    record_of(replayed).write_text(json.dumps(told))
    with refused(service, CorruptBackup, BackupNotFound):
        service.restore(FORGED, trust=True)
    record_of(replayed).unlink()
    with refused(service, CorruptBackup):
        service.restore(replayed, trust=True)


@pytest.mark.parametrize(
    "says",
    [
        {"timestamp": "2030-01-01T00:00:00"},
        {"components": ["models", "database"]},
        {"components": ["config"]},
        {"entries": 1},
        {"source_bytes": 0},
        {"host": "elsewhere"},
        {"tool": "another"},
        {"tags": ["nightly"]},
        {"size_bytes": 1},
        {"checksum": "0" * 64},
        {"encrypted": True},
        {"type": "models"},
        {"parent": "full_20230101_000000"},
        {"manifest": {"digest": "0" * 64, "size": 1000, "compressed_offset": 10}},
        {"manifest": {"digest": "0" * 64, "size": 1000, "compressed_offset": 1 << 62}},
    ],
    ids=str,
)
def test_metadata_that_contradicts_its_archive_is_refused(service: Service, says: dict[str, Any]) -> None:
    tell(save(service, honest(FORGED)), **says)
    with refused(service, CorruptBackup, ParentMissing):
        service.verify(FORGED)
    if not {"size_bytes", "checksum"} & set(says):  # a restore proves each file by its own digest
        with refused(service, CorruptBackup, ParentMissing, UsageError):
            service.restore(FORGED, trust=True)


# What it rests on


def chain(service: Service, **header: Any) -> tuple[Path, Path]:
    """A full backup and an incremental on it."""
    full = honest(FORGED)
    below = save(service, full)
    digest = hashlib.sha256(full.manifest()).hexdigest()
    later = Forge(LATER, **{"parent": FORGED, "parent_manifest": digest, **header}).source(whole=False)
    later.file("files/models/z", b"later").count(full.entries, full.bytes)
    return below, save(service, later)


def test_a_chain_is_whole_or_refused(service: Service) -> None:
    below, _ = chain(service)
    service.verify(LATER)
    for path in (record_of(below), below):
        kept = path.read_bytes()
        path.unlink()
        with refused(service, ParentMissing, CorruptBackup, match=FORGED):
            service.restore(LATER)
        with refused(service, ParentMissing, CorruptBackup, match=FORGED):
            service.verify(LATER, deep=False)
        path.write_bytes(kept)
    tell(below, status="failed", error_message="the disk was full")
    with refused(service, ParentMissing, match=FORGED):
        service.restore(LATER)


def test_a_parent_replaced_by_another_of_the_same_id_is_refused(service: Service) -> None:
    chain(service)
    save(service, honest(FORGED).file("files/models/new"))
    for trust in (False, True):
        with refused(service, HostileBackup, match=f"rests on another {FORGED}"):
            service.restore(LATER, trust=trust)
    with refused(service, HostileBackup):
        service.verify(LATER)


@pytest.mark.parametrize(
    "header", [{"parent_manifest": None}, {"parent_manifest": "0" * 64}, {"parent": LATER}]
)
def test_a_parent_that_is_not_the_one_is_refused(service: Service, header: dict[str, Any]) -> None:
    chain(service, **header)
    with refused(service, CorruptBackup):
        service.restore(LATER)


def test_a_circle_of_parents_is_refused(service: Service) -> None:
    other = "incr_20240101_070000"
    for backup_id, parent in ((LATER, other), (other, LATER)):
        save(service, Forge(backup_id, parent=parent, parent_manifest="0" * 64).source(whole=False))
    for backup_id in (LATER, other):
        with refused(service, CorruptBackup, match="on itself"):
            service.restore(backup_id)
        with refused(service, CorruptBackup, match="on itself"):
            service.verify(backup_id, deep=False)


def test_an_incremental_on_what_is_not_there_is_refused_before_anything_is_written(service: Service) -> None:
    below, _ = chain(service)
    below.unlink()
    before = sorted(service.backups.rglob("*"))
    for since in (LATER, FORGED):
        with pytest.raises((ParentMissing, CorruptBackup)):
            service.back_up(incremental=True, since=since)
    with pytest.raises(BackupNotFound):
        service.back_up(incremental=True, since="full_19990101_000000")
    left = [path for path in service.backups.rglob("*") if path not in before and "temp" not in path.parts]
    assert left == []


# What is no archive of ours


def tar_gz() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("files/models/a.bin")
        info.size = 7
        tar.addfile(info, io.BytesIO(b"foreign"))
    return out.getvalue()


def zip_file() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("files/models/a.bin", "foreign")
    return out.getvalue()


def pax(records: bytes) -> bytes:
    """A tar.gz whose first pax header is what nobody writes."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    block = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    return gzip.compress(block + tarfile.TarInfo("MANIFEST.jsonl").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))


FOREIGN = {
    "a tar.gz": tar_gz(),
    "a zip": zip_file(),
    "noise": random.Random(1).randbytes(10_000),
    "nothing": b"",
    "one byte": b"\x1f",
    "text": b"I am a backup\n" * 100,
    "gzip of nothing": gzip.compress(b""),
    "gzip of text": gzip.compress(b"I am a backup\n" * 100),
    "gzip of zeros": gzip.compress(bytes(100_000)),
    "gzip that ends early": tar_gz()[:-20],
    "a tar": gzip.decompress(tar_gz()),
    "an age header alone": b"age-encryption.org/v1\n",
    "an age file of another version": b"age-encryption.org/v2\n-> X25519 a\nb\n--- c\n" + bytes(100),
    "a pax size in words": pax(b"15 size=twelve\n"),
    "a negative pax size": pax(b"11 size=-5\n"),
    "an endless pax size": pax(b"10009 size=" + b"9" * 9996 + b"\n"),
    "a pax record that is longer than its header": pax(b"99 path=x\n"),
    "a pax record of no length": pax(b"0 path=x\n"),
    "a pax header of a gigabyte": gzip.compress(
        tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)[:124] + b"07777777777\0"
        + tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)[136:156] + b"x" + bytes(355)
    ),
}  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_file_is_refused_and_named(standing: Service, tmp_path: Path, content: bytes) -> None:
    for name in ("elsewhere.tar.gz", f"{FORGED}.tar.gz", f"{FORGED}.tar.gz.enc"):
        path = tmp_path / name
        path.write_bytes(content)
        for refuse in (
            lambda path=path: standing.restore(path, trust=True),
            lambda path=path: standing.verify(path),
            lambda path=path: list(ls(standing.installation(), str(path))),
            lambda path=path: export(standing.installation(), str(path), tmp_path / "out.tar.gz", ignore),
        ):
            with refused(standing, CorruptBackup, match=path.name):
                refuse()
        path.unlink()


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_file_under_the_name_of_a_backup_is_refused(standing: Service, content: bytes) -> None:
    archive = save(standing, honest(FORGED))
    archive.write_bytes(content)
    tell(archive, size_bytes=len(content), checksum=hashlib.sha256(content).hexdigest())
    with refused(standing, CorruptBackup):
        standing.restore(FORGED)
    with refused(standing, CorruptBackup):
        standing.verify(FORGED)
    archive.unlink()
    record_of(archive).unlink()


def test_an_archive_cut_short_anywhere_is_refused_by_its_path_too(service: Service, tmp_path: Path) -> None:
    whole = save(service, honest(FORGED)).read_bytes()
    path = tmp_path / "copy.tar.gz"
    for length in sorted(random.Random(1).sample(range(len(whole)), 40)):
        path.write_bytes(whole[:length])
        with refused(service, CorruptBackup):
            service.restore(path, trust=True)


def test_an_archive_alone_leaves_nothing_beside_it(service: Service, tmp_path: Path) -> None:
    place = tmp_path / "stick"
    place.mkdir()
    shutil.copy(save(service, honest(FORGED)), place)
    with untouched(place):
        service.verify(place / f"{FORGED}.tar.gz", deep=False)
        list(ls(service.installation(), str(place / f"{FORGED}.tar.gz")))
        service.restore(place / f"{FORGED}.tar.gz", trust=True)
    assert (service.root / "models/a.bin").read_bytes() == b"restored"


# What is closed to us


def test_a_wrong_key_is_refused(sealed: Service) -> None:
    sealed.back_up()
    sealed.environ["ENCRYPTION_KEY"] = THEIRS.reveal()
    with refused(sealed, KeyWrong):
        sealed.restore("latest")
    with refused(sealed, KeyWrong):
        sealed.verify("latest")


def test_a_host_with_recipients_alone_writes_and_does_not_read(sealed: Service) -> None:
    sealed.environ["ENCRYPTION_KEY"] = str(MINE.recipient)
    full = sealed.back_up()
    incremental = sealed.back_up(incremental=True)
    assert incremental.size_bytes < full.size_bytes
    sealed.verify("latest", deep=False)
    with refused(sealed, KeyMissing, KeyWrong):
        sealed.restore("latest")
    sealed.environ["ENCRYPTION_KEY"] = MINE.reveal()
    sealed.restore("latest")
    assert (sealed.root / "models/a.bin").read_bytes() == b"live"


def test_no_key_is_an_error_and_never_a_plaintext(sealed: Service) -> None:
    sealed.back_up()
    del sealed.environ["ENCRYPTION_KEY"]
    for refuse in (sealed.back_up, lambda: sealed.restore("latest"), lambda: sealed.verify("latest")):
        with refused(sealed, KeyMissing) as raised:
            refuse()
        assert isinstance(raised.value, HoldfastError)
        assert "ENCRYPTION_KEY" in raised.value.hint


def test_an_archive_encrypted_to_us_by_a_stranger_is_refused(sealed: Service) -> None:
    """Anyone who knows a recipient can encrypt to it."""
    sealed.back_up()
    honest(FORGED).save(sealed.backups, stranger, recipients=(MINE.recipient,))
    with refused(sealed, UntrustedSignature):
        sealed.restore(FORGED, vouch=agree)


# What is asked for


@pytest.mark.parametrize(
    "components", [["weights"], [], ["models", "weights"], ["Models"], "models", [5], [None]]
)
def test_an_unknown_component_is_refused(service: Service, components: Any) -> None:
    service.back_up()
    with refused(service, UsageError):
        service.restore("latest", components=components)
    with refused(service, UsageError):
        service.back_up(components=components)


def test_a_component_that_the_backup_lacks_is_refused(service: Service) -> None:
    service.back_up(components=["models"])
    with refused(service, UsageError, match="does not hold database"):
        service.restore("latest", components=["database"])


@pytest.mark.parametrize(
    "reference",
    ["full_2024", "", "nothing", "../../etc/passwd", "/etc/passwd", "/", ".", "\0", "a\0/b", "x" * 5000, "x/" * 3000,
     "full_20240101_020000.tar.gz", "latest.tar.gz", "/dev/null", "/dev/zero"],
    ids=lambda reference: reference[:30].replace("\0", "NUL"),
)  # fmt: skip
def test_a_reference_to_nothing_is_refused(service: Service, reference: str) -> None:
    with refused(service, BackupNotFound, CorruptBackup):
        service.restore(reference, trust=True)
    with refused(service, BackupNotFound, CorruptBackup):
        service.verify(reference)


def test_one_bad_backup_hides_no_verdict_on_the_others(service: Service) -> None:
    good = service.back_up()
    honest("full_20240101_040000").save(service.backups, stranger)
    honest("full_20240101_041000").save(service.backups, None)
    save(service, honest("full_20240101_042000"), recipients=(THEIRS.recipient,))
    save(service, honest("full_20240101_043000")).write_bytes(b"damaged")
    save(service, Forge(LATER, parent="full_19990101_000000", parent_manifest="0" * 64).source(whole=False))
    (service.backups / "full" / "full_20240101_044000.metadata.json").write_text("{")
    verdicts = {
        verdict.metadata.backup_id: verdict.error
        for verdict in verify_all(service.installation(), ignore, deep=True)
    }
    assert len(verdicts) == 7
    assert [backup_id for backup_id, error in verdicts.items() if not error] == [good.backup_id]
