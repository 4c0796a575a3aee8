from __future__ import annotations

import base64
import hashlib
import json
import struct
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.crypto import SigningKey
from holdfast.errors import CorruptBackup, StorageError
from holdfast.repository.dedup import _index_object
from holdfast.repository.dedup._id_table import IdTable
from holdfast.repository.dedup._index import ChunkIndex, ChunkPlace
from holdfast.repository.dedup._index_object import (
    IndexWriter,
    claimed_writer,
    open_index,
    read_index,
    seal_index,
)
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._seal import HEADER_LENGTH
from holdfast.repository.dedup._table import BASE_LENGTH, DIFFERENCE, PackTable
from holdfast.storage.local import LocalStorage
from repository.archive.archives import SIGNING_KEY, sign
from repository.dedup.sealed import Bytes, flipped, make_keys

KEYS = make_keys()

Blocks = Sequence[tuple[int, Sequence[tuple[bytes, int]]]]
"""Of each block its codec, and of its chunks id and length."""


def make_table(name: str, blocks: Blocks) -> PackTable:
    """A table as a pack would have it. A difference is from the chunk of id 0."""
    rows = [
        (chunk, block, sum(size for _, size in chunks[:place]), size)
        for block, (_, chunks) in enumerate(blocks)
        for place, (chunk, size) in enumerate(chunks)
    ]
    codecs = np.array([codec for codec, _ in blocks], np.uint8)
    lengths = np.array([17 + block for block in range(len(blocks))], np.uint32)
    return PackTable(
        name=name,
        size=HEADER_LENGTH + int(lengths.sum()) + 60,
        hash=f"{len(rows):064x}",
        block_lengths=lengths,
        block_raws=np.array([sum(size for _, size in chunks) for _, chunks in blocks], np.uint32),
        block_codecs=codecs,
        bases=np.zeros((int((codecs == DIFFERENCE).sum()), BASE_LENGTH), np.uint8),
        ids=np.frombuffer(b"".join(chunk for chunk, *_ in rows), np.uint8).reshape(-1, 32),
        chunk_blocks=np.array([block for _, block, _, _ in rows], np.uint32),
        chunk_offsets=np.array([offset for _, _, offset, _ in rows], np.uint32),
        chunk_lengths=np.array([size for *_, size in rows], np.uint32),
    )


def places(table: PackTable) -> list[tuple[bytes, ChunkPlace]]:
    rows = table.blocks()
    return [
        (chunk.id, ChunkPlace(table.name, rows[chunk.block], chunk.offset, chunk.length))
        for chunk in table.chunks()
    ]


def name_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


IDS = st.integers(0, 40).map(name_of)
CHUNK = st.tuples(IDS, st.integers(1, 1000))
BLOCK = st.tuples(st.integers(0, 2), st.lists(CHUNK, min_size=1, max_size=4)) | st.tuples(
    st.just(DIFFERENCE), st.lists(CHUNK, min_size=1, max_size=1)
)
TABLES = st.lists(st.lists(BLOCK, min_size=1, max_size=4), max_size=8).map(
    lambda packs: [make_table(f"{KEYS.run}-{number}", blocks) for number, blocks in enumerate(packs)]
)


# In memory


@given(tables=TABLES, ask_between=st.booleans())
def test_a_chunk_is_found_in_the_first_pack_where_it_is_whole(
    tables: list[PackTable], ask_between: bool
) -> None:
    index = ChunkIndex()
    expected: dict[bytes, ChunkPlace] = {}
    for table in tables:
        index.add(table)
        if ask_between:
            assert name_of(99) not in index
        for chunk, place in places(table):
            known = expected.get(chunk)
            if known is None or (known.block.base is not None and place.block.base is None):
                expected[chunk] = place

    assert len(index) == len(expected)
    asked = [name_of(number) for number in range(45)]
    assert [index.get(chunk) for chunk in asked] == [expected.get(chunk) for chunk in asked]
    assert index.find_many(asked) == [expected.get(chunk) for chunk in asked]
    assert [chunk in index for chunk in asked] == [chunk in expected for chunk in asked]


def test_nothing_is_found_in_an_empty_index() -> None:
    index = ChunkIndex()

    assert len(index) == 0
    assert index.get(name_of(1)) is None
    assert index.find_many([]) == []
    assert index.find_many([name_of(1)]) == [None]


def test_a_base_is_never_a_difference_itself() -> None:
    index = ChunkIndex()
    index.add(make_table(f"{KEYS.run}-0", [(2, [(name_of(0), 9)]), (DIFFERENCE, [(name_of(1), 9)])]))

    assert index.base(name_of(0)).pack == f"{KEYS.run}-0"
    with pytest.raises(CorruptBackup, match="is one itself"):
        index.base(name_of(1))
    with pytest.raises(CorruptBackup, match="is missing"):
        index.base(name_of(2))


