from __future__ import annotations

import io
import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast.errors import CorruptBackup
from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._pack_reader import PackReader
from holdfast.repository.dedup._pack_writer import PackWriter
from holdfast.repository.dedup._seal import BLOCK, HEADER_LENGTH, Sealer
from holdfast.repository.dedup._table import PACK_MAGIC, PackTable
from holdfast.storage.local import LocalStorage
from repository.dedup.sealed import (
    Bytes,
    columns,
    contents,
    every_kind,
    flipped,
    forge_pack,
    head,
    make_keys,
    no_base,
    pack_bytes,
    pool,
    weights,
    write_pack,
)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.fixture
def keys() -> RunKeys:
    return make_keys()


class Packed:
    """A small pack with a block of each codec, and its bytes."""

    def __init__(self, directory: Path) -> None:
        self.keys = make_keys()
        blocks, self.parts = every_kind()
        self.table = write_pack(LocalStorage(directory), self.keys, 5, blocks)
        self.data = pack_bytes(directory, self.table)

    def resolve(self, name: bytes) -> bytes:
        assert name == chunk_id(self.keys.id_key, self.parts["base"])
        return self.parts["base"]

    def verify(self, data: bytes) -> None:
        PackReader(Bytes(data), self.table.name, self.keys).verify(self.resolve)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return Packed(tmp_path_factory.mktemp("packed"))


def test_a_pack_gives_back_what_went_in(packed: Packed) -> None:
    reader = PackReader(Bytes(packed.data), packed.table.name, packed.keys)

    reader.verify(packed.resolve)

    parts = packed.parts
    assert [row.codec for row in packed.table.blocks()] == [0, 1, 2, 3]
    assert contents(reader, packed.resolve) == [
        parts[name] for name in ("stored", "rows", "more rows", "weights", "version")
    ]
    assert packed.table.size == len(packed.data)
    assert packed.table.hash == reader.table.hash == blake3(packed.data[:-40]).hexdigest()
    assert reader.table.blocks() == packed.table.blocks()
    assert reader.table.chunks() == packed.table.chunks()


def test_a_pack_is_as_the_format_says(packed: Packed) -> None:
    """Read by the description alone."""
    data, keys = packed.data, packed.keys
    head = b"HFPACK01" + bytes.fromhex(keys.run) + struct.pack("<I", 5)
    length, digest = struct.unpack("<I32s", data[-44:-8])
    table = data[-44 - length : -44]
    cipher = AESGCM(keys.data_key)

    assert data.startswith(head)
    assert data.endswith(b"HFPACKED")
    assert blake3(data[:-40]).digest() == digest
    plain = cipher.decrypt(struct.pack("<IQ", 5, 2**64 - 1), table, head + b"T")
    line, _, columns = io.BytesIO(zstandard.ZstdDecompressor().decompress(plain)).read().partition(b"\n")
    found = json.loads(line)
    assert found == {"blocks": 4, "chunks": 5, "bytes": len(columns)}
    assert len(columns) == 4 * 9 + 52 + 5 * 44
    lengths, raws = np.frombuffer(columns, "<u4", 8).reshape(2, 4)
    assert columns[32:36] == b"\0\1\2\3"
    assert columns[36:68] == chunk_id(keys.id_key, packed.parts["base"])
    assert columns[68:88] == bytes(20)
    start = len(head)
    for position, size in enumerate(lengths.tolist()):
        encoded = cipher.decrypt(struct.pack("<IQ", 5, position), data[start : start + size], head + b"B")
        start += size
        if position == 0:
            assert encoded == packed.parts["stored"]
        if position == 1:
            raw = zstandard.ZstdDecompressor().decompress(encoded)
            assert raw == packed.parts["rows"] + packed.parts["more rows"]
    assert start == len(data) - 44 - length
    assert raws.tolist() == [60, len(packed.parts["rows"]) + 320, 500, 500]
    names = [columns[88 + 32 * row : 120 + 32 * row] for row in range(5)]
    assert names[1] == chunk_id(keys.id_key, packed.parts["rows"])
    blocks, offsets, sizes = np.frombuffer(columns, "<u4", 15, 88 + 160).reshape(3, 5)
    assert blocks.tolist() == [0, 1, 1, 2, 3]
    assert offsets.tolist() == [0, 0, len(packed.parts["rows"]), 0, 0]
    assert sizes.tolist() == [60, len(packed.parts["rows"]), 320, 500, 500]


