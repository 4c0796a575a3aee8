from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup, StorageError
from holdfast.repository.dedup import _known
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._known import Known, KnownChunk
from holdfast.repository.dedup._record_file import RecordFile
from holdfast.repository.dedup._table import PackTable, pack_base
from holdfast.repository.dedup._tensor_bases import TensorBases, tensor_identity
from repository.dedup.sealed import flipped, make_keys

KEYS = make_keys()


def name_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def table_of(number: int, ids: Sequence[bytes], keys: RunKeys = KEYS) -> PackTable:
    count = len(ids)
    return PackTable(
        name=f"{keys.run}-{number}",
        size=1000 + number,
        hash=f"{number:064x}",
        block_lengths=np.array([100], np.uint32),
        block_raws=np.array([10 * count], np.uint32),
        block_codecs=np.array([1], np.uint8),
        bases=np.zeros((0, 52), np.uint8),
        ids=np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32),
        chunk_blocks=np.zeros(count, np.uint32),
        chunk_offsets=np.arange(count, dtype=np.uint32) * 10,
        chunk_lengths=np.arange(1, count + 1, dtype=np.uint32),
    )


def remembered(directory: Path, keys: RunKeys = KEYS) -> Known:
    return Known(directory, repository=keys.repository, writer=keys.writer, id_key=keys.id_key)


def memory_file(directory: Path) -> Path:
    (path,) = (path for path in directory.glob("chunks-*") if path.suffix != ".lock")
    return path


PACKS = st.lists(st.lists(st.integers(0, 40).map(name_of), min_size=1, max_size=6), max_size=8)


@settings(max_examples=60)
@given(packs=PACKS, forgotten=st.sets(st.integers(0, 8)), reopen=st.booleans())
def test_what_is_known_is_what_the_packs_that_are_left_hold(
    tmp_path_factory: pytest.TempPathFactory, packs: list[list[bytes]], forgotten: set[int], reopen: bool
) -> None:
    directory = tmp_path_factory.mktemp("state")
    known = remembered(directory)
    for number, ids in enumerate(packs):
        known.add(KEYS, table_of(number, ids))
    known.forget_packs({f"{KEYS.run}-{number}" for number in forgotten})
    if reopen:
        known = remembered(directory)

    expected = {
        chunk: KnownChunk(f"{KEYS.run}-{number}", place)
        for number, ids in enumerate(packs)
        if number not in forgotten
        for place, chunk in enumerate(ids, 1)
    }
    asked = [name_of(number) for number in range(45)]
    assert len(known) == len(expected)
    assert known.find_many(asked) == [known.get(chunk) for chunk in asked]
    assert [known.has(chunk) for chunk in asked] == [chunk in expected for chunk in asked]
    assert {chunk: known.get(chunk) for chunk in expected} == expected
    assert known.packs() == {
        f"{KEYS.run}-{number}": 1000 + number for number in range(len(packs)) if number not in forgotten
    }
    assert known.hashes() == {name: f"{size - 1000:064x}" for name, size in known.packs().items()}


def test_the_memory_is_private(tmp_path: Path) -> None:
    known = remembered(tmp_path)
    known.add(KEYS, table_of(0, [name_of(1)]))
    known.add(KEYS, table_of(1, [name_of(2)]))
    known.forget_packs([f"{KEYS.run}-0"])

    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_record_that_a_crash_cut_short_is_not_believed(tmp_path: Path) -> None:
    remembered(tmp_path).add(KEYS, table_of(0, [name_of(1)]))
    path = memory_file(tmp_path)
    first = path.read_bytes()
    remembered(tmp_path).add(KEYS, table_of(1, [name_of(2), name_of(3)]))
    both = path.read_bytes()
    assert both.startswith(first)

    for end in range(len(first), len(both)):
        for tail in (b"", bytes(len(both) - end)):
            path.write_bytes(both[:end] + tail)
            known = remembered(tmp_path)
            assert known.has(name_of(1))
            assert not known.has(name_of(2))
            assert len(known.packs()) == 1


