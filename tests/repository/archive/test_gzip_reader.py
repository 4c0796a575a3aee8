from __future__ import annotations

import gzip
import io
import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup
from holdfast.repository.archive import _gzip_reader
from holdfast.repository.archive._gzip_index import HEADER, BlockIndex
from holdfast.repository.archive._gzip_reader import GzipReader, stream
from holdfast.repository.archive._gzip_writer import GzipWriter


class Stored:
    """Bytes at rest. Counts how often each offset is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.reads: Counter[int] = Counter()

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads[offset] += 1
        return self.data[offset : offset + length]


def written(raw: bytes, cuts: list[int], level: int = 1) -> tuple[Stored, BlockIndex]:
    """A gzip file with a block boundary at every cut."""
    out = io.BytesIO()
    with GzipWriter(out, level) as writer:
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            writer.write(raw[start:end])
            writer.cut()
    return Stored(out.getvalue()), writer.blocks


def text(size: int, seed: int = 0) -> bytes:
    chance = random.Random(seed)
    return b"".join(b"%07d %04x\n" % (i, chance.getrandbits(16)) for i in range(size // 13 + 1))[:size]


@pytest.fixture
def raw() -> bytes:
    return text(1_000_000)


@pytest.fixture
def blocks(raw: bytes) -> tuple[Stored, BlockIndex]:
    """Twenty blocks of 50,000 bytes."""
    return written(raw, list(range(50_000, len(raw), 50_000)))


@settings(max_examples=25, deadline=None)
@given(
    raw=st.binary(max_size=300).map(lambda data: data * 11),
    cuts=st.lists(st.integers(0, 3300)),
    level=st.integers(0, 9),
    ranges=st.lists(st.tuples(st.integers(0, 3400), st.integers(0, 3400)), min_size=1),
    threads=st.integers(1, 3),
)
def test_reading_is_slicing(
    raw: bytes, cuts: list[int], level: int, ranges: list[tuple[int, int]], threads: int
) -> None:
    source, index = written(raw, sorted(min(cut, len(raw)) for cut in cuts), level)
    with GzipReader(source, index, threads=threads) as reader:
        for offset, length in ranges:
            assert reader.read_at(offset, length) == raw[offset : offset + length]
            assert b"".join(reader.iter_at(offset, length)) == raw[offset : offset + length]


def test_small_reads_moving_forward_read_each_block_once(
    raw: bytes, blocks: tuple[Stored, BlockIndex]
) -> None:
    source, index = blocks
    with GzipReader(source, index, threads=2) as reader:
        pieces = [reader.read_at(offset, 777) for offset in range(0, len(raw), 777)]
    assert b"".join(pieces) == raw
    assert sorted(source.reads.values()) == [1] * 20


def test_large_ranges_read_each_block_once_and_none_beyond(
    raw: bytes, blocks: tuple[Stored, BlockIndex]
) -> None:
    source, index = blocks
    with GzipReader(source, index, threads=2) as reader:
        assert b"".join(reader.iter_at(120_000, 300_000)) == raw[120_000:420_000]
    assert source.reads == Counter({index.compressed_offset(number): 1 for number in range(2, 9)})


def test_a_read_elsewhere_reads_one_block_only(raw: bytes, blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    with GzipReader(source, index, threads=2) as reader:
        for offset in (900_001, 500_001, 100_001):
            assert reader.read_at(offset, 10) == raw[offset : offset + 10]
    assert source.reads == Counter({index.compressed_offset(number): 1 for number in (18, 10, 2)})


def test_blocks_read_lately_are_not_read_again(blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    with GzipReader(source, index, threads=2) as reader:
        for _ in range(10):
            reader.read_at(800_000, 10)
            reader.read_at(300_000, 10)
    assert sorted(source.reads.values()) == [1, 1]


def test_few_blocks_are_kept_in_memory(raw: bytes, blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    chance = random.Random(0)
    most = 0
    with GzipReader(source, index, threads=2) as reader:
        for _ in range(100):
            reader.read_at(chance.randrange(len(raw)), 60_000)
            most = max(most, len(reader._cache))
    assert most == 2 * 2 + 2


def test_pieces_of_a_range_stay_valid_while_reading_goes_on(
    raw: bytes, blocks: tuple[Stored, BlockIndex]
) -> None:
    with GzipReader(*blocks, threads=1) as reader:
        pieces = list(reader.iter_at(0, len(raw)))
        assert len(pieces) == 20
        assert b"".join(pieces) == raw


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (60_000, -1)])
def test_a_negative_range_is_refused(blocks: tuple[Stored, BlockIndex], offset: int, length: int) -> None:
    with GzipReader(*blocks) as reader:
        reader.read_at(0, 10)
        with pytest.raises(ValueError, match="negative"):
            reader.read_at(offset, length)
        with pytest.raises(ValueError, match="negative"):
            list(reader.iter_at(offset, length))


def test_closing_ends_the_threads(blocks: tuple[Stored, BlockIndex]) -> None:
    reader = GzipReader(*blocks)
    next(reader.iter_at(0, 1_000_000))
    reader.close()
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gzip-")]
    with pytest.raises(RuntimeError):
        reader.read_at(0, 10)


def test_a_damaged_block_spoils_its_own_bytes_only(raw: bytes, blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    start = index.compressed_offset(7)
    damaged = Stored(source.data[:start] + b"\xff" * 100 + source.data[start + 100 :])
    with GzipReader(damaged, index, threads=2) as reader:
        assert reader.read_at(0, 350_000) == raw[:350_000]
        for _ in range(2):
            with pytest.raises(CorruptBackup):
                reader.read_at(350_000, 1)
        with pytest.raises(CorruptBackup):
            list(reader.iter_at(0, len(raw)))
        assert reader.read_at(400_000, 600_000) == raw[400_000:]


@pytest.mark.parametrize("lie", [(0, 1), (0, -1), (1, 0), (-1, 0), (-5, 0)], ids=str)
def test_an_index_that_lies_about_a_block_is_found_out(
    blocks: tuple[Stored, BlockIndex], lie: tuple[int, int]
) -> None:
    source, index = blocks
    pairs = list(index)
    pairs[3] = (pairs[3][0] + lie[0], pairs[3][1] + lie[1])
    with GzipReader(source, BlockIndex(pairs)) as reader, pytest.raises(CorruptBackup):
        reader.read_at(150_000, 50_000)


def test_a_file_shorter_than_its_index_is_truncated(raw: bytes, blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    short = Stored(source.data[: index.compressed_offset(19) + 10])
    with GzipReader(short, index) as reader:
        assert reader.read_at(900_000, 50_000) == raw[900_000:950_000]
        with pytest.raises(CorruptBackup, match="truncated"):
            reader.read_at(950_000, 1)


def test_a_stream_is_read_from_any_block_to_the_end(raw: bytes, blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    assert b"".join(stream(source)) == raw
    for number in range(len(index)):
        assert b"".join(stream(source, index.compressed_offset(number))) == raw[index.raw_offset(number) :]
    assert b"".join(stream(source, index.compressed_end)) == b""


def members() -> bytes:
    named = io.BytesIO()
    with gzip.GzipFile("a name", "wb", fileobj=named) as file:
        file.write(b"first")
    return (
        named.getvalue()
        + gzip.compress(b"")
        + gzip.compress(b"second")
        + bytes(700)
        + gzip.compress(b"third")
    )


@pytest.mark.parametrize("step", [1, 7, 64 << 10])
def test_gzip_files_of_others_are_read(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(_gzip_reader, "_STEP", step)
    monkeypatch.setattr(_gzip_reader, "_READ_SIZE", step + 3)
    assert b"".join(stream(Stored(members() + bytes(9)))) == b"firstsecondthird"


def test_members_after_the_one_that_reading_began_in_are_read(blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    assert b"".join(stream(Stored(source.data + members()), index.compressed_end)) == b"firstsecondthird"


def test_a_stream_that_inflates_to_much_comes_in_small_pieces() -> None:
    source = Stored(gzip.compress(bytes(40 << 20), 1))
    lengths = [len(piece) for piece in stream(source)]
    assert sum(lengths) == 40 << 20
    assert max(lengths) <= 1 << 20


@pytest.mark.parametrize(
    "make", [gzip.compress, lambda raw: written(raw, [400])[0].data], ids=["gzip", "ours"]
)
def test_every_truncation_and_every_flipped_bit_is_noticed(make: Callable[[bytes], bytes]) -> None:
    raw = text(800)
    data = make(raw)
    for end in range(len(data)):
        with pytest.raises(CorruptBackup):
            list(stream(Stored(data[:end])))
    for bit in range(8 * len(HEADER), 8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert b"".join(stream(Stored(bytes(damaged)))) == raw
        except CorruptBackup:
            continue
        # Only the bits that pad a block to a whole byte mean nothing.
        assert bit // 8 < len(data) - 8


@pytest.mark.parametrize("data", [b"", b"\x1f", b"PK\x03\x04 something else", bytes(100)])
def test_what_is_no_gzip_file_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptBackup):
        list(stream(Stored(data)))


def test_what_follows_the_end_must_be_another_member(blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    for offset in (0, index.compressed_end):
        with pytest.raises(CorruptBackup):
            list(stream(Stored(source.data + b"something else"), offset))


def test_a_stream_from_the_middle_that_lacks_its_trailer_is_truncated(
    blocks: tuple[Stored, BlockIndex],
) -> None:
    source, index = blocks
    for missing in range(1, 11):
        with pytest.raises(CorruptBackup, match="truncated"):
            list(stream(Stored(source.data[:-missing]), index.compressed_offset(5)))


def test_errors_name_the_file(blocks: tuple[Stored, BlockIndex]) -> None:
    source, index = blocks
    truncated, damaged = Stored(source.data[:100]), Stored(source.data[:10] + bytes(source.size - 10))
    for broken in (truncated, damaged):
        with (
            GzipReader(broken, index, name="full_1.tar.gz") as reader,
            pytest.raises(CorruptBackup, match="full_1"),
        ):
            reader.read_at(0, 1)
        with pytest.raises(CorruptBackup, match="full_1"):
            list(stream(broken, name="full_1.tar.gz"))