def test_every_flipped_bit_is_noticed(packed: Packed) -> None:
    for bit in range(8 * len(packed.data)):
        with pytest.raises(CorruptBackup):
            packed.verify(flipped(packed.data, bit))


def test_a_pack_that_is_cut_short_is_noticed(packed: Packed) -> None:
    for length in range(len(packed.data)):
        with pytest.raises(CorruptBackup):
            packed.verify(packed.data[:length])


@pytest.mark.parametrize("place", [0, HEADER_LENGTH, -44, None])
def test_something_added_is_noticed(packed: Packed, place: int | None) -> None:
    data = packed.data
    broken = data + b"\0" if place is None else data[:place] + b"\0" + data[place:]

    with pytest.raises(CorruptBackup):
        packed.verify(broken)


def test_blocks_that_have_changed_places_are_noticed(storage: LocalStorage, keys: RunKeys) -> None:
    size = 100
    table = write_pack(storage, keys, 0, [([os.urandom(size)], 1, None), ([os.urandom(size)], 1, None)])
    data = pack_bytes(storage.directory, table)
    first, second = HEADER_LENGTH, HEADER_LENGTH + size + 16
    swapped = (
        data[:first] + data[second : second + size + 16] + data[first:second] + data[second + size + 16 :]
    )

    with pytest.raises(CorruptBackup, match="block 0"):
        PackReader(Bytes(swapped), table.name, keys).block(0, no_base)


def test_a_pack_that_is_not_the_one_of_the_index_is_noticed(packed: Packed) -> None:
    table = replace(packed.table, hash="0" * 64)

    with pytest.raises(CorruptBackup, match="its digest is another"):
        PackReader(Bytes(packed.data), table.name, packed.keys, table=table).verify(packed.resolve)


def test_an_opened_block_is_compared_with_its_ids(packed: Packed) -> None:
    reader = PackReader(Bytes(packed.data), packed.table.name, packed.keys)
    raw = reader.block(1, no_base)

    reader.compare(1, raw)
    for bit in (0, 8 * len(raw) - 1):
        with pytest.raises(CorruptBackup, match=f"block 1 of pack {packed.table.name}"):
            reader.compare(1, flipped(raw, bit))


def test_a_table_from_an_index_is_enough_to_read_a_block(packed: Packed) -> None:
    class Counting(Bytes):
        reads: list[tuple[int, int]] = []  # noqa: RUF012

        def read_at(self, offset: int, length: int) -> bytes:
            self.reads.append((offset, length))
            return super().read_at(offset, length)

    source = Counting(packed.data)
    reader = PackReader(source, packed.table.name, packed.keys, table=packed.table)

    assert reader.block(0, no_base) == packed.parts["stored"]
    assert source.reads == [(HEADER_LENGTH, 60 + 16)]


def test_a_pack_under_the_name_of_another_says_so(storage: LocalStorage, keys: RunKeys) -> None:
    tables = [write_pack(storage, keys, number, [([b"x" * 100], 1, None)]) for number in range(2)]
    other = make_keys(like=keys)

    with pytest.raises(CorruptBackup, match=f"holds another pack, {tables[0].name}"):
        PackReader(Bytes(pack_bytes(storage.directory, tables[0])), tables[1].name, keys)
    with pytest.raises(CorruptBackup, match=f"holds another pack, {keys.run}"):
        PackReader(Bytes(pack_bytes(storage.directory, tables[0])), f"{other.run}-0", other)