@pytest.mark.parametrize("torn", [1, 10, 40])
def test_after_a_crash_new_records_are_kept(tmp_path: Path, torn: int) -> None:
    remembered(tmp_path).add(KEYS, table_of(0, [name_of(1)]))
    remembered(tmp_path).add(KEYS, table_of(1, [name_of(2)]))
    path = memory_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-torn])

    remembered(tmp_path).add(KEYS, table_of(2, [name_of(3)]))

    known = remembered(tmp_path)
    assert [known.has(name_of(number)) for number in (1, 2, 3)] == [True, False, True]


def test_nothing_wrong_is_believed_of_a_damaged_memory(tmp_path: Path) -> None:
    for number in range(3):
        remembered(tmp_path).add(KEYS, table_of(number, [name_of(number)]))
    path = memory_file(tmp_path)
    whole = path.read_bytes()

    for bit in range(0, 8 * len(whole), 5):
        path.write_bytes(flipped(whole, bit))
        known = remembered(tmp_path)
        assert len(known) < 3
        for number in range(len(known)):
            assert known.get(name_of(number)) == KnownChunk(f"{KEYS.run}-{number}", 1)


def test_a_damaged_memory_is_used_again_from_where_it_is_good(tmp_path: Path) -> None:
    for number in range(3):
        remembered(tmp_path).add(KEYS, table_of(number, [name_of(number)]))
    path = memory_file(tmp_path)
    path.write_bytes(flipped(path.read_bytes(), 8 * (path.stat().st_size // 2)))

    remembered(tmp_path).add(KEYS, table_of(3, [name_of(3)]))

    assert [remembered(tmp_path).has(name_of(number)) for number in range(4)] == [True, False, False, True]


@pytest.mark.parametrize(
    "change",
    [{"repository": "f" * 32}, {"id_key": bytes(32)}, {"writer": "c29tZWJvZHk="}],
    ids=lambda change: next(iter(change)),
)
def test_the_memory_of_another_counts_as_empty(tmp_path: Path, change: dict[str, str]) -> None:
    remembered(tmp_path).add(KEYS, table_of(0, [name_of(1)]))
    other = replace(KEYS, **change)
    if "writer" in change:  # it has a file of its own, in whose place that of the first is put
        theirs = memory_file(tmp_path)
        elsewhere = theirs.rename(tmp_path / "elsewhere")
        remembered(tmp_path, other).add(other, table_of(0, [name_of(2)], other))
        elsewhere.rename(
            next(path for path in tmp_path.glob("chunks-*") if path.suffix != ".lock" and path != theirs)
        )

    known = remembered(tmp_path, other)
    assert len(known) == 0

    known.add(other, table_of(0, [name_of(2)], other))
    known = remembered(tmp_path, other)
    assert not known.has(name_of(1))
    assert known.has(name_of(2))


def test_writers_do_not_share_a_memory(tmp_path: Path) -> None:
    other = make_keys(writer="c29tZWJvZHk=")
    other = replace(other, id_key=KEYS.id_key)
    remembered(tmp_path).add(KEYS, table_of(0, [name_of(1)]))
    remembered(tmp_path, other).add(other, table_of(0, [name_of(2)], other))

    assert remembered(tmp_path).has(name_of(1))
    assert not remembered(tmp_path).has(name_of(2))
    assert remembered(tmp_path, other).has(name_of(2))
    with pytest.raises(ValueError, match="not of the writer"):
        remembered(tmp_path).add(other, table_of(0, [name_of(3)], other))


def differing(number: int, ids: Sequence[bytes], base_pack: str) -> PackTable:
    """A pack whose only block is a difference from a chunk in `base_pack`."""
    return replace(
        table_of(number, ids[:1]),
        block_codecs=np.array([3], np.uint8),
        bases=np.frombuffer(pack_base(name_of(99), base_pack), np.uint8).reshape(1, -1),
    )


@pytest.mark.parametrize("reopen", [False, True])
def test_where_the_bases_of_differences_lie_is_remembered(tmp_path: Path, reopen: bool) -> None:
    known = remembered(tmp_path)
    known.add(KEYS, table_of(0, [name_of(1)]), "ab" * 32)
    known.add(KEYS, differing(1, [name_of(2)], f"{KEYS.run}-0"), "ab" * 32)
    known = remembered(tmp_path) if reopen else known
    assert known.bases() == {f"{KEYS.run}-1": (f"{KEYS.run}-0",)}
    assert known.key_files() == {KEYS.run: "ab" * 32}
    assert known.get(name_of(1)) == KnownChunk(f"{KEYS.run}-0", 1)
    assert known.get(name_of(2)) == KnownChunk(f"{KEYS.run}-1", 1, is_difference=True)


def test_differences_are_forgotten_with_their_bases(tmp_path: Path) -> None:
    known = remembered(tmp_path)
    # In any order: what was learnt again need not be in that in which it was written.
    known.add(KEYS, differing(2, [name_of(3)], f"{KEYS.run}-1"))
    known.add(KEYS, differing(1, [name_of(2)], f"{KEYS.run}-0"))
    known.add(KEYS, table_of(0, [name_of(1)]))
    known.add(KEYS, table_of(3, [name_of(4)]))
    known.forget_packs([f"{KEYS.run}-0"])
    assert list(known.packs()) == [f"{KEYS.run}-3"]
    known.add(KEYS, differing(4, [name_of(5)], f"{KEYS.run}-9"))
    known.forget_packs([])
    assert list(remembered(tmp_path).packs()) == [f"{KEYS.run}-3"]


def test_each_audience_has_a_memory_of_its_own(tmp_path: Path) -> None:
    def of(audience: str) -> Known:
        return Known(
            tmp_path,
            repository=KEYS.repository,
            writer=KEYS.writer,
            id_key=KEYS.id_key,
            audience=audience,
        )

    other = make_keys(like=KEYS)
    of("age1a").add(KEYS, table_of(0, [name_of(1)]), "aa" * 32)
    of("age1a").add(other, table_of(0, [name_of(2)], other), "bb" * 32)
    assert not of("age1b").has(name_of(1))
    for _ in range(2):
        of("age1b").take_over(of("age1a"), {KEYS.run: "cc" * 32})
    assert of("age1b").packs() == {f"{KEYS.run}-0": 1000}
    assert of("age1b").key_files() == {KEYS.run: "cc" * 32}
    assert of("age1b").get(name_of(1)) == KnownChunk(f"{KEYS.run}-0", 1)


# What index objects say


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_what_an_index_says_is_remembered_and_that_it_was_read(
    tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_known, "_BATCH", batch)
    known = remembered(tmp_path)
    known.add(KEYS, table_of(0, [name_of(0)]), "ab" * 32)
    tables = [table_of(number, [name_of(number), name_of(number + 10)]) for number in range(3)]
    assert known.learn(f"{KEYS.run}-0", "SHA256:A", "ab" * 32, iter(tables)) == 2
    known.note({f"{KEYS.run}-{number}": "SHA256:B" for number in range(1, 6)})
    for again in (known, remembered(tmp_path)):
        assert set(again.packs()) == {f"{KEYS.run}-{number}" for number in range(3)}
        assert again.get(name_of(12)) == KnownChunk(f"{KEYS.run}-2", 2)
        assert again.get(name_of(10)) is None  # of a pack that was known already
        assert again.key_files() == {KEYS.run: "ab" * 32}
        assert again.indexes == {f"{KEYS.run}-0": "SHA256:A"} | {
            f"{KEYS.run}-{number}": "SHA256:B" for number in range(1, 6)
        }
    known.forget_packs([f"{KEYS.run}-1"])
    assert len(remembered(tmp_path).packs()) == 2
    assert len(remembered(tmp_path).indexes) == 6
    other = Known(
        tmp_path, repository=KEYS.repository, writer=KEYS.writer, id_key=KEYS.id_key, audience="age1"
    )
    other.take_over(known, {KEYS.run: "cd" * 32})
    assert (len(other.packs()), other.indexes) == (2, {})


def test_an_index_that_breaks_off_was_not_read(tmp_path: Path) -> None:
    def tables() -> Iterator[PackTable]:
        yield table_of(0, [name_of(0)])
        raise CorruptBackup("damaged")

    known = remembered(tmp_path)
    with pytest.raises(CorruptBackup):
        known.learn(f"{KEYS.run}-0", "SHA256:A", "ab" * 32, tables())
    assert remembered(tmp_path).indexes == {}


def test_a_pack_of_another_run_is_not_remembered_as_of_this(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not of run"):
        remembered(tmp_path).add(make_keys(like=KEYS), table_of(0, [name_of(1)]))


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    first, second = remembered(tmp_path), remembered(tmp_path)
    for number in range(6):
        (first if number % 2 else second).add(KEYS, table_of(number, [name_of(number)]))

    assert all(remembered(tmp_path).has(name_of(number)) for number in range(6))

    first.forget_packs([f"{KEYS.run}-1"])
    second.add(KEYS, table_of(6, [name_of(6)]))
    second.forget_packs([f"{KEYS.run}-6"])
    first.add(KEYS, table_of(7, [name_of(7)]))

    known = remembered(tmp_path)
    assert [number for number in range(8) if known.has(name_of(number))] == [0, 2, 3, 4, 5, 7]


def test_a_memory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    known = remembered(tmp_path / "missing")
    with pytest.raises(StorageError):
        known.add(KEYS, table_of(0, [name_of(1)]))

    assert not known.has(name_of(1))


def test_a_link_in_place_of_the_memory_is_not_followed(tmp_path: Path) -> None:
    remembered(tmp_path).add(KEYS, table_of(0, [name_of(1)]))
    path = memory_file(tmp_path)
    target = path.rename(tmp_path / "elsewhere")
    path.symlink_to(target)
    before = target.read_bytes()

    with pytest.raises(StorageError):
        remembered(tmp_path)
    assert target.read_bytes() == before


def test_many_chunks_come_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    known = remembered(tmp_path)
    packs = [[generator.bytes(32) for _ in range(30_000)] for _ in range(5)]
    for number, ids in enumerate(packs):
        known.add(KEYS, table_of(number, ids))

    known = remembered(tmp_path)
    assert len(known) == 150_000
    assert known.find_many([ids[-1] for ids in packs]) == [
        KnownChunk(f"{KEYS.run}-{number}", 30_000) for number in range(5)
    ]


# Bases of differences


def bases_in(directory: Path, keys: RunKeys = KEYS) -> TensorBases:
    return TensorBases(directory, repository=keys.repository, writer=keys.writer, id_key=keys.id_key)


def identity(number: int) -> bytes:
    return tensor_identity(KEYS.id_key, f"layer.{number}", "BF16", [8, 8], 0)


def test_a_tensor_goes_by_name_type_shape_and_place() -> None:
    same = [KEYS.id_key, "layer", "BF16", [8, 8], 0]
    others = [[bytes(32), *same[1:]]] + [
        [*same[:field], value, *same[field + 1 :]]
        for field, value in [(1, "layer "), (2, "F16"), (3, [64]), (3, [88]), (4, 1 << 20)]
    ]
    found = [tensor_identity(*case) for case in [same, *others]]  # type: ignore[arg-type]

    assert all(len(name) == 16 for name in found)
    assert len(set(found)) == len(found)
    assert tensor_identity(*same) == found[0]  # type: ignore[arg-type]
    assert tensor_identity(KEYS.id_key, "layer", "BF16", (8, 8), 0) == found[0]


@settings(max_examples=60)
@given(
    steps=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 99)) | st.none(), max_size=30),
    reopen=st.booleans(),
)
def test_the_last_base_of_a_tensor_is_remembered(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int] | None], reopen: bool
) -> None:
    directory = tmp_path_factory.mktemp("state")
    bases = bases_in(directory)
    expected: dict[bytes, bytes] = {}
    for step in steps:
        if step is None:
            bases.save()
        else:
            bases.put(identity(step[0]), name_of(step[1]))
            expected[identity(step[0])] = name_of(step[1])
    if reopen:
        bases.save()
        bases = bases_in(directory)

    assert len(bases) == len(expected)
    assert {identity(number): bases.get(identity(number)) for number in range(10)} == {
        identity(number): expected.get(identity(number)) for number in range(10)
    }


