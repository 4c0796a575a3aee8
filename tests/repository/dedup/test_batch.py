"""Small files are read many together: which, in what order and beside what damage must make no difference."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from conformance.trees import file, models, noise, store
from forks import scratch
from holdfast.errors import CorruptBackup
from holdfast.model import BackupMetadata, Entry
from holdfast.repository.dedup._cut import cut, is_one_chunk
from holdfast.repository.dedup._stored import StoredManifest
from repository.dedup.grounds import DedupGround

KEY = bytes(range(32))
SIZES = [*(100 + number for number in range(1500)), 400_000, 0, 1, 16_384, 16_385, 262_144, 262_145, 70_000]
"""More than a batch, and what is cut at, left out of, or ends one."""


def content(number: int) -> bytes:
    return noise(SIZES[number], number)


def name(number: int) -> str:
    return f"files/models/{number:05}"


def files(stored: StoredManifest) -> Iterator[Entry]:
    (source,) = stored.sources()
    return (entry for entry in stored.entries(source) if entry.kind == "file")


@pytest.fixture
def ground() -> Iterator[DedupGround]:
    with scratch() as top:
        yield DedupGround(top, encrypt=True)


def backed_up(ground: DedupGround, *numbers: int) -> BackupMetadata:
    metadata = store(
        ground.repository(), models(*(file(name(number), content(number)) for number in numbers))
    )
    ground.clock.forward()
    return metadata


@pytest.mark.parametrize("step", [1, 2, 7, 1100])
def test_any_selection_of_small_files_is_read(ground: DedupGround, step: int) -> None:
    metadata = backed_up(ground, *range(len(SIZES)))
    with ground.repository().open(metadata) as stored:
        read = 0
        for number, entry in enumerate(files(stored)):
            if number % step == 0 or number > 1490:
                assert b"".join(stored.read(entry)) == content(number)
                read += 1
        assert number == len(SIZES) - 1
        assert read >= len(SIZES) // step


def test_an_entry_is_read_again_and_after_others_were(ground: DedupGround) -> None:
    metadata = backed_up(ground, *range(5))
    with ground.repository().open(metadata) as stored:
        entries = []
        for number, entry in enumerate(files(stored)):
            half = stored.read(entry)
            next(half)
            assert b"".join(stored.read(entry)) == content(number)
            entries.append(entry)
            assert b"".join(stored.read(entries[0])) == content(0)
        assert [b"".join(stored.read(entry)) for entry in reversed(entries)] == [
            content(number) for number in reversed(range(5))
        ]


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_what_is_sound_is_read_beside_what_is_damaged(ground: DedupGround, damage: str) -> None:
    backed_up(ground, *range(0, 20, 2))
    before = set((ground.directory / "packs").rglob("*-*"))
    metadata = backed_up(ground, *range(20))
    (pack,) = set((ground.directory / "packs").rglob("*-*")) - before
    if damage == "flipped":
        data = bytearray(pack.read_bytes())
        data[40] ^= 1
        pack.write_bytes(data)
    else:
        # Its length stays, as it does where a disk loses what was written.
        pack.write_bytes(bytes(pack.stat().st_size))
    with ground.repository().open(metadata) as stored:
        for number, entry in enumerate(files(stored)):
            if number % 2:
                with pytest.raises(CorruptBackup):
                    list(stored.read(entry))
            else:
                assert b"".join(stored.read(entry)) == content(number)


MAGICS = [
    b"PK\3\4",
    b"GGUF",
    b"\x93NUMPY\1\0",
    b"SQLite format 3\0",
    (40).to_bytes(8, "little") + b'{"a":',
    b"",
]


@settings(max_examples=200)
@given(
    magic=st.sampled_from(MAGICS),
    size=st.sampled_from([0, 1, 3, 600, 16_384, 16_385]),
    seed=st.integers(0, 9),
)
def test_what_is_said_to_be_one_chunk_is_cut_as_one(magic: bytes, size: int, seed: int) -> None:
    data = (magic + noise(size, seed))[:size]
    chunks = [bytes(chunk.data) for chunk in cut(iter((data,)), KEY)]
    if is_one_chunk(data):
        assert chunks == [data]
    elif not any(magic and data.startswith(magic[:4]) for magic in MAGICS):
        assert not data or size > 16_384


def test_a_small_model_is_cut_at_its_tensors() -> None:
    tensors = {name: np.full(500, number, np.float32) for number, name in enumerate("abc")}
    npy, zipped = io.BytesIO(), io.BytesIO()
    np.save(npy, tensors["b"])
    np.savez(zipped, **tensors)
    for data in (save(tensors), npy.getvalue(), zipped.getvalue()):
        assert not is_one_chunk(data)
        assert len(list(cut(iter((data,)), KEY))) > 1
