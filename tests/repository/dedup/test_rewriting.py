"""Chunks are freed, not only packs: what is needed of a pack is written anew, and nothing is lost by it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from conformance.ground import ignore_progress
from conformance.trees import (
    Trees,
    assert_holds,
    content_of,
    directory,
    file,
    models,
    noise,
    plan_of,
    record,
    store,
)
from forks import scratch
from holdfast.crypto import KeyRing, X25519Identity
from holdfast.errors import CorruptBackup
from holdfast.model import BackupMetadata
from holdfast.repository.dedup import _pack_writer, _sparse
from repository.dedup.grounds import IDENTITY, DedupGround
from repository.dedup.sealed import flipped
from repository.dedup.test_dependence import OTHER, two_versions

DAY = 25 * 3600


@pytest.fixture
def ground() -> Iterator[DedupGround]:
    with scratch() as top:
        yield DedupGround(top, encrypt=True)


def state(*seeds: int, size: int = 200_000) -> Trees:
    return models(
        directory("files/models/d"),
        *(file(f"files/models/d/{seed:03}", noise(size, seed)) for seed in sorted(seeds)),
    )


def make(ground: DedupGround, trees: Trees, parent: BackupMetadata | None = None) -> BackupMetadata:
    metadata = store(ground.repository(), trees, parent=parent)
    ground.clock.forward()
    return metadata


def collect_all(ground: DedupGround) -> None:
    """As often as it takes until there is no more to free."""
    for _ in range(4):
        ground.repository().collect()
        ground.clock.forward(DAY)


def stored_bytes(ground: DedupGround) -> int:
    return sum(path.stat().st_size for path in (ground.directory / "packs").rglob("*") if path.is_file())


def packs(ground: DedupGround) -> set[str]:
    return {path.name for path in (ground.directory / "packs").rglob("*") if path.is_file()}


def marks(ground: DedupGround) -> set[str]:
    return {path.name for path in (ground.directory / "moved").glob("*")}


def assert_good(ground: DedupGround, metadata: BackupMetadata, trees: Trees) -> None:
    assert_holds(ground.repository(), metadata, trees)
    for deep in (False, True):
        ground.repository().verify(metadata, deep=deep, progress=ignore_progress)


@pytest.mark.parametrize("encrypt", [True, False])
def test_what_stays_of_a_pack_is_written_anew_and_the_rest_freed(ground: DedupGround, encrypt: bool) -> None:
    ground.encrypt = encrypt
    first = make(ground, state(*range(10)))
    kept = make(ground, state(3, 4))
    ground.repository().delete(first)
    before = stored_bytes(ground)
    done = ground.repository().collect()
    assert (done.rewritten, done.deleted) == (1, [])
    assert done.written_bytes < 500_000
    assert done.later_bytes > 1_900_000
    assert_good(ground, kept, state(3, 4))
    ground.clock.forward(DAY)
    done = ground.repository().collect()
    assert done.rewritten == 0
    assert done.freed_bytes > 1_900_000
    assert stored_bytes(ground) < before / 4
    assert_good(ground, kept, state(3, 4))
    collect_all(ground)
    assert_good(ground, kept, state(3, 4))
    ground.repository().delete(kept)
    collect_all(ground)
    assert (packs(ground), marks(ground)) == (set(), set())
    assert {path.name for name in ("keys", "index") for path in (ground.directory / name).iterdir()} == set()


def test_small_packs_are_joined(ground: DedupGround) -> None:
    made = [make(ground, state(*range(seed), size=20_000)) for seed in range(1, 12)]
    assert len(packs(ground)) == 11
    collect_all(ground)
    assert len(packs(ground)) == 1
    for number, metadata in enumerate(made, 1):
        assert_good(ground, metadata, state(*range(number), size=20_000))
    # A second time there is nothing to gain.
    assert ground.repository().collect().rewritten == 0


@pytest.mark.parametrize("reads", [True, False])
def test_the_next_backup_stores_and_reads_nothing_anew(ground: DedupGround, reads: bool) -> None:
    first = make(ground, state(*range(10)))
    kept = make(ground, state(3, 4))
    ground.repository().delete(first)
    ground.repository().collect()
    if not reads:
        ground.keys = KeyRing((IDENTITY.recipient,), ())
    trees = state(3, 4, 5)
    with ground.repository().begin(plan_of(trees, parent=kept)) as run:
        assert run.begin_source("models", "main")
        assert not run.warnings
        for path, node in trees["models", "main"].items():
            known = run.known(path)
            assert (known is not None) == (not path.endswith("005"))
            if known is not None:
                run.keep(known)
            else:
                run.add(node.entry, content_of(node), None)
        run.end_source(record(("models", "main"), trees["models", "main"]))
        again = run.commit(warnings=0, duration_seconds=0)
    assert 200_000 < again.size_bytes < 210_000
    ground.keys = KeyRing((IDENTITY.recipient,), (IDENTITY,))
    collect_all(ground)
    for metadata, trees in ((kept, state(3, 4)), (again, state(3, 4, 5))):
        assert_good(ground, metadata, trees)


def test_what_was_forgotten_is_learnt_again_from_where_it_is_now(ground: DedupGround) -> None:
    old, new = two_versions()
    bases = make(
        ground, models(file("files/models/a.safetensors", old), file("files/models/b", noise(9_000_000, 1)))
    )
    kept = make(ground, models(file("files/models/c.safetensors", new)))
    ground.repository().delete(bases)
    collect_all(ground)
    for path in (ground.state.repository / "dedup").iterdir():
        path.unlink()
    assert ground.repository().remember() == 2
    again = make(ground, models(file("files/models/d.safetensors", new)))
    assert again.size_bytes < 10_000
    assert_good(ground, kept, models(file("files/models/c.safetensors", new)))


def test_bases_outlive_their_backup_wherever_they_go(ground: DedupGround) -> None:
    old, new = two_versions()
    bases = make(
        ground, models(file("files/models/a.safetensors", old), file("files/models/b", noise(9_000_000, 1)))
    )
    trees = models(file("files/models/c.safetensors", new))
    kept = make(ground, trees)
    assert kept.size_bytes < 0.7 * len(new)
    ground.repository().delete(bases)
    ground.repository().collect()
    assert_good(ground, kept, trees)
    collect_all(ground)
    assert stored_bytes(ground) < 1.7 * len(new)
    assert_good(ground, kept, trees)
    # What is a difference is found again, with the base at its new place.
    again = make(ground, models(file("files/models/d.safetensors", new)))
    assert again.size_bytes < 10_000
    ground.repository().delete(kept)
    collect_all(ground)
    assert_good(ground, again, models(file("files/models/d.safetensors", new)))


def test_what_is_stored_comes_close_to_what_is_needed(
    ground: DedupGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_pack_writer, _sparse):
        monkeypatch.setattr(module, "PACK_SIZE", 1 << 20)
    made = {}
    for day in range(20):
        trees = state(*range(day, day + 20), size=50_000)
        made[make(ground, trees).backup_id] = trees
    for backup_id in list(made)[:17]:
        ground.repository().delete(ground.repository().find(backup_id))
        del made[backup_id]
    collect_all(ground)
    assert stored_bytes(ground) < 1.5 * 22 * 50_000
    for backup_id, trees in made.items():
        assert_good(ground, ground.repository().find(backup_id), trees)


def rewritten(ground: DedupGround) -> tuple[BackupMetadata, Trees]:
    """A backup of which everything has moved."""
    first = make(ground, state(*range(10)))
    kept = make(ground, state(3, 4))
    ground.repository().delete(first)
    collect_all(ground)
    assert marks(ground)
    return kept, state(3, 4)


def ring(identity: X25519Identity) -> KeyRing:
    return KeyRing((identity.recipient,), (identity,))


@pytest.mark.parametrize("gone", [True, False])
def test_another_key_is_given_what_has_moved(ground: DedupGround, gone: bool) -> None:
    first = make(ground, state(*range(10)))
    kept = make(ground, state(3, 4))
    ground.repository().delete(first)
    ground.repository().collect()
    if gone:
        collect_all(ground)
    ground.repository().rewrap(kept, ring(IDENTITY), ring(OTHER))
    ground.keys = ring(OTHER)
    collect_all(ground)
    assert_good(ground, ground.repository().find(kept.backup_id), state(3, 4))
    assert make(ground, state(3, 4)).size_bytes < 10_000


@pytest.mark.parametrize("kind", ["other recipients", "in the clear", "more than is known"])
def test_packs_stay_whose_readers_could_not_read_what_is_written(ground: DedupGround, kind: str) -> None:
    if kind == "other recipients":
        ground.keys = KeyRing((IDENTITY.recipient, OTHER.recipient), (IDENTITY,))
    elif kind == "in the clear":
        ground.encrypt = False
    first = make(ground, state(*range(10)))
    kept = make(ground, state(3, 4))
    ground.repository().delete(first)
    if kind == "in the clear":
        ground.encrypt = True
    elif kind == "other recipients":
        ground.keys = ring(IDENTITY)
    else:
        # Another host, which does not know whom the other recipient of its own stands for.
        ground.keys = KeyRing((IDENTITY.recipient, OTHER.recipient), (IDENTITY,))
    done = ground.repository().collect()
    assert (done.rewritten, marks(ground)) == (0, set())
    assert "stay" in "".join(done.left)
    ground.encrypt = kind != "in the clear"
    assert_good(ground, kept, state(3, 4))


def test_several_recipients_keep_what_they_could_read(ground: DedupGround) -> None:
    ground.keys = KeyRing((IDENTITY.recipient, OTHER.recipient), (IDENTITY,))
    kept, trees = rewritten(ground)
    ground.keys = ring(OTHER)
    assert_good(ground, kept, trees)


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "{}",
        '{"to":5}',
        '{"to":[["x",1,"y"]]}',
        '{"to":[]}',
        "itself",
        "a circle",
        "missing",
        "foreign",
        "[" * 9999,
    ],
)
def test_a_mark_that_lies_is_told_and_nothing_wrong_restored(ground: DedupGround, mark: str) -> None:
    kept, trees = rewritten(ground)
    other = make(ground, state(77))
    (name,) = marks(ground)
    path = ground.directory / "moved" / name
    good = path.read_bytes()
    digest = "0" * 64
    if mark in ("itself", "a circle"):
        second = "9" * 32 + "-0" if mark == "a circle" else name
        path.write_text(json.dumps({"to": [[second, 1, digest]]}))
        if second != name:
            (ground.directory / "moved" / second).write_text(json.dumps({"to": [[name, 1, digest]]}))
    elif mark == "missing":
        path.write_text(json.dumps({"to": [["9" * 32 + "-0", 1, digest]]}))
    elif mark == "foreign":
        foreign = ground.files_of(other)[0]
        path.write_text(json.dumps({"to": [[foreign.name, foreign.stat().st_size, digest]]}))
    else:
        path.write_text(mark)
    for look in (
        lambda: assert_holds(ground.repository(), kept, trees),
        lambda: ground.repository().verify(kept, deep=True, progress=ignore_progress),
        lambda: ground.repository().collect(),
    ):
        with pytest.raises(CorruptBackup):
            look()
    assert_good(ground, other, state(77))
    path.write_bytes(good)
    assert_good(ground, kept, trees)


def test_a_lost_mark_frees_nothing(ground: DedupGround) -> None:
    kept, trees = rewritten(ground)
    (name,) = marks(ground)
    path = ground.directory / "moved" / name
    good = path.read_bytes()
    path.unlink()
    for _ in range(3):
        with pytest.raises(CorruptBackup, match=kept.backup_id):
            ground.repository().collect()
        ground.clock.forward(DAY)
    path.write_bytes(good)
    assert_good(ground, kept, trees)


def test_a_pack_that_cannot_be_read_stays_as_it_is(ground: DedupGround) -> None:
    first = make(ground, state(*range(10)))
    kept = make(ground, state(3, 4))
    (pack,) = (path for path in ground.files_of(first) if "packs" in path.parts)
    ground.repository().delete(first)
    data = bytearray(pack.read_bytes())
    data[200_000 * 7 // 2] ^= 1
    pack.write_bytes(data)
    done = ground.repository().collect()
    assert pack.name in "".join(done.damaged)
    collect_all(ground)
    data[200_000 * 7 // 2] ^= 1
    pack.write_bytes(data)
    assert_good(ground, kept, state(3, 4))
    assert ground.repository().collect().rewritten == 1
    assert_good(ground, kept, state(3, 4))


@pytest.mark.parametrize("part", ["pack", "mark"])
def test_damage_to_what_was_moved_is_found(ground: DedupGround, part: str) -> None:
    kept, _ = rewritten(ground)
    (name,) = packs(ground) if part == "pack" else marks(ground)
    path = ground.directory / (f"packs/{name[:2]}/{name}" if part == "pack" else f"moved/{name}")
    whole = path.read_bytes()
    for bit in range(3, len(whole) * 8, max(len(whole) * 8 // 40, 1)):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(CorruptBackup):
            ground.repository().verify(kept, deep=True, progress=ignore_progress)
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptBackup):
        ground.repository().verify(kept, deep=False, progress=ignore_progress)


@pytest.mark.parametrize("index", [True, False])
def test_where_a_pack_cannot_say_what_it_holds_nothing_that_is_named_goes(
    ground: DedupGround, index: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_pack_writer, _sparse):
        monkeypatch.setattr(module, "PACK_SIZE", 1 << 20)
    first = make(ground, state(*range(30)))
    kept = make(ground, state(3, 4, 29))
    dropped = make(ground, state(50))
    ground.repository().delete(first)
    ground.repository().delete(dropped)
    (pack, *_) = (path for path in ground.files_of(kept) if "packs" in path.parts)
    whole = pack.read_bytes()
    pack.write_bytes(whole[:-10])
    if not index:
        for path in (ground.directory / "index").iterdir():
            path.unlink()
    done = ground.repository().collect()
    assert pack.name in "".join(done.damaged)
    assert index or not done.rewritten  # others are, where the index says what this one holds
    ground.clock.forward(DAY)
    assert ground.repository().collect().deleted
    pack.write_bytes(whole)
    assert_good(ground, kept, state(3, 4, 29))
    collect_all(ground)
    assert stored_bytes(ground) < 1_000_000
    assert_good(ground, kept, state(3, 4, 29))


def test_no_two_packs_go_because_of_each_other(ground: DedupGround) -> None:
    """Whoever may write here could say that each is where the other is."""
    first = make(ground, state(3, 4))
    for path in (*(ground.state.repository / "dedup").iterdir(), *(ground.directory / "index").iterdir()):
        path.unlink()
    second = make(ground, state(3, 4))
    both = sorted(packs(ground))
    assert len(both) == 2
    (ground.directory / "moved").mkdir()
    for name, other in zip(both, reversed(both), strict=True):
        path = ground.directory / "packs" / other[:2] / other
        digest = path.read_bytes()[-40:-8].hex()
        mark = {"to": [[other, path.stat().st_size, digest], [name, 1, digest]]}
        (ground.directory / "moved" / name).write_text(json.dumps(mark))
    assert ground.repository().collect().later_bytes == 0
    collect_all(ground)
    for metadata in (first, second):
        assert_good(ground, metadata, state(3, 4))
    (ground.directory / "moved" / both[0]).unlink()
    collect_all(ground)
    for metadata in (first, second):
        assert_good(ground, metadata, state(3, 4))
