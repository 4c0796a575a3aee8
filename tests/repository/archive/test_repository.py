"""What is true of archives, and not of every repository."""

from __future__ import annotations

import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.ground import ignore_progress
from conformance.repository import EVERYTHING
from conformance.trees import (
    Content,
    Trees,
    assert_holds,
    changing,
    content_of,
    directory,
    file,
    hardlink,
    models,
    noise,
    pieces,
    plan_of,
    record,
    store,
    tree,
)
from holdfast.crypto import KeyRing, X25519Identity
from holdfast.errors import (
    CorruptBackup,
    CredentialError,
    KeyMissing,
    KeyWrong,
    RepositoryError,
    SourceChanged,
)
from holdfast.model import BackupMetadata, Component, Signature
from holdfast.repository.archive import ArchiveRepository, Seal
from holdfast.repository.base import RunPlan
from holdfast.storage.local import LocalStorage
from repository.archive.archives import IDENTITY, ArchiveGround, believes


@pytest.fixture
def ground(tmp_path: Path) -> ArchiveGround:
    return ArchiveGround(tmp_path)


@pytest.fixture
def sealed(tmp_path: Path) -> ArchiveGround:
    return ArchiveGround(tmp_path, encrypt=True)


def archive_of(ground: ArchiveGround, metadata: BackupMetadata) -> Path:
    return ground.files_of(metadata)[0]


# Without Holdfast


def test_tar_gives_every_file_back(ground: ArchiveGround, tmp_path: Path) -> None:
    archive = archive_of(ground, store(ground.repository(), EVERYTHING))
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["gzip", "-t", archive], check=True)
    subprocess.run(["tar", "-xpzf", archive, "-C", out, "--warning=no-unknown-keyword"], check=True)
    for nodes in EVERYTHING.values():
        for path, node in nodes.items():
            found = out / path
            if node.entry.kind == "symlink":
                assert os.readlink(found) == node.entry.target
            elif node.entry.kind == "hardlink":
                assert found.stat().st_ino == (out / node.entry.target).stat().st_ino
            elif node.entry.kind == "directory":
                assert found.is_dir()
            else:
                assert found.read_bytes() == node.content
                assert found.stat().st_mode & 0o777 == node.entry.mode & 0o777
                assert int(found.stat().st_mtime) == node.entry.mtime_ns // 10**9