def test_bases_that_were_not_saved_are_forgotten(tmp_path: Path) -> None:
    bases = bases_in(tmp_path)
    bases.put(identity(0), name_of(0))

    assert bases_in(tmp_path).get(identity(0)) is None


def test_the_bases_of_another_count_as_none(tmp_path: Path) -> None:
    bases = bases_in(tmp_path)
    bases.put(identity(0), name_of(0))
    bases.save()

    for change in ({"repository": "f" * 32}, {"id_key": bytes(32)}, {"writer": "c29tZWJvZHk="}):
        assert len(bases_in(tmp_path, replace(KEYS, **change))) == 0  # type: ignore[arg-type]


def test_the_file_of_bases_does_not_grow_for_ever(tmp_path: Path) -> None:
    sizes = []
    for version in range(30):
        bases = bases_in(tmp_path)
        for number in range(1000):
            bases.put(identity(number), name_of(version))
        bases.save()
        sizes.append((tmp_path / "bases").stat().st_size)

    assert max(sizes) < 10 * 48 * 1000
    assert [bases_in(tmp_path).get(identity(number)) for number in (0, 999)] == [name_of(29)] * 2


@pytest.mark.parametrize(("key", "name"), [(bytes(15), bytes(32)), (bytes(16), bytes(31))])
def test_what_is_no_base_is_refused(tmp_path: Path, key: bytes, name: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        bases_in(tmp_path).put(key, name)


# The file itself


@settings(max_examples=100)
@given(contents=st.lists(st.binary(max_size=40), max_size=6), rubbish=st.binary(max_size=200))
def test_rubbish_after_the_records_is_not_one(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], rubbish: bytes
) -> None:
    directory = tmp_path_factory.mktemp("state")
    file = RecordFile(directory / "records", b"HFTEST01", owner=("me",), key=bytes(32))
    for content in contents:
        file.append(content)
    with (directory / "records").open("ab") as raw:
        raw.write(rubbish)

    assert list(file.read()) == contents
    file.append(b"next")
    assert list(file.read()) == [*contents, b"next"]