def test_many_chunks_take_little_memory() -> None:
    count, per_pack = 400_000, 500
    generator = np.random.default_rng(1)
    index = ChunkIndex()
    tracemalloc.start()
    try:
        for number in range(count // per_pack):
            index.add(
                PackTable(
                    name=f"{KEYS.run}-{number}",
                    size=1 << 26,
                    hash="",
                    block_lengths=np.full(per_pack, 1000, np.uint32),
                    block_raws=np.full(per_pack, 2000, np.uint32),
                    block_codecs=np.full(per_pack, 2, np.uint8),
                    bases=np.zeros((0, BASE_LENGTH), np.uint8),
                    ids=np.frombuffer(generator.bytes(32 * per_pack), np.uint8).reshape(-1, 32),
                    chunk_blocks=np.arange(per_pack, dtype=np.uint32),
                    chunk_offsets=np.zeros(per_pack, np.uint32),
                    chunk_lengths=np.full(per_pack, 2000, np.uint32),
                )
            )
        assert len(index) == count
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held / count < 90


@given(
    batches=st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=10),
    width=st.sampled_from([8, 16, 32]),
)
def test_rows_are_numbered_in_the_order_of_first_sight(batches: list[list[int]], width: int) -> None:
    table = IdTable(width)
    order: dict[bytes, int] = {}
    for batch in batches:
        # Many that are equal in their first 8 bytes, and in all but these.
        ids = [number.to_bytes(width, "little" if number % 2 else "big") for number in batch]
        rows = table.add(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, width))
        assert rows.tolist() == [order.setdefault(name, len(order)) for name in ids]

    assert len(table) == len(order)
    assert [row.tobytes() for row in table.ids] == list(order)
    for number in range(70):
        name = number.to_bytes(width, "big")
        assert table.row(name) == order.get(name, -1)
        assert table.rows(np.frombuffer(name, np.uint8).reshape(1, width)).tolist() == [order.get(name, -1)]


def test_a_table_grows_over_many_batches() -> None:
    ids = np.frombuffer(np.random.default_rng(2).bytes(32 * 700_000), np.uint8).reshape(-1, 32)
    table = IdTable(32)

    assert np.array_equal(table.add(ids[:10]), np.arange(10))
    assert np.array_equal(table.add(ids), np.arange(len(ids)))
    assert np.array_equal(table.rows(ids[::-1]), np.arange(len(ids))[::-1])
    assert (table.rows(~ids) == -1).all()


# Index objects


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def shown(table: PackTable) -> tuple[object, ...]:
    return table.name, table.size, table.hash, table.blocks(), table.chunks()


KEY_FILE = "ab" * 32
AUDIENCE = "age1a age1b"


def writer_of(storage: LocalStorage, keys: RunKeys) -> IndexWriter:
    return IndexWriter(storage, keys, sign=sign, key_file=KEY_FILE, audience=AUDIENCE)


def read_all(storage: LocalStorage, keys: RunKeys, names: Sequence[str]) -> list[PackTable]:
    found = []
    for name in names:
        with storage.open(f"index/{name}") as source:
            found += list(read_index(source, name, keys))
    return found


@settings(max_examples=50)
@given(tables=TABLES, flush_at=st.integers(0, 8))
def test_an_index_gives_back_the_tables(
    tmp_path_factory: pytest.TempPathFactory, tables: list[PackTable], flush_at: int
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("repository"))
    writer = writer_of(storage, KEYS)
    for number, table in enumerate(tables):
        writer.add(table)
        if number == flush_at:
            writer.flush()
    writer.flush()

    assert writer.names == [f"{KEYS.run}-{number}" for number in range(len(writer.names))]
    assert writer.size == sum(path.stat().st_size for path in storage.directory.glob("index/*"))
    found = read_all(storage, KEYS, writer.names)
    assert [shown(table) for table in found] == [shown(table) for table in tables]


TABLE = make_table(f"{KEYS.run}-7", [(1, [(name_of(1), 10), (name_of(2), 20)]), (3, [(name_of(3), 8)])])


def one_object(storage: LocalStorage) -> tuple[str, bytes]:
    writer = writer_of(storage, KEYS)
    writer.add(TABLE)
    writer.flush()
    (name,) = writer.names
    return name, (storage.directory / "index" / name).read_bytes()


