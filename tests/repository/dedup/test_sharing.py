"""What deduplication is for: nothing is stored twice, whoever may read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from conformance.ground import ignore_progress
from conformance.trees import (
    Trees,
    assert_holds,
    file,
    models,
    noise,
    plan_of,
    store,
    store_source,
)
from forks import scratch
from holdfast.crypto import KeyRing, PassphraseIdentity, X25519Identity
from holdfast.errors import CredentialError, RepositoryError
from holdfast.model import BackupMetadata
from holdfast.repository.dedup import _pack_writer, _writer
from repository.dedup.grounds import IDENTITY, DedupGround

WRITE_ONLY = KeyRing((IDENTITY.recipient,), ())


@pytest.fixture
def ground() -> Iterator[DedupGround]:
    with scratch() as top:
        yield DedupGround(top, encrypt=True)


def make(ground: DedupGround, trees: Trees) -> BackupMetadata:
    metadata = store(ground.repository(), trees)
    ground.clock.forward()
    return metadata


def weights(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {f"layer.{number}": draw.normal(0, 0.02, (256, 512)).astype(np.float32) for number in range(8)}


def test_the_same_content_under_another_name_costs_nothing(ground: DedupGround) -> None:
    content = noise(2_000_000, 1)
    make(ground, models(file("files/models/a", content)))
    second = make(ground, models(file("files/models/a", content), file("files/models/b", content)))
    assert second.size_bytes < 10_000


def test_a_host_that_cannot_read_finds_what_it_has_stored(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(2_000_000, 1)))
    ground.keys = WRITE_ONLY
    first = make(ground, trees)
    second = make(ground, trees)
    assert (first.size_bytes > 2_000_000, second.size_bytes < 10_000) == (True, True)
    with pytest.raises(CredentialError):
        assert_holds(ground.repository(), second, trees)
    ground.keys = KeyRing((IDENTITY.recipient,), (IDENTITY,))
    assert_holds(ground.repository(), second, trees)
    ground.repository().verify(second, deep=True, progress=ignore_progress)


def test_a_host_that_has_lost_its_memory_stores_everything_again(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(2_000_000, 1)))
    ground.keys = WRITE_ONLY
    make(ground, trees)
    for path in (ground.state.repository / "dedup").iterdir():
        path.unlink()
    again = make(ground, trees)
    assert again.size_bytes > 2_000_000
    ground.keys = KeyRing((IDENTITY.recipient,), (IDENTITY,))
    assert_holds(ground.repository(), again, trees)


def test_what_was_forgotten_can_be_learnt_again(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(2_000_000, 1)))
    make(ground, trees)
    for path in (ground.state.repository / "dedup").iterdir():
        path.unlink()
    assert ground.repository().remember() == 1
    assert ground.repository().remember() == 0
    assert make(ground, trees).size_bytes < 10_000


def test_metadata_that_was_lost_is_made_again(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(500_000, 1)))
    metadata = make(ground, trees)
    ground.files_of(metadata)[-1].unlink()
    (orphan,) = ground.repository().orphans()
    again = ground.repository().examine(orphan)
    assert again == replace(
        metadata, signature=None, duration_seconds=0.0, warnings=0, size_bytes=again.size_bytes
    )
    ground.repository().save_metadata(again)
    assert_holds(ground.repository(), again, trees)


def test_a_passphrase_is_derived_once_and_not_for_every_run(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = PassphraseIdentity("correct horse")
    ground.keys = KeyRing((identity.recipient,), (identity,))
    trees = models(file("files/models/a", b"content"))
    make(ground, trees)
    assert (ground.directory / "keys/identity.age").exists()
    pinned = json.loads((ground.state.repository / "dedup/writer.json").read_text())["recipient"]
    assert pinned.startswith("age1")

    def derived(*_: object) -> None:
        raise AssertionError("the identity was opened")

    with monkeypatch.context() as patch:
        patch.setattr(_writer, "read_identity", derived)
        metadata = make(ground, trees)
    assert_holds(ground.repository(), metadata, trees)


def test_an_interrupted_run_loses_one_pack_at_most(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pack_writer, "PACK_SIZE", 1 << 20)
    trees = models(*(file(f"files/models/{number:02d}", noise(900_000, number)) for number in range(40)))

    def interrupted() -> None:
        with ground.repository().begin(plan_of(trees)) as run:
            store_source(run, ("models", "main"), trees["models", "main"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    ground.clock.forward()
    metadata = make(ground, trees)
    assert metadata.size_bytes < 9_000_000  # of 36: a pack, and what is on its way to it
    assert_holds(ground.repository(), metadata, trees)


@pytest.mark.parametrize("keys", ["identity", "recipient"])
def test_a_tuned_model_costs_a_fraction_also_where_the_repository_cannot_be_read(
    ground: DedupGround, keys: str
) -> None:
    if keys == "recipient":
        ground.keys = WRITE_ONLY
    base = weights(1)
    draw = np.random.default_rng(2)
    tuned = {
        name: tensor + draw.normal(0, 1e-6, tensor.shape).astype(np.float32) for name, tensor in base.items()
    }
    tuned["layer.0"][0, :4] = np.array([np.nan, -np.nan, np.inf, -0.0], np.float32)
    old, new = save(base), save(tuned)
    live = ground.locate("files/models/base.safetensors")
    assert isinstance(live, Path)
    live.parent.mkdir(parents=True)
    live.write_bytes(old)
    first = make(ground, models(file("files/models/base.safetensors", old)))
    trees = models(file("files/models/base.safetensors", old), file("files/models/tuned.safetensors", new))
    second = make(ground, trees)
    assert second.size_bytes < 0.6 * first.size_bytes
    ground.keys = KeyRing((IDENTITY.recipient,), (IDENTITY,))
    assert_holds(ground.repository(), second, trees)
    ground.repository().verify(second, deep=True, progress=ignore_progress)


def test_a_base_that_is_gone_from_the_disk_is_done_without(ground: DedupGround) -> None:
    ground.keys = WRITE_ONLY
    base = weights(1)
    make(ground, models(file("files/models/base.safetensors", save(base))))
    trees = models(file("files/models/tuned.safetensors", save({k: v * 1.0000001 for k, v in base.items()})))
    metadata = make(ground, trees)
    ground.keys = KeyRing((IDENTITY.recipient,), (IDENTITY,))
    assert_holds(ground.repository(), metadata, trees)


def test_keys_are_rotated_without_writing_a_pack(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(500_000, 1)))
    metadata = make(ground, trees)
    packs = {path: path.stat().st_mtime_ns for path in (ground.directory / "packs").rglob("*-0")}
    other = X25519Identity.generate()
    new = KeyRing((other.recipient,), (other,))
    assert ground.repository().rewrap(metadata, ground.keys, new) is True
    assert {path: path.stat().st_mtime_ns for path in packs} == packs
    with pytest.raises(CredentialError):
        assert_holds(ground.repository(), ground.repository().find("latest"), trees)
    ground.keys = new
    rotated = ground.repository().find("latest")
    assert_holds(ground.repository(), rotated, trees)
    ground.repository().verify(rotated, deep=True, progress=ignore_progress)
    assert ground.repository().rewrap(rotated, new, new) is False


def test_two_repositories_that_were_mixed_are_told_apart(ground: DedupGround) -> None:
    metadata = make(ground, models(file("files/models/a", b"content")))
    mark = ground.directory / "repository.json"
    mark.write_text(json.dumps({"holdfast_repository": 1, "id": "0" * 32}) + "\n")
    with pytest.raises(RepositoryError, match="what this host remembers is of"):
        make(ground, models(file("files/models/a", b"content")))
    with pytest.raises(Exception, match=r"belongs to repository"):
        ground.repository().verify(metadata, deep=True, progress=ignore_progress)


def test_a_repository_of_a_newer_version_is_refused_by_name(ground: DedupGround) -> None:
    make(ground, models(file("files/models/a", b"content")))
    mark = ground.directory / "repository.json"
    mark.write_text(mark.read_text().replace('"holdfast_repository": 1', '"holdfast_repository": 2'))
    with pytest.raises(RepositoryError, match="version 2"):
        make(ground, models(file("files/models/a", b"content")))
