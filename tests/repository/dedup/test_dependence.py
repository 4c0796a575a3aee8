"""A backup names all that it rests on, and rests on nothing that who restores it cannot open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from conformance.ground import ignore_progress
from conformance.trees import Trees, assert_holds, file, models, noise, store
from forks import scratch
from holdfast.crypto import KeyRing, PassphraseIdentity, X25519Identity
from holdfast.errors import CorruptBackup, KeyWrong
from holdfast.model import BackupMetadata
from repository.dedup.grounds import IDENTITY, DedupGround

DAY = 25 * 3600
OTHER = X25519Identity(bytes(range(2, 34)))


@pytest.fixture
def ground() -> Iterator[DedupGround]:
    with scratch() as top:
        yield DedupGround(top, encrypt=True)


def make(ground: DedupGround, trees: Trees, parent: BackupMetadata | None = None) -> BackupMetadata:
    metadata = store(ground.repository(), trees, parent=parent)
    ground.clock.forward()
    return metadata


def ring(identity: X25519Identity) -> KeyRing:
    return KeyRing((identity.recipient,), (identity,))


def two_versions() -> tuple[bytes, bytes]:
    draw = np.random.default_rng(1)
    base = {f"layer.{n}": draw.normal(0, 0.02, (256, 512)).astype(np.float32) for n in range(4)}
    tuned = {k: v + draw.normal(0, 1e-6, v.shape).astype(np.float32) for k, v in base.items()}
    # The headers differ, so that nothing else is shared than what the differences rest on.
    return save(base, {"version": "1"}), save(tuned, {"version": "2"})


@pytest.mark.parametrize("how", ["kept", "found again"])
def test_the_bases_of_differences_that_are_taken_for_present_stay(ground: DedupGround, how: str) -> None:
    old, new = two_versions()
    first = make(ground, models(file("files/models/a.safetensors", old)))
    second = make(ground, models(file("files/models/b.safetensors", new)))
    assert second.size_bytes < 0.7 * first.size_bytes
    # Only what is a difference is left of the two, and it is not stored again.
    name = "files/models/b.safetensors" if how == "kept" else "files/models/c.safetensors"
    trees = models(file(name, new))
    third = make(ground, trees)
    assert third.size_bytes < 20_000
    ground.repository().delete(first)
    ground.repository().delete(second)
    for _ in range(2):
        ground.repository().collect()
        ground.clock.forward(DAY)
    ground.repository().verify(third, deep=True, progress=ignore_progress)
    assert_holds(ground.repository(), third, trees)


def test_a_difference_whose_base_is_gone_is_not_taken_for_present(ground: DedupGround) -> None:
    old, new = two_versions()
    first = make(ground, models(file("files/models/a.safetensors", old)))
    (bases, *_) = ground.files_of(first)
    make(ground, models(file("files/models/b.safetensors", new)))
    bases.unlink()
    trees = models(file("files/models/b.safetensors", new))
    assert_holds(ground.repository(), make(ground, trees), trees)


@pytest.mark.parametrize("old", ["other recipient", "no encryption", "passphrase"])
def test_a_backup_is_opened_by_the_key_that_it_was_made_with_alone(ground: DedupGround, old: str) -> None:
    trees = models(file("files/models/a", noise(700_000, 1)))
    if old == "no encryption":
        ground.encrypt = False
    elif old == "passphrase":
        ground.keys = KeyRing((PassphraseIdentity("a").recipient,), (PassphraseIdentity("a"),))
    else:
        ground.keys = ring(OTHER)
    first = set(ground.files_of(make(ground, trees)))
    ground.encrypt, ground.keys = True, ring(IDENTITY)
    second = make(ground, trees)
    assert first.isdisjoint(ground.files_of(second))
    assert_holds(ground.repository(), second, trees)


def test_what_only_the_old_key_opens_is_not_taken_for_present_after_a_rotation(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(700_000, 1)))
    dropped = make(ground, trees)
    kept = make(ground, models(file("files/models/b", noise(300_000, 2))))
    ground.repository().delete(dropped)
    ground.repository().rewrap(kept, ring(IDENTITY), ring(OTHER))
    ground.keys = ring(OTHER)
    assert_holds(ground.repository(), make(ground, trees), trees)


def test_keys_are_given_to_recipients_whose_identity_is_elsewhere(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(700_000, 1)))
    both = [make(ground, trees), make(ground, trees)]
    for metadata in both:
        assert ground.repository().rewrap(metadata, ring(IDENTITY), KeyRing((OTHER.recipient,), ())) is True
    ground.keys = ring(OTHER)
    for metadata in both:
        assert_holds(ground.repository(), ground.repository().find(metadata.backup_id), trees)


def test_a_rotation_costs_no_second_copy(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(700_000, 1)))
    first = make(ground, trees)
    ground.repository().rewrap(first, ring(IDENTITY), ring(OTHER))
    ground.keys = ring(OTHER)
    again = make(ground, trees)
    assert again.size_bytes < 10_000
    assert_holds(ground.repository(), again, trees)


def test_a_key_file_that_was_lost_or_replaced_is_not_relied_on(ground: DedupGround) -> None:
    trees = models(file("files/models/a", noise(700_000, 1)))
    make(ground, trees)
    for path in (ground.directory / "keys").iterdir():
        path.unlink()
    assert_holds(ground.repository(), make(ground, trees), trees)
    for path in (ground.directory / "keys").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert_holds(ground.repository(), make(ground, trees), trees)


def test_another_passphrase_is_refused_and_not_passed_over(ground: DedupGround) -> None:
    right, wrong = PassphraseIdentity("correct horse"), PassphraseIdentity("battery staple")
    trees = models(file("files/models/a", b"content"))
    ground.keys = KeyRing((right.recipient,), (right,))
    make(ground, trees)
    ground.keys = KeyRing((wrong.recipient,), (wrong,))
    with pytest.raises(KeyWrong):
        make(ground, trees)


def test_no_backup_is_made_behind_an_identity_that_is_lost(ground: DedupGround) -> None:
    identity = PassphraseIdentity("correct horse")
    ground.keys = KeyRing((identity.recipient,), (identity,))
    trees = models(file("files/models/a", b"content"))
    make(ground, trees)
    (ground.directory / "keys/identity.age").unlink()
    with pytest.raises(CorruptBackup, match="identity"):
        make(ground, trees)


@pytest.mark.parametrize("damage", ["a pack is lost", "the manifest is lost", "another key"])
def test_an_old_backup_that_is_damaged_does_not_keep_new_ones_from_being_made(
    ground: DedupGround, damage: str
) -> None:
    old, new = two_versions()
    spare = make(ground, models(file("files/models/z", noise(500_000, 9))))
    full = make(
        ground,
        models(file("files/models/a.safetensors", old), file("files/models/z", noise(500_000, 9))),
    )
    lost, manifest = ground.files_of(spare)[0], ground.files_of(full)[-2]
    if damage == "a pack is lost":
        lost.unlink()
    elif damage == "the manifest is lost":
        manifest.unlink()
    else:
        ground.keys = ring(OTHER)
    trees = models(file("files/models/b.safetensors", new))
    assert_holds(ground.repository(), make(ground, trees), trees)


@pytest.mark.parametrize("lost", ["keys", "packs"])
@pytest.mark.parametrize("reads", [True, False])
def test_a_shallow_look_tells_what_is_lost(ground: DedupGround, lost: str, reads: bool) -> None:
    """Also where manifests cannot be read, as long as this host remembers what they name."""
    metadata = make(ground, models(file("files/models/a", noise(300_000, 1))))
    if not reads:
        ground.keys = KeyRing((IDENTITY.recipient,), ())
    ground.repository().verify(metadata, deep=False, progress=ignore_progress)
    for path in Path(ground.directory, lost).rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(CorruptBackup, match=r"key file|missing"):
        ground.repository().verify(metadata, deep=False, progress=ignore_progress)