def test_an_index_object_is_as_the_format_says(storage: LocalStorage) -> None:
    """Read by the description alone."""
    _, data = one_object(storage)
    head = b"HFINDEX1" + bytes.fromhex(KEYS.run) + struct.pack("<I", 0)
    nonce = struct.pack("<IQ", 0, 2**64 - 2)

    assert data.startswith(head)
    sealed, key, signature = data[len(head) : -96], data[-96:-64], data[-64:]
    statement = f"holdfast index\n{hashlib.sha256(head + sealed).hexdigest()}\n".encode()
    Ed25519PublicKey.from_public_bytes(key).verify(signature, statement)
    assert base64.b64encode(key).decode() == SIGNING_KEY.public
    secret = blake3(
        KEYS.id_key + bytes.fromhex(KEYS.run), derive_key_context="holdfast 2026 index objects of a run"
    ).digest()
    plain = zstandard.ZstdDecompressor().decompress(AESGCM(secret).decrypt(nonce, sealed, head + b"I"))
    first, _, record = plain.partition(b"\n")
    assert json.loads(first) == {
        "repository": KEYS.repository,
        "key_file": KEY_FILE,
        "audience": hashlib.sha256(b"age1a age1b").hexdigest(),
    }
    line, _, columns = record.partition(b"\n")
    assert json.loads(line) == {
        "pack": f"{KEYS.run}-7",
        "size": TABLE.size,
        "hash": TABLE.hash,
        "blocks": 2,
        "chunks": 3,
        "bytes": len(columns),
    }
    assert columns.startswith(TABLE.block_lengths.astype("<u4").tobytes())


def test_every_flipped_bit_of_an_index_is_noticed(storage: LocalStorage) -> None:
    name, data = one_object(storage)

    for bit in range(8 * len(data)):
        with pytest.raises(CorruptBackup, match=name):
            list(read_index(Bytes(flipped(data, bit)), name, KEYS))
    for length in range(len(data)):
        with pytest.raises(CorruptBackup, match=name):
            list(read_index(Bytes(data[:length]), name, KEYS))


def test_an_index_under_another_name_or_key_is_refused(storage: LocalStorage) -> None:
    _, data = one_object(storage)
    other = make_keys(like=KEYS)

    with pytest.raises(CorruptBackup, match="does not begin as one of that name"):
        list(read_index(Bytes(data), f"{KEYS.run}-1", KEYS))
    with pytest.raises(CorruptBackup, match="does not begin as one of that name"):
        list(read_index(Bytes(data), f"{other.run}-0", other))
    with pytest.raises(ValueError, match="is not of run"):
        list(read_index(Bytes(data), f"{KEYS.run}-0", other))


def test_an_index_of_a_later_version_asks_for_an_update(storage: LocalStorage) -> None:
    name, data = one_object(storage)

    with pytest.raises(CorruptBackup, match="newer Holdfast") as caught:
        list(read_index(Bytes(b"HFINDEX2" + data[8:]), name, KEYS))
    assert "Update" in caught.value.hint


def test_a_pack_of_another_run_is_not_indexed(storage: LocalStorage) -> None:
    writer = writer_of(storage, make_keys())

    with pytest.raises(ValueError, match="is not of run"):
        writer.add(TABLE)


def test_the_name_of_an_index_is_used_once(storage: LocalStorage) -> None:
    one_object(storage)
    writer = writer_of(storage, KEYS)
    writer.add(TABLE)

    with pytest.raises(StorageError, match="already exists"):
        writer.flush()
    assert writer.names == []
    writer.flush()
    assert writer.names == [f"{KEYS.run}-1"]
    assert len(read_all(storage, KEYS, writer.names)) == 1


def test_a_large_index_is_several_objects(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_index_object, "_WRITE", 4 * len(RECORD))
    writer = writer_of(storage, KEYS)
    for _ in range(10):
        writer.add(TABLE)

    assert len(writer.names) == 2
    writer.flush()
    assert len(writer.names) == 3
    assert len(read_all(storage, KEYS, writer.names)) == 10


HEAD = (
    json.dumps({"repository": KEYS.repository, "key_file": "cd" * 32, "audience": "ef" * 32}).encode() + b"\n"
)


def forged(plain: bytes, head: bytes = HEAD) -> list[PackTable]:
    """What an index object says that somebody makes who has the keys and does not mean well."""
    data = seal_index(KEYS, 0, head + plain, sign)
    return list(read_index(Bytes(data), f"{KEYS.run}-0", KEYS))


RECORD = TABLE.encode(pack=TABLE.name, size=TABLE.size, hash=TABLE.hash)


def changed(**fields: object) -> bytes:
    line, _, columns = RECORD.partition(b"\n")
    return json.dumps(json.loads(line) | fields).encode() + b"\n" + columns