def test_age_and_tar_give_every_file_back(sealed: ArchiveGround, tmp_path: Path) -> None:
    key = tmp_path / "key.txt"
    key.write_text(IDENTITY.reveal())
    archive = archive_of(
        sealed, store(sealed.repository(), models(file("files/models/a", noise(300_000, 1))))
    )
    try:
        opened = subprocess.run(["age", "-d", "-i", key, archive], capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("the age program is not installed")
    subprocess.run(["tar", "-xzf", "-", "-C", tmp_path], input=opened, check=True)
    assert (tmp_path / "files/models/a").read_bytes() == noise(300_000, 1)


@pytest.mark.parametrize("mode", ["r:gz", "r|gz"])
def test_tarfile_reads_it_as_a_file_and_as_a_stream(ground: ArchiveGround, mode: Any) -> None:
    archive = archive_of(ground, store(ground.repository(), EVERYTHING))
    nodes = {path: node for nodes in EVERYTHING.values() for path, node in nodes.items()}
    found = {}
    with tarfile.open(archive, mode, encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            found[member.name] = content.read() if content else None
    manifest = found.pop("MANIFEST.jsonl")
    assert manifest is not None
    assert manifest.startswith(b'{"holdfast":')
    assert found == {path: node.content for path, node in nodes.items()}


def test_a_dump_that_changed_leaves_no_piece_of_its_first_attempt_to_cat(
    ground: ArchiveGround, tmp_path: Path
) -> None:
    """32 MiB and more of a first attempt are in the archive when it fails."""
    path = "database/main.dump"
    node = file(path, b"the second attempt, which is shorter", sized=False)
    trees: Trees = {("database", "main"): tree(node)}
    with ground.repository().begin(plan_of(trees)) as run:
        run.begin_source("database", "main")
        with pytest.raises(SourceChanged):
            run.add(node.entry, changing(bytes(70 << 20), None), None)
        assert node.content is not None
        run.add(node.entry, Content(None, None, pieces(node.content)), None)
        run.end_source(record(("database", "main"), trees["database", "main"]))
        metadata = run.commit(warnings=0, duration_seconds=0)
    assert_holds(ground.repository(), metadata, trees)
    ground.repository().verify(metadata, deep=True, progress=ignore_progress)
    subprocess.run(["tar", "-xzf", archive_of(ground, metadata), "-C", tmp_path], check=True)
    found = sorted((tmp_path / "database").glob("main.dump.*"))
    assert b"".join(piece.read_bytes() for piece in found) == node.content


# Failures of what it rests on


def with_signer(ground: ArchiveGround, sign: Any) -> ArchiveRepository:
    return ArchiveRepository(
        LocalStorage(ground.directory),
        ground.state,
        Seal(encrypt=False, keys=lambda: ground.keys, sign=sign, believes=believes),
        level=1,
        host="test-host",
        tool="holdfast 1",
        clock=ground.clock,
    )


def test_a_signature_that_cannot_be_made_leaves_no_archive(ground: ArchiveGround) -> None:
    """It is asked for when everything else is done."""

    def refuse(statement: bytes) -> Signature:
        raise CredentialError("the signing key can be read by others")

    with pytest.raises(CredentialError):
        store(with_signer(ground, refuse), models(file("files/models/a", b"1")))
    assert [metadata.status for metadata in ground.repository().backups()] == ["failed"]
    assert ground.strays() == []


def test_a_run_without_key_leaves_no_record(sealed: ArchiveGround) -> None:
    def missing() -> KeyRing:
        raise KeyMissing("there is no key")

    repository = ArchiveRepository(
        LocalStorage(sealed.directory),
        sealed.state,
        Seal(encrypt=True, keys=missing, sign=lambda statement: Signature("", ""), believes=believes),
        level=1,
        host="h",
        tool="t",
        clock=sealed.clock,
    )
    with pytest.raises(KeyMissing):
        store(repository, models(file("files/models/a", b"1")))
    assert sealed.repository().backups() == []
    assert sealed.strays() == []


def test_entries_out_of_order_end_the_run(ground: ArchiveGround) -> None:
    """No reader would take them: better no backup than one that cannot be restored."""

    def run() -> None:
        with ground.repository().begin(RunPlan("full", ("models",), None)) as run:
            run.begin_source("models", "main")
            run.add(directory("files/models/b").entry, None, None)
            run.add(directory("files/models/a").entry, None, None)

    with pytest.raises(RepositoryError, match="out of order"):
        run()
    assert ground.strays() == []


# The list of what the parent holds


# So many that no buffer holds the list.
MANY = [file(f"files/models/n{number:04}", noise(20, number)) for number in range(2500)]


BIG = models(file("files/models/large", noise(1_000_000, 1)), file("files/models/small", b"1"))
CHANGED = models(file("files/models/large", noise(1_000_000, 1) + b"more"), file("files/models/small", b"2"))


def spoiled_lists() -> Iterator[Any]:
    chance = random.Random(1)
    yield pytest.param(lambda data: b"", id="empty")
    yield pytest.param(lambda data: b"noise" * 100, id="noise")
    yield pytest.param(lambda data: data + b"more", id="longer")
    for share in (0.1, 0.5, 0.9, 0.99):
        yield pytest.param(lambda data, share=share: data[: int(len(data) * share)], id=f"cut at {share}")
    for _ in range(5):
        at, bit = chance.random(), 1 << chance.randrange(8)

        def flip(data: bytes, at: float = at, bit: int = bit) -> bytes:
            place = int(len(data) * at)
            return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]

        yield pytest.param(flip, id=f"flipped at {at:.2f}")


@pytest.mark.parametrize("spoil", list(spoiled_lists()))
def test_a_damaged_list_costs_time_and_nothing_else(ground: ArchiveGround, spoil: Any) -> None:
    """It is not fsynced: after a power cut any of it may be missing."""
    key: tuple[Component, str] = ("models", "main")
    before: Trees = {key: BIG[key] | tree(*MANY)}
    full = store(ground.repository(), before)
    ground.clock.forward()
    path = ground.state.list_file(full.backup_id)
    path.write_bytes(spoil(path.read_bytes()))
    after: Trees = {key: CHANGED[key] | tree(*MANY[1:])}
    incremental = store(ground.repository(), after, parent=full)
    assert_holds(ground.repository(), incremental, after)
    ground.repository().verify(incremental, deep=True, progress=ignore_progress)
    assert incremental.size_bytes < full.size_bytes / 2


def test_a_list_of_another_backup_of_the_same_id_is_not_believed(
    ground: ArchiveGround, tmp_path: Path
) -> None:
    """As after the backup directory was replaced by another one at the same path."""
    other = ArchiveGround(tmp_path / "other")
    wrong = models(file("files/models/large", noise(1_000_000, 2)), file("files/models/small", b"1"))
    known = store(other.repository(), wrong)
    full = store(ground.repository(), BIG)
    ground.state.list_file(full.backup_id).write_bytes(other.state.list_file(known.backup_id).read_bytes())
    ground.clock.forward()
    incremental = store(ground.repository(), CHANGED, parent=full)
    assert_holds(ground.repository(), incremental, CHANGED)


def test_a_host_that_cannot_read_carries_everything_where_it_knows_nothing(sealed: ArchiveGround) -> None:
    full = store(sealed.repository(), BIG)
    sealed.clock.forward()
    sealed.keys = KeyRing((IDENTITY.recipient,), ())
    sealed.forget()
    with sealed.repository().begin(RunPlan("incremental", ("models",), full)) as run:
        assert [warning for warning in run.warnings if full.backup_id in warning]
        assert not run.begin_source("models", "main")
        for path, node in CHANGED["models", "main"].items():
            assert run.known(path) is None
            run.add(node.entry, content_of(node), None)
        run.end_source(record(("models", "main"), CHANGED["models", "main"]))
        incremental = run.commit(warnings=0, duration_seconds=0)
    assert incremental.size_bytes > 1_000_000
    sealed.clock.forward()
    next_one = store(sealed.repository(), BIG, parent=incremental)
    assert next_one.size_bytes < full.size_bytes / 2
    sealed.keys = KeyRing((IDENTITY.recipient,), (IDENTITY,))
    assert_holds(sealed.repository(), incremental, CHANGED)
    assert_holds(sealed.repository(), next_one, BIG)


def test_the_wrong_key_opens_nothing(sealed: ArchiveGround) -> None:
    full = store(sealed.repository(), BIG)
    sealed.keys = KeyRing((), (X25519Identity.generate(),))
    for refused in (
        lambda: assert_holds(sealed.repository(), full, BIG),
        lambda: sealed.repository().verify(full, deep=True, progress=ignore_progress),
    ):
        with pytest.raises(KeyWrong):
            refused()
    sealed.repository().verify(full, deep=False, progress=ignore_progress)


def test_lists_are_kept_of_what_incrementals_may_rest_on_and_no_more(ground: ArchiveGround) -> None:
    made = [store(ground.repository(), BIG)]
    for _ in range(12):
        ground.clock.forward()
        made.append(store(ground.repository(), BIG, parent=made[0]))
    kept = ground.state.lists()
    assert made[0].backup_id in kept
    assert made[-1].backup_id in kept
    assert len(kept) <= 10


# What deep verifying finds, whoever wrote it


@pytest.mark.parametrize(
    "target",
    ["files/models/nothing", "files/models/z-later", "files/models/d", "files/models/link", "files/other"],
)
def test_a_hard_link_to_what_is_no_file_before_it_is_found(ground: ArchiveGround, target: str) -> None:
    """A restore refuses it, so verifying must not call it good."""
    metadata = store(
        ground.repository(),
        models(
            directory("files/models/d"),
            hardlink("files/models/link", target),
            file("files/models/z-later", b"1"),
        ),
    )
    with pytest.raises(CorruptBackup):
        ground.repository().verify(metadata, deep=True, progress=ignore_progress)


def test_a_chain_read_after_its_top_was_rewrapped_is_whole(sealed: ArchiveGround) -> None:
    """New recipients change archive, size and checksum, and nothing that another backup rests on."""
    full = store(sealed.repository(), BIG)
    sealed.clock.forward()
    incremental = store(sealed.repository(), CHANGED, parent=full)
    new = X25519Identity.generate()
    keys = KeyRing((new.recipient,), (new,))
    for metadata in (full, incremental):
        assert sealed.repository().rewrap(metadata, sealed.keys, keys)
    sealed.keys = keys
    again = sealed.repository().find("latest")
    assert again.checksum != incremental.checksum
    assert_holds(sealed.repository(), again, CHANGED)
    sealed.repository().verify(again, deep=True, progress=ignore_progress)
    assert not sealed.repository().rewrap(again, keys, keys)


def test_an_export_of_a_chain_is_a_full_archive_of_the_same(ground: ArchiveGround, tmp_path: Path) -> None:
    full = store(ground.repository(), EVERYTHING)
    ground.clock.forward()
    later = EVERYTHING | CHANGED
    incremental = store(ground.repository(), later, parent=full)
    other = ArchiveGround(tmp_path / "other")
    storage = LocalStorage(other.directory)
    upload = storage.create("full/full_20240101_030000.tar.gz")
    with ground.repository().open(incremental) as stored:
        ground.repository().export(stored, upload, lambda size, entries: None)
    metadata = other.repository().examine("full/full_20240101_030000.tar.gz")
    other.repository().save_metadata(metadata)
    assert (metadata.type, metadata.entries) == ("full", incremental.entries)
    assert_holds(other.repository(), metadata, later)
    other.repository().verify(metadata, deep=True, progress=ignore_progress)
