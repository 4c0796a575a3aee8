from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import NoSpace, RepositoryError, UsageError
from holdfast.repository.archive import _gzip_block
from holdfast.repository.archive._gzip_index import HEADER
from holdfast.repository.archive._gzip_writer import BLOCK_SIZE, GzipWriter, available_cores


class Collected:
    """A sink that keeps what it gets, and counts the calls."""

    def __init__(self) -> None:
        self.data = b""
        self.calls = 0

    def write(self, data: bytes) -> None:
        self.calls += 1
        self.data += data


class Failing(Collected):
    """A disk that is full from the nth write on."""

    def __init__(self, good_writes: int) -> None:
        super().__init__()
        self._good_writes = good_writes
        self.error = NoSpace("the disk is full")

    def write(self, data: bytes) -> None:
        if self.calls >= self._good_writes:
            raise self.error
        super().write(data)


def compressed(data: bytes, level: int, *, step: int = 1 << 16, threads: int | None = None) -> bytes:
    sink = Collected()
    with GzipWriter(sink, level, threads=threads) as writer:
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
    return sink.data


def mixed(size: int, seed: int = 0) -> bytes:
    """Noise, text and zeros, in pieces of up to 300 KB."""
    chance = random.Random(seed)
    pieces: list[bytes] = []
    while size > 0:
        length = min(size, chance.randint(1, 300_000))
        size -= length
        text = b"".join(b"%d,%x,ok\n" % (i, chance.getrandbits(20)) for i in range(length // 12))
        pieces.append(chance.choice([chance.randbytes(length), bytes(length), text[:length].ljust(length)]))
    return b"".join(pieces)


def write_all(writer: GzipWriter, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)


def gzip_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gzip-")]


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(0, 3 << 20),
    seed=st.integers(0, 1 << 32),
    level=st.integers(0, 9),
    steps=st.lists(st.sampled_from([1, 100, 512, 4096, 70_000, 1 << 20, 3 << 20]), min_size=1),
    cuts=st.sets(st.integers(0, 30)),
)
def test_any_bytes_in_any_pieces_come_back(
    size: int, seed: int, level: int, steps: list[int], cuts: set[int]
) -> None:
    raw = mixed(size, seed)
    sink = Collected()
    position = 0
    with GzipWriter(sink, level, threads=2) as writer:
        for number, step in enumerate(steps):
            writer.write(raw[position : position + step])
            position = min(position + step, size)
            assert writer.raw_size == position
            if number in cuts:
                packed, unpacked = writer.cut()
                assert (packed, unpacked) == (len(sink.data), position)
        writer.write(raw[position:])
    assert gzip.decompress(sink.data) == raw
    assert writer.raw_size == writer.blocks.raw_size == size
    assert sum(packed for packed, _ in writer.blocks) == len(sink.data) - len(HEADER) - 10
    assert max((unpacked for _, unpacked in writer.blocks), default=0) <= BLOCK_SIZE


def test_equal_input_gives_an_equal_file_whatever_the_pieces_and_the_threads() -> None:
    raw = mixed(3_500_000)
    first = compressed(raw, 6)
    assert (
        first == compressed(raw, 6, step=100_001, threads=1) == compressed(raw, 6, step=len(raw), threads=5)
    )


def test_the_caller_may_reuse_its_buffer() -> None:
    sink = Collected()
    buffer = bytearray(100_000)
    with GzipWriter(sink, 1) as writer:
        for value in range(30):
            for index in range(0, len(buffer), 10_000):
                buffer[index] = value
            writer.write(memoryview(buffer) if value % 2 else buffer)
    assert gzip.decompress(sink.data)[::10_000] == bytes(value for value in range(30) for _ in range(10))


def test_a_view_of_numbers_is_taken_byte_by_byte() -> None:
    numbers = memoryview(bytes(range(256)) * 8192).cast("Q")
    sink = Collected()
    with GzipWriter(sink, 1) as writer:
        writer.write(numbers)
        writer.write(numbers[:10])
    assert gzip.decompress(sink.data) == numbers.tobytes() + numbers[:10].tobytes()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tree")
    for number in range(6):
        (directory / f"file{number}").write_bytes(mixed(700_000, seed=number))
    return directory


@pytest.fixture(params=[0, 1, 6, 9])
def archive(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Path:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as writer:
        for path in sorted(tree.iterdir()):
            writer.add(path, path.name)
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(compressed(tar.getvalue(), request.param))
    return archive


def assert_same(tree: Path, read: Callable[[str], bytes]) -> None:
    for path in tree.iterdir():
        assert read(path.name) == path.read_bytes()


def test_gzip_and_tar_read_it(archive: Path, tree: Path, tmp_path: Path) -> None:
    subprocess.run(["gzip", "-t", archive], check=True)
    subprocess.run(["tar", "xzf", archive, "-C", tmp_path], check=True)
    assert_same(tree, lambda name: (tmp_path / name).read_bytes())


@pytest.mark.skipif(shutil.which("pigz") is None, reason="pigz is not installed")
def test_pigz_reads_it(archive: Path) -> None:
    output = subprocess.run(["pigz", "-dc", archive], check=True, capture_output=True).stdout
    assert output == gzip.decompress(archive.read_bytes())


@pytest.mark.parametrize("mode", ["r:gz", "r|gz", "r|*"])
def test_tarfile_reads_it(archive: Path, tree: Path, mode: str) -> None:
    with archive.open("rb") as file, tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        found = {member.name: tar.extractfile(member).read() for member in tar}
    assert len(found) == 6
    assert_same(tree, found.__getitem__)


def test_nothing_written_is_an_empty_gzip_file() -> None:
    data = compressed(b"", 9)
    assert gzip.decompress(data) == b""
    assert len(data) == 20


def test_a_cut_without_data_adds_no_block() -> None:
    sink = Collected()
    with GzipWriter(sink, 6) as writer:
        assert writer.cut() == writer.cut() == (len(HEADER), 0)
        writer.write(b"x")
        assert writer.cut() == writer.cut() == (len(sink.data), 1)
        assert len(writer.blocks) == 1


@pytest.mark.parametrize("good_writes", [1, 2, 5])
@pytest.mark.parametrize("step", [4096, BLOCK_SIZE])
def test_an_error_of_the_sink_reaches_the_caller_and_nothing_is_written_after_it(
    good_writes: int, step: int
) -> None:
    sink = Failing(good_writes)
    piece = random.Random(1).randbytes(step)
    writer = GzipWriter(sink, 1)
    with pytest.raises(NoSpace) as raised:
        write_all(writer, itertools.repeat(piece, 100 * BLOCK_SIZE // step))
    assert raised.value is sink.error
    for call in (lambda: writer.write(b"x"), writer.cut, writer.close):
        with pytest.raises(NoSpace) as again:
            call()
        assert again.value is sink.error
    assert sink.calls == good_writes
    assert len(writer.blocks) == good_writes - 1
    assert gzip_threads() == []


def test_an_error_of_the_sink_is_raised_by_close_when_nothing_else_is_called() -> None:
    sink = Failing(1)
    writer = GzipWriter(sink, 1)
    writer.write(b"data")
    with pytest.raises(NoSpace):
        writer.close()
    assert gzip_threads() == []


def test_a_sink_that_refuses_the_header_leaves_no_threads() -> None:
    with pytest.raises(NoSpace):
        GzipWriter(Failing(0), 1)
    assert gzip_threads() == []


def test_a_block_that_does_not_inflate_to_its_source_fails_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compress = _gzip_block._compress
    bad = random.Random(1).randbytes(BLOCK_SIZE)
    monkeypatch.setattr(
        _gzip_block, "_compress", lambda raw, level: compress(raw[::-1] if raw == bad else raw, level)
    )
    sink = Collected()
    writer = GzipWriter(sink, 6)
    with pytest.raises(RepositoryError, match="did not inflate"), writer:
        write_all(writer, [bytes(BLOCK_SIZE), bad, bytes(BLOCK_SIZE)])
    assert len(writer.blocks) == 1
    assert sink.calls == 2
    assert gzip_threads() == []


def test_an_exception_of_the_caller_ends_the_threads_and_writes_no_trailer() -> None:
    def interrupted() -> Iterator[bytes]:
        yield mixed(5_000_000)
        raise KeyboardInterrupt

    sink = Collected()
    writer = GzipWriter(sink, 9)
    with pytest.raises(KeyboardInterrupt), writer:
        write_all(writer, interrupted())
    assert gzip_threads() == []
    with pytest.raises(EOFError):
        gzip.decompress(sink.data)


@pytest.mark.parametrize("end", [GzipWriter.close, GzipWriter.abort])
def test_nothing_can_be_written_after_the_end(end: Callable[[GzipWriter], None]) -> None:
    sink = Collected()
    writer = GzipWriter(sink, 1)
    end(writer)
    end(writer)
    size = len(sink.data)
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"x")
    with pytest.raises(ValueError, match="closed"):
        writer.cut()
    assert len(sink.data) == size


def test_an_aborted_stream_cannot_be_closed_as_if_it_were_whole() -> None:
    writer = GzipWriter(Collected(), 1)
    writer.abort()
    with pytest.raises(ValueError, match="closed"):
        writer.close()


def test_at_most_twice_the_threads_and_two_blocks_wait_for_a_slow_sink() -> None:
    gate = threading.Semaphore(0)

    class Slow(Collected):
        def write(self, data: bytes) -> None:
            if self.calls and not gate.acquire(timeout=60):
                raise TimeoutError
            super().write(data)

    threads = 1
    limit = 2 * threads + 2
    sink = Slow()
    waiting = []
    piece = bytes(BLOCK_SIZE)
    with GzipWriter(sink, 0, threads=threads) as writer:
        for number in range(20):
            if number >= limit:
                gate.release()
            writer.write(piece)
            waiting.append(number + 1 - len(writer.blocks))
        for _ in range(limit + 1):
            gate.release()
    assert max(waiting) == limit
    assert len(writer.blocks) == 20


def test_small_writes_reach_the_sink_as_blocks() -> None:
    sink = Collected()
    with GzipWriter(sink, 1) as writer:
        for _ in range(5000):
            writer.write(bytes(512))
    assert sink.calls == 1 + 3 + 1


@pytest.mark.parametrize("level", [-1, 10])
def test_an_unknown_level_is_refused(level: int) -> None:
    with pytest.raises(UsageError):
        GzipWriter(Collected(), level)


def test_no_threads_are_refused() -> None:
    with pytest.raises(UsageError):
        GzipWriter(Collected(), 1, threads=0)


def test_the_cores_this_process_may_use_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