def test_an_honest_index_can_be_forged() -> None:
    """So that the refusals below are for what they say."""
    assert [shown(table) for table in forged(RECORD + changed())] == [shown(TABLE)] * 2


@pytest.mark.parametrize(
    "plain",
    [
        b"\n",
        b"{}\n",
        b"x" * 10_000,
        b"[" * 100_000 + b"\n",
        RECORD[:-1],
        RECORD + b"more",
        TABLE.encode(),
        changed(pack=make_keys().run + "-7"),
        changed(pack="../../etc/passwd"),
        changed(pack=7),
        changed(pack=None),
        changed(size=-1),
        changed(size=1 << 40),
        changed(size=HEADER_LENGTH),
        changed(size=True),
        changed(hash=None),
        changed(hash="f" * 63),
        changed(hash="F" * 64),
        changed(blocks=3),
        changed(chunks=0),
        changed(bytes=1 << 40),
        changed(bytes=0),
        bytes(300 << 20),
        changed(bytes=32 << 20) + bytes(32 << 20),
        (RECORD.partition(b"\n")[0] + b"\n") * 3,
    ],
    ids=lambda plain: str(len(plain)),
)
def test_a_hostile_index_is_refused(plain: bytes) -> None:
    with pytest.raises(CorruptBackup):
        forged(plain)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"7\n",
        b"[" * 100_000 + b"\n",
        HEAD[:-1] + b" " * 10_000 + b"\n",
        HEAD.replace(KEYS.repository.encode(), b"../etc"),
        HEAD.replace(KEYS.repository.encode(), b"f" * 32),
        HEAD.replace(b"cd", b"CD"),
        HEAD.replace(b'"' + b"cd" * 32 + b'"', b"null"),
        HEAD.replace(b"audience", b"whoever"),
    ],
    ids=lambda head: str(len(head)),
)
def test_an_index_that_does_not_say_of_what_it_is_one_is_refused(head: bytes) -> None:
    with pytest.raises(CorruptBackup):
        forged(RECORD, head)


def test_an_index_of_another_id_key_says_nothing(storage: LocalStorage) -> None:
    name, data = one_object(storage)
    other = replace(KEYS, id_key=bytes(32))

    assert open_index(Bytes(data), name, other.id_key) is None
    with pytest.raises(CorruptBackup, match="not this run's"):
        list(read_index(Bytes(data), name, other))


def test_an_index_names_who_signed_it(storage: LocalStorage) -> None:
    name, data = one_object(storage)
    other = SigningKey.generate()
    stolen = data[:-96] + base64.b64decode(other.public) + data[-64:]

    found = open_index(Bytes(data), name, KEYS.id_key)
    assert found is not None
    assert found.writer == claimed_writer(Bytes(data)) == SIGNING_KEY.public
    assert claimed_writer(Bytes(stolen)) == other.public
    assert claimed_writer(Bytes(data[:95])) == ""
    with pytest.raises(CorruptBackup, match="signature"):
        open_index(Bytes(stolen), name, KEYS.id_key)


def test_an_index_does_not_inflate_without_end() -> None:
    record = changed(bytes=32 << 20).partition(b"\n")[0] + b"\n" + RECORD.partition(b"\n")[2]
    record += bytes((32 << 20) - len(RECORD.partition(b"\n")[2]))

    assert len(forged(record * 7)) == 7
    with pytest.raises(CorruptBackup):
        forged(record * 9)


@given(
    pieces=st.lists(
        st.sampled_from([RECORD, b"\n", b"{", b'{"pack":"x"}\n', RECORD[:50], RECORD[50:]])
        | st.binary(max_size=60)
        | st.builds(
            lambda field, value: changed(**{field: value}),
            st.sampled_from(["pack", "size", "blocks", "chunks", "bytes"]),
            st.none()
            | st.integers()
            | st.text(max_size=20)
            | st.floats()
            | st.lists(st.integers(), max_size=2),
        ),
        max_size=5,
    )
)
def test_any_index_is_refused_or_true(pieces: list[bytes]) -> None:
    try:
        tables = forged(b"".join(pieces))
    except CorruptBackup:
        return
    for table in tables:
        assert table.name == TABLE.name
        assert table.blocks() == TABLE.blocks()
        assert table.chunks() == TABLE.chunks()


@given(position=st.integers(0, len(RECORD) - 1), value=st.integers(0, 255))
def test_any_changed_byte_of_a_record_is_refused_or_consistent(position: int, value: int) -> None:
    broken = bytearray(RECORD)
    broken[position] = value
    try:
        tables = forged(bytes(broken))
    except CorruptBackup:
        return
    for table in tables:
        rows = table.blocks()
        for chunk in table.chunks():
            assert chunk.offset + chunk.length <= rows[chunk.block].raw