def test_those_who_write_at_once_wait_for_each_other(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        file = RecordFile(tmp_path / "records", b"HFTEST01", owner=("me",), key=bytes(32))
        for number in range(20):
            file.append(b"%d %d" % (writer, number))
            if number % 7 == 0:
                file.rewrite(lambda records: records)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))

    file = RecordFile(tmp_path / "records", b"HFTEST01", owner=("me",), key=bytes(32))
    assert sorted(file.read()) == sorted(
        b"%d %d" % (writer, number) for writer in range(4) for number in range(20)
    )


@given(rubbish=st.binary(max_size=300))
def test_a_file_of_rubbish_counts_as_empty(tmp_path_factory: pytest.TempPathFactory, rubbish: bytes) -> None:
    path = tmp_path_factory.mktemp("state") / "records"
    path.write_bytes(rubbish)
    file = RecordFile(path, b"HFTEST01", owner=("me",), key=bytes(32))

    assert list(file.read()) == []
    file.append(b"first")
    assert list(file.read()) == [b"first"]


def test_a_rewrite_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records", b"HFTEST01", owner=("me",), key=bytes(32))
    file.append(b"kept")

    def broken(records: Iterator[bytes]) -> Iterator[bytes]:
        yield from records
        raise KeyError

    with pytest.raises(KeyError):
        file.rewrite(broken)
    assert list(file.read()) == [b"kept"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records", "records.lock"]
    file.append(b"added")
    assert list(file.read()) == [b"kept", b"added"]
