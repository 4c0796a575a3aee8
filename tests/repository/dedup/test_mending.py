"""With parity, a flipped bit in any object costs nothing; and parity never does harm."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.storage import StorageSuite
from conformance.trees import assert_holds, file, models, noise, plan_of, store, store_source
from forks import scratch
from holdfast.crypto import KeyRing, X25519Identity
from holdfast.errors import CorruptBackup, HoldfastError, StorageError
from holdfast.model import Entry
from holdfast.repository._parity import write_parity
from holdfast.repository._parity_storage import SUFFIX, ParityStorage
from holdfast.repository.dedup._stored import StoredManifest
from holdfast.storage.memory import Crashed, MemoryObject, MemoryStorage, MemoryUpload
from repository.dedup.grounds import IDENTITY, DedupGround
from repository.dedup.mendable import (
    SECTOR,
    TREES,
    MendableGround,
    flip,
    grow,
    lose_sector,
    lose_tail,
    verdict,
)

DAY = 25 * 3600
OTHER = X25519Identity(bytes(range(2, 34)))
Damage = Callable[[bytes], bytes]

damages = st.one_of(
    st.builds(flip, st.integers(0, 1 << 30)),
    st.builds(lose_sector, st.integers(0, 1 << 20)),
    st.builds(lose_tail, st.integers(0, 1 << 20)),
    st.builds(grow, st.integers(0, 1 << 20)),
)


@pytest.fixture
def ground() -> Iterator[MendableGround]:
    with scratch() as top:
        yield MendableGround(top, encrypt=True)


@pytest.fixture(scope="module", params=["in the clear", "to recipients", "behind a passphrase"])
def made(request: pytest.FixtureRequest) -> Iterator[MendableGround]:
    with scratch() as top:
        ground = MendableGround(top, encrypt=request.param == "to recipients")
        if request.param == "behind a passphrase":
            ground.behind_a_passphrase()
        ground.make()
        yield ground


def packs_of(ground: MendableGround) -> list[str]:
    return [name for name in ground.objects if name.startswith("packs/") and not name.endswith(SUFFIX)]


def ring(identity: X25519Identity) -> KeyRing:
    return KeyRing((identity.recipient,), (identity,))


def test_every_object_that_a_run_writes_has_parity(made: MendableGround) -> None:
    assert made.bare() == made.mismatched() == []
    kinds = {name.partition("/")[0] for name in made.objects}
    assert kinds == {"repository.json", "repository.json.parity", "keys", "packs", "index", "full"}


@settings(max_examples=25)
@given(which=st.integers(0, 1 << 16), damage=damages)
def test_damage_to_any_object_is_read_mended_and_told_and_repaired(
    made: MendableGround, which: int, damage: Damage
) -> None:
    whole = dict(made.objects)
    name = sorted(whole)[which % len(whole)]
    made.told.clear()
    made.memory.put(name, damage(whole[name]))
    if made.objects == whole:
        return  # The sector was of zeros.
    try:
        repository = made.repository()
        metadata = repository.find("latest")
        found = verdict(repository, metadata)
        assert isinstance(found, CorruptBackup)
        assert name in str(found)
        assert "`holdfast repair`" in found.hint
        assert_holds(made.repository(), metadata, TREES)
        # A restore reads no index, and no parity of what is sound; a manifest may hold what it should all the same.
        told = {told.partition(" ")[0] for told in made.told}
        assert told <= {name}
        assert told or name.endswith((SUFFIX, ".manifest")) or name.startswith("index/")
        assert {name: data for name, data in made.objects.items() if data != whole[name]}.keys() == {name}

        mended = list(made.repository().mend())
        assert [mending.is_done for mending in mended] == [True]
        assert mended[0].told.startswith(name.removesuffix(SUFFIX))
        assert made.objects == whole
        assert verdict(made.repository(), metadata) is None
        assert list(made.repository().mend()) == []
    finally:
        for name, data in whole.items():
            made.memory.put(name, data)


def test_every_byte_of_the_small_objects_is_mended(made: MendableGround) -> None:
    """Where a bit has a meaning of its own, as in JSON and in headers, every place is tried."""
    whole = dict(made.objects)
    small = [name for name, data in whole.items() if len(data) < SECTOR and not name.endswith(SUFFIX)]
    metadata = made.repository().find("latest")
    for name in small:
        for byte in range(0, len(whole[name]), 19):
            made.memory.put(name, flip(byte * 8 + byte % 8)(whole[name]))
            repository = made.repository()
            assert repository.find("latest") == metadata
            with repository.open(metadata) as stored:
                stored.reader.chunk(bytes.fromhex(next(stored.chunks(entry_of(stored))).id))
        made.memory.put(name, whole[name])


def entry_of(stored: StoredManifest) -> Entry:
    (source,) = stored.sources()
    return next(entry for entry in stored.entries(source) if entry.kind == "file")


def test_many_sectors_of_many_objects_are_mended(made: MendableGround) -> None:
    whole = dict(made.objects)
    for name, data in whole.items():
        made.memory.put(name, lose_sector(3)(data) if not name.endswith(SUFFIX) else data)
    metadata = made.repository().find("latest")
    assert_holds(made.repository(), metadata, TREES)
    assert all(mending.is_done for mending in made.repository().mend())
    assert made.objects == whole


@pytest.mark.parametrize("kind", ["packs/", "full/", "keys/"])
def test_more_damage_than_can_be_mended_is_told_and_left_as_it_is(ground: MendableGround, kind: str) -> None:
    metadata = ground.make()
    name = next(
        name
        for name in ground.objects
        if name.startswith(kind) and not name.endswith((SUFFIX, ".metadata.json"))
    )
    # The object, and what would mend it.
    ground.memory.put(name, bytes(255 - byte for byte in ground.objects[name]))
    ground.memory.put(name + SUFFIX, ground.objects[name + SUFFIX][: -3 * SECTOR])
    before = dict(ground.objects)
    with pytest.raises(HoldfastError) as caught:
        assert_holds(ground.repository(), metadata, TREES)
    assert any(name in note for note in caught.value.__notes__)
    mendings = list(ground.repository().mend())
    assert [mending.is_done for mending in mendings if name in mending.told] == [False]
    assert ground.objects == before
    assert ground.told == []


def test_two_bad_sectors_of_one_set_cannot_be_mended(ground: MendableGround) -> None:
    metadata = ground.make()
    (pack,) = packs_of(ground)
    sets = -(-len(ground.objects[pack]) // SECTOR // 32) or 1
    bad = lose_sector(sets)(lose_sector(0)(ground.objects[pack]))
    ground.memory.put(pack, bad)
    found = verdict(ground.repository(), metadata)
    assert found is not None
    assert "more than its parity mends" in str(found)
    assert "repair" not in found.hint
    (mending,) = ground.repository().mend()
    assert not mending.is_done
    assert ground.objects[pack] == bad


def test_an_object_and_parity_that_it_does_not_need_are_mended_both(ground: MendableGround) -> None:
    ground.make()
    whole = dict(ground.objects)
    (pack,) = packs_of(ground)
    sets = -(-len(whole[pack]) // SECTOR // 32)
    assert sets >= 2
    ground.memory.put(pack, lose_sector(0)(whole[pack]))
    ground.memory.put(pack + SUFFIX, flip(8 * len(whole[pack + SUFFIX]) - 1)(whole[pack + SUFFIX]))
    assert [mending.is_done for mending in ground.repository().mend()] == [True]
    assert ground.objects == whole


def test_a_rotation_that_goes_on_takes_no_checksum_of_damage(ground: MendableGround) -> None:
    metadata = ground.make()
    ground.memory.faults.crash("put")  # The manifest is wrapped anew by then, and its metadata not.
    with pytest.raises(Crashed):
        ground.repository().rewrap(metadata, ring(IDENTITY), ring(OTHER))
    ground.memory = ground.memory.survivor()
    (manifest,) = [name for name in ground.objects if name.endswith(".manifest")]
    whole = ground.objects[manifest]
    ground.memory.put(manifest, flip(8 * len(whole) - 1)(whole))
    assert ground.repository().rewrap(metadata, ring(IDENTITY), ring(OTHER)) is False
    ground.keys = ring(OTHER)
    assert [mending.is_done for mending in ground.repository().mend()] == [True]
    assert ground.objects[manifest] == whole
    assert verdict(ground.repository(), ground.repository().find("latest")) is None


def test_without_the_setting_nothing_is_written_and_nothing_changes(ground: MendableGround) -> None:
    ground.parity = False
    metadata = ground.make()
    ground.repository().set_pinned(metadata, True)
    assert list(ground.repository().mend()) == []
    assert not any(name.endswith(SUFFIX) for name in ground.objects)
    (pack,) = packs_of(ground)
    ground.memory.put(pack, flip(99_999)(ground.objects[pack]))
    with pytest.raises(CorruptBackup):
        assert_holds(ground.repository(), metadata, TREES)


def test_what_parity_takes_is_not_counted_as_the_size_of_the_backup(ground: MendableGround) -> None:
    metadata = ground.make()
    counted = ("packs/", "index/", "full/")
    assert metadata.size_bytes == sum(
        len(data)
        for name, data in ground.objects.items()
        if name.startswith(counted) and not name.endswith((SUFFIX, ".json"))
    )


def test_parity_follows_what_is_replaced(ground: MendableGround) -> None:
    metadata = ground.make()
    ground.repository().set_pinned(metadata, True)
    ground.repository().rewrap(ground.repository().find("latest"), ring(IDENTITY), ring(OTHER))
    assert ground.bare() == ground.mismatched() == []
    ground.keys = ring(OTHER)
    assert ground.repository().find("latest").pinned
    assert verdict(ground.repository(), ground.repository().find("latest")) is None


def test_a_damaged_object_is_replaced_by_what_it_was(ground: MendableGround) -> None:
    metadata = ground.make()
    for name, data in dict(ground.objects).items():
        if not name.endswith(SUFFIX) and not name.startswith("packs/"):
            ground.memory.put(name, flip(8 * (len(data) - 5))(data))
    ground.repository().set_pinned(ground.repository().find("latest"), True)
    ground.repository().rewrap(ground.repository().find("latest"), ring(IDENTITY), ring(OTHER))
    ground.keys = ring(OTHER)
    assert_holds(ground.repository(), ground.repository().find(metadata.backup_id), TREES)
    assert all(mending.is_done for mending in ground.repository().mend())
    assert verdict(ground.repository(), ground.repository().find("latest")) is None


def test_who_gives_no_parity_leaves_none_of_what_was_replaced(ground: MendableGround) -> None:
    metadata = ground.make()
    ground.parity = False
    ground.repository().set_pinned(metadata, True)
    ground.repository().rewrap(ground.repository().find("latest"), ring(IDENTITY), ring(OTHER))
    assert ground.mismatched() == []
    assert {name.partition("/")[0] for name in ground.bare()} == {"full", "keys"}
    ground.parity, ground.keys = True, ring(OTHER)
    assert {mending.is_done for mending in ground.repository().mend()} == {True}
    assert ground.bare() == ground.mismatched() == []


def test_parity_goes_with_what_it_mends(ground: MendableGround) -> None:
    dropped = ground.make()
    kept = ground.make(models(file("files/models/c", noise(150_000, 3))))
    ground.repository().delete(dropped)
    for _ in range(2):
        ground.repository().collect()
        ground.clock.forward(DAY)
    assert ground.mismatched() == []
    assert verdict(ground.repository(), kept) is None
    ground.repository().delete(kept)
    for _ in range(2):
        ground.repository().collect()
        ground.clock.forward(DAY)
    assert ground.objects.keys() == {"repository.json", "repository.json.parity"}


def test_a_run_that_finds_its_packs_damaged_still_takes_them_for_present(ground: MendableGround) -> None:
    ground.make()
    for name, data in dict(ground.objects).items():
        if name.startswith(("keys/", "packs/")) and not name.endswith(SUFFIX):
            ground.memory.put(name, flip(800)(data))
    again = ground.make()
    assert again.size_bytes < 10_000
    assert_holds(ground.repository(), again, TREES)


def test_a_good_object_is_believed_whatever_an_older_parity_says(ground: MendableGround) -> None:
    metadata = ground.make()
    old = {name: data for name, data in ground.objects.items() if name.endswith(SUFFIX)}
    ground.repository().rewrap(metadata, ring(IDENTITY), ring(OTHER))
    new = dict(ground.objects)
    sealed = [name for name in old if name.endswith((".age.parity", ".manifest.parity"))]
    assert len(sealed) == 2
    for name in sealed:
        ground.memory.put(name, old[name])
    ground.keys = ring(OTHER)
    ground.told.clear()
    assert_holds(ground.repository(), ground.repository().find("latest"), TREES)
    assert ground.told == []
    assert {mending.is_done for mending in ground.repository().mend()} == {True}
    assert ground.objects == new


def test_a_host_that_cannot_read_mends_what_it_can_prove(ground: MendableGround) -> None:
    metadata = ground.make()
    whole = dict(ground.objects)
    ground.keys = KeyRing((IDENTITY.recipient,), ())
    for name, data in whole.items():
        ground.memory.put(name, data if name.endswith(SUFFIX) else flip(8 * (len(data) - 3))(data))
    mendings = list(ground.repository().mend())
    (refused,) = [mending.told for mending in mendings if not mending.is_done]
    assert refused.startswith("index/")
    assert {name for name in whole if ground.objects[name] != whole[name]} == {refused.partition(":")[0]}
    ground.keys = ring(IDENTITY)
    assert [mending.is_done for mending in ground.repository().mend()] == [True]
    assert ground.objects == whole
    assert verdict(ground.repository(), metadata) is None


def test_parity_is_not_made_anew_of_what_cannot_be_proved(ground: MendableGround) -> None:
    ground.make()
    (name,) = [name for name in ground.objects if name.startswith("index/") and name.endswith(SUFFIX)]
    ground.memory.put(name, lose_sector(0)(ground.objects[name]))
    before = dict(ground.objects)
    ground.keys = KeyRing((IDENTITY.recipient,), ())
    (mending,) = ground.repository().mend()
    assert not mending.is_done
    assert "not proved" in mending.told
    assert ground.objects == before


@pytest.mark.parametrize("moment", ["as it begins", "before its manifest", "after its manifest"])
def test_a_run_at_work_is_left_alone(
    ground: MendableGround, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    ground.make()
    mendings = []
    repository = ground.repository()

    def mend() -> None:
        mendings.append(list(ground.repository().mend()))

    trees = models(file("files/models/c", noise(150_000, 3)))
    with repository.begin(plan_of(trees)) as run:
        if moment == "as it begins":
            mend()
        store_source(run, ("models", "main"), trees["models", "main"])
        if moment == "before its manifest":
            mend()
        save = repository.save_metadata
        if moment == "after its manifest":
            monkeypatch.setattr(repository, "save_metadata", lambda metadata: (mend(), save(metadata)))
        metadata = run.commit(warnings=0, duration_seconds=0)
    assert mendings == [[]]
    assert ground.bare() == ground.mismatched() == []
    assert verdict(ground.repository(), metadata) is None


def test_mending_pins_nothing(ground: MendableGround) -> None:
    """Whoever only mends is no writer of the repository yet."""
    ground.make()
    shutil.rmtree(ground.state.home)
    assert list(ground.repository().mend()) == []
    assert not list(ground.state.repository.rglob("writer.json"))


def test_what_is_not_ours_is_left_alone(ground: MendableGround) -> None:
    ground.make()
    foreign = ("keys/README", "packs/ab/notes", "index/old", "full/full_x.manifest", "full/a.tar.gz")
    for name in foreign:
        ground.memory.put(name, b"somebody's")
    assert list(ground.repository().mend()) == []
    assert ground.bare() == list(foreign)


@pytest.mark.parametrize("done", [False, True])
def test_a_kill_at_any_moment_leaves_no_parity_of_another_version(done: bool) -> None:
    """While a backup is made, pinned, and given to another key."""
    calls, step = 1, 0
    while calls:
        with scratch() as top:
            ground = MendableGround(top, encrypt=True)
            first = ground.make()
            step += 7
            ground.memory.faults.crash(at=step, done=done)
            try:
                ground.make(models(file("files/models/c", noise(150_000, 3))))
                ground.repository().set_pinned(first, True)
                ground.repository().rewrap(first, ring(IDENTITY), ring(OTHER))
                calls = 0
            except Crashed:
                pass
            ground.memory = ground.memory.survivor()
            assert ground.mismatched() == []
            ground.keys = KeyRing(
                (IDENTITY.recipient, OTHER.recipient),
                (IDENTITY, OTHER),
            )
            good = [metadata for metadata in ground.repository().backups() if metadata.is_good]
            assert first.backup_id in {metadata.backup_id for metadata in good}
            ground.repository().rewrap(first, ring(IDENTITY), ring(OTHER))
            ground.repository().clean()
            assert all(mending.is_done for mending in ground.repository().mend())
            assert ground.mismatched() == []
            assert ground.bare() == []
            for metadata in ground.repository().backups():
                if metadata.is_good:
                    assert verdict(ground.repository(), metadata) is None
    assert step > 60


@pytest.mark.parametrize("kind", ["keys/", "packs/", "index/", "full/"])
def test_a_backup_is_made_only_with_its_parity(ground: MendableGround, kind: str) -> None:
    class Full(MemoryStorage):
        """Has no room for the parity of one kind of objects."""

        def create(self, name: str, *, replace: bool = False, hashed: bool = True) -> MemoryUpload:
            if name.startswith(kind) and name.endswith(".parity") and not name.endswith(".json.parity"):
                raise StorageError("no room")
            return super().create(name, replace=replace, hashed=hashed)

    first = ground.make()
    plain, ground.memory = ground.memory, Full()
    ground.memory._medium = plain._medium
    with pytest.raises(StorageError):
        ground.make(models(file("files/models/c", noise(150_000, 3))))
    ground.memory = plain
    (failed,) = [known for known in ground.repository().backups() if known.backup_id != first.backup_id]
    assert failed.status == "failed"
    assert sum(name.endswith(".manifest") for name in ground.objects) == 1
    assert ground.repository().orphans() == []
    assert verdict(ground.repository(), first) is None


def test_a_disk_that_fills_up_with_the_metadata_leaves_no_record_of_a_backup_that_is_gone(
    ground: MendableGround,
) -> None:
    class Full(MemoryStorage):
        """Is full from the parity of the metadata on that ends a run."""

        is_full = False

        def create(self, name: str, *, replace: bool = False, hashed: bool = True) -> MemoryUpload:
            ends = name.endswith(".metadata.json.parity") and any(
                "manifest" in known for known in ground.objects
            )
            self.is_full = self.is_full or ends
            if self.is_full:
                raise StorageError("no room")
            return super().create(name, replace=replace, hashed=hashed)

        def put(self, name: str, data: bytes) -> None:
            if self.is_full:
                raise StorageError("no room")
            super().put(name, data)

    ground.memory = full = Full()
    repository = ground.repository()
    with repository.begin(plan_of(TREES)) as run:
        store_source(run, ("models", "main"), TREES["models", "main"])
        metadata = run.commit(warnings=0, duration_seconds=0)
    assert full.is_full
    assert any("has no parity" in warning for warning in run.warnings)
    full.is_full, ground.memory = False, full.survivor()
    assert_holds(ground.repository(), ground.repository().find(metadata.backup_id), TREES)
    assert all(mending.is_done for mending in ground.repository().mend())
    assert ground.bare() == []


def test_parity_is_made_of_what_was_written(ground: MendableGround) -> None:
    """A disk that gives back something else is found out, and no parity makes that last."""
    storage = ground.storage()
    upload = storage.create("keys/a")
    upload.write(noise(30_000, 1))
    ground.memory.faults.flip("read_at", bit=70_000)
    with pytest.raises(StorageError, match="not what was written"):
        upload.publish()
    assert not storage.has_parity("keys/a")


def test_sectors_that_cannot_be_read_are_mended_where_the_disk_says_so(ground: MendableGround) -> None:
    metadata = ground.make()
    (pack,) = packs_of(ground)
    whole = dict(ground.objects)

    class Failing(MemoryStorage):
        def open(self, name: str) -> MemoryObject:
            found = super().open(name)
            if name == pack:
                read_at = found.read_at

                def fail(offset: int, length: int) -> bytes:
                    if offset < 5 * SECTOR and offset + length > 4 * SECTOR:
                        raise OSError(5, "Input/output error")
                    return read_at(offset, length)

                found.read_at = fail  # type: ignore[method-assign]
            return found

    plain, ground.memory = ground.memory, Failing()
    ground.memory._medium = plain._medium
    assert_holds(ground.repository(), metadata, TREES)
    assert len(ground.told) == 1
    found = verdict(ground.repository(), metadata)
    assert found is not None
    assert "`holdfast repair`" in found.hint
    assert ground.objects == whole


def test_parity_of_files_on_a_disk_is_durable_and_private() -> None:
    with scratch() as top:

        class OnDisk(DedupGround):
            def storage(self) -> ParityStorage:
                return ParityStorage(super().storage(), writes=True)

        ground = OnDisk(top, encrypt=True)
        metadata = store(ground.repository(), TREES)
        found = [path for path in ground.directory.rglob("*.parity") if path.is_file()]
        assert len(found) == 6
        assert {path.stat().st_mode & 0o777 for path in found} == {0o600}
        assert ground.repository().orphans() == []
        assert verdict(ground.repository(), metadata) is None


class TestParityStorage(StorageSuite):
    @pytest.fixture
    def storage(self) -> ParityStorage:
        return ParityStorage(MemoryStorage(), writes=True)

    def test_parity_is_not_listed_and_goes_when_another_takes_the_name(self) -> None:
        plain = MemoryStorage()
        storage = ParityStorage(plain, writes=True)
        storage.put("keys/a", b"a")
        assert list(storage.names("keys/")) == ["keys/a"]
        assert plain.exists("keys/a.parity")
        ParityStorage(plain).put("keys/a", b"b")
        assert not plain.exists("keys/a.parity")
        write_parity(plain, "keys/a")
        storage.delete("keys/a")
        assert list(plain.names("keys/")) == []