def test_a_pack_of_another_key_says_so(packed: Packed) -> None:
    stranger = RunKeys(**{**_fields(packed.keys), "data_key": bytes(32)})

    with pytest.raises(CorruptBackup, match=f"{packed.table.name}.* key that is not this run's"):
        PackReader(Bytes(packed.data), packed.table.name, stranger)


def _fields(keys: RunKeys) -> dict[str, Any]:
    return {name: getattr(keys, name) for name in RunKeys.__slots__}


def test_a_pack_of_a_later_version_asks_for_an_update(packed: Packed) -> None:
    with pytest.raises(CorruptBackup, match=f"{packed.table.name}.*newer Holdfast") as caught:
        packed.verify(b"HFPACK02" + packed.data[8:])

    assert "Update" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"HFPACK01", b"\x7fELF" * 40, b"HFPACK0x" + bytes(200)])
def test_what_is_no_pack_is_refused_by_name(data: bytes, keys: RunKeys) -> None:
    with pytest.raises(CorruptBackup, match=keys.run):
        PackReader(Bytes(data), f"{keys.run}-0", keys)


# What a writer with keys could lie about


def lying_pack(storage: LocalStorage, keys: RunKeys) -> PackTable:
    """A pack that says of its chunk what is not so."""
    with pool() as executor, PackWriter(storage, keys, 0, executor) as writer:
        writer.add_block([(chunk_id(keys.id_key, b"honest"), b"not that")])
        return writer.finish()


def test_a_chunk_that_is_not_what_its_id_says_is_noticed(storage: LocalStorage, keys: RunKeys) -> None:
    table = lying_pack(storage, keys)
    reader = PackReader(Bytes(pack_bytes(storage.directory, table)), table.name, keys)

    with pytest.raises(CorruptBackup, match=f"{table.name} does not hold chunk"):
        reader.verify(no_base)


def test_a_base_that_is_another_one_is_noticed(packed: Packed) -> None:
    reader = PackReader(Bytes(packed.data), packed.table.name, packed.keys)
    wrong = weights(250, 99)

    with pytest.raises(CorruptBackup, match="does not hold chunk"):
        reader.verify(lambda name: wrong)
    with pytest.raises(CorruptBackup, match=f"block 3 of pack {packed.table.name}"):
        reader.block(3, lambda name: wrong[:-2])


def test_an_error_of_the_base_is_passed_on(packed: Packed) -> None:
    reader = PackReader(Bytes(packed.data), packed.table.name, packed.keys)
    error = CorruptBackup("its pack is gone")

    def missing(name: bytes) -> bytes:
        raise error

    with pytest.raises(CorruptBackup) as caught:
        reader.block(3, missing)
    assert caught.value is error


def test_a_block_that_does_not_decompress_names_its_pack(keys: RunKeys) -> None:
    sealed = Sealer(keys, PACK_MAGIC, 0).seal(BLOCK, 0, b"no zstd frame")
    data = columns([(len(sealed), 100, 1)], [(0, 0, 100)])
    pack = forge_pack(keys, 0, sealed, head(1, 1, len(data)) + data)
    reader = PackReader(Bytes(pack), f"{keys.run}-0", keys)

    with pytest.raises(CorruptBackup, match=f"block 0 of pack {keys.run}-0"):
        reader.block(0, no_base)


def test_a_reader_with_the_keys_of_another_run_is_a_mistake(packed: Packed) -> None:
    with pytest.raises(ValueError, match="is not of run"):
        PackReader(Bytes(packed.data), packed.table.name, make_keys())


@pytest.mark.parametrize(
    "name", ["", "../x", "0" * 32, "0" * 32 + "-01", "0" * 32 + "-4294967296", "A" * 32 + "-0"]
)
def test_a_name_that_no_pack_has_is_refused(name: str, keys: RunKeys) -> None:
    with pytest.raises(CorruptBackup, match="not the name"):
        PackReader(Bytes(b""), name, keys)
