"""Memory does not grow with the size of a file, of a backup, or with its number of files.

Each proof is a process of its own, that says how much memory it ever had resident beyond what it began with. What C
libraries hold (SQLite, the compressors) counts as much as what Python does.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.ground import ignore_progress
from conformance.trees import Content, models, store
from forge import Forge
from holdfast.model import BackupMetadata, Entry, SourceRecord
from holdfast.repository import _manifest as manifest
from holdfast.repository._manifest import Part
from holdfast.repository._rows import Lines, Rows
from holdfast.repository.archive._chunk_table import ChunkTable
from holdfast.repository.archive._parts import PartsWriter
from holdfast.repository.base import RunPlan
from repository.archive.archives import ArchiveGround

MB = 10**6
SOME = 12 * MB
"""What buffers and caches may take."""
BLOCKS = 70 * MB
"""What the gzip blocks of a run may take that are on their way through the threads of two cores."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def resident(field: str) -> int:
    """A line of proc_pid_status(5), in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def digest(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def hoard(place: Path) -> None:
    """What no work may do."""
    kept = [digest(number) for number in range(300_000)]
    assert kept


def look_up_chunks(place: Path) -> None:
    """Those of a file of 20 GB."""
    lines = (
        manifest.part_line(Part(False, 0, 1000, [(1, digest(first + n)) for n in range(1000)]))
        for first in range(0, 300_000, 1000)
    )
    table = ChunkTable(lines)
    assert table.find(bytes.fromhex(digest(250_000))) == 250_000
    assert table.find(bytes.fromhex(digest(300_000))) is None
    table.close()


def gather_parts(place: Path) -> None:
    parts = PartsWriter()
    for number in range(150_000):
        parts.data(number * 2000, 1000, "0" * 64)
        parts.copy(number * 3000, 1000)
    assert parts.finish() == 300_000
    assert sum(1 for _ in parts.drain()) == 300_000
    parts.close()


def entries(count: int) -> Iterator[Entry]:
    for number in range(count):
        path = f"files/models/{number // 1000:04}-{number % 1000:03}"
        yield Entry(path, "file", 5, 0o644, digest=digest(number))


def read_a_manifest(place: Path) -> None:
    with tempfile.TemporaryFile(dir=place) as file:
        for entry in entries(200_000):
            file.write(manifest.entry_line(entry, 512))
        file.seek(0)
        rows = Rows(Lines(file))
        count = 0
        while rows.row is not None:
            count += 1
            rows.advance()
        assert count == 200_000


def back_up_many_files(place: Path) -> None:
    """And make an incremental of half of them, and read it."""
    ground = ArchiveGround(place)

    def write(content: bytes, parent: BackupMetadata | None = None) -> BackupMetadata:
        plan = RunPlan("incremental" if parent else "full", ("models",), parent)
        with ground.repository().begin(plan) as run:
            run.begin_source("models", "main")
            for entry in entries(40_000):
                known = run.known(entry.path)
                if known is not None and int(entry.path[-1]) % 2:
                    run.keep(known)
                else:
                    run.add(entry, Content(5, content, None), known)
            run.end_source(SourceRecord("models", "main", "files", ("files/models",)))
            metadata = run.commit(warnings=0, duration_seconds=0)
        ground.clock.forward()
        return metadata

    incremental = write(b"after", write(b"first"))
    with ground.repository().open(incremental) as stored:
        [source] = stored.sources()
        assert sum(1 for _ in stored.entries(source)) == 40_000


def back_up_a_large_file(place: Path) -> None:
    """And make an incremental that carries most of it, and read it."""
    ground = ArchiveGround(place, encrypt=True)
    size = 300 * MB

    def stream(first: int) -> Iterator[bytes]:
        for number in range(size // MB):
            yield b"%07d" % (first + number) + bytes(MB - 7)

    def write(first: int, parent: BackupMetadata | None = None) -> BackupMetadata:
        plan = RunPlan("incremental" if parent else "full", ("models",), parent)
        with ground.repository().begin(plan) as run:
            run.begin_source("models", "main")
            known = run.known("files/models")
            content = Content(size, None, stream(first))  # type: ignore[arg-type]  # an iterator will do
            run.add(Entry("files/models", "file", size), content, known)
            run.end_source(SourceRecord("models", "main", "files", ("files/models",)))
            metadata = run.commit(warnings=0, duration_seconds=0)
        ground.clock.forward()
        return metadata

    ground.repository().verify(write(10**6, write(0)), deep=True, progress=ignore_progress)


STRETCHES = 200_000


def forge_a_file_in_stretches(place: Path) -> None:
    forge = Forge().source(name="main")
    first = forge.write(bytes(512))
    content = hashlib.sha256(bytes(STRETCHES)).hexdigest()
    line = {"path": "files/models", "kind": "file", "size": STRETCHES, "mode": "0644", "uid": 0, "gid": 0}
    forge.line(line | {"mtime_ns": 0, "ctime_ns": 0, "inode": 1, "sha256": content, "parts": STRETCHES})
    for number in range(STRETCHES):
        forge.line({"data": first + number % 2 * 2, "chunks": [[1, "0" * 64]]})
    forge.save(ArchiveGround(place).directory, None)


def read_a_file_in_stretches(place: Path) -> None:
    """As many as a file of 25 GB has, of which every other chunk is another than in the parent."""
    repository = ArchiveGround(place).repository()
    with repository.open(repository.find("latest")) as stored:
        [source] = stored.sources()
        for entry in stored.entries(source):
            assert sum(len(piece) for piece in stored.read(entry)) == STRETCHES


def write_a_history(place: Path) -> None:
    state = ArchiveGround(place).state
    state.record({"verb": "backup"})
    with (state.repository / "history.jsonl").open("ab") as file:
        for number in range(100_000):
            file.write(b'{"verb":"backup","backup_id":"%064d","message":"%0100d"}\n' % (number, number))


def read_a_history(place: Path) -> None:
    assert sum(1 for _ in ArchiveGround(place).state.history()) == 100_001


def make_many_backups(place: Path) -> None:
    ground = ArchiveGround(place)
    made = store(ground.repository(), models())
    record = ground.files_of(made)[-1]
    text = record.read_text()
    for number in range(2000):
        backup_id = f"full_2025{number % 12 + 1:02}{number // 12 % 28 + 1:02}_{number // 336:02}0000"
        (record.parent / f"{backup_id}.metadata.json").write_text(text.replace(made.backup_id, backup_id))


def list_many_backups(place: Path) -> None:
    assert len(ArchiveGround(place).repository().backups()) == 2001


Work = Callable[[Path], None]
WORKS: dict[Work, tuple[int, Work | None]] = {
    look_up_chunks: (SOME, None),
    gather_parts: (SOME, None),
    read_a_manifest: (SOME, None),
    back_up_many_files: (BLOCKS, None),
    back_up_a_large_file: (BLOCKS, None),
    read_a_file_in_stretches: (2 * SOME, forge_a_file_in_stretches),
    read_a_history: (SOME, write_a_history),
    list_many_backups: (SOME, make_many_backups),
}
"""How much each may take, and what comes before it."""


def growth(work: Work, place: Path) -> int:
    command = [sys.executable, __file__, work.__name__, str(place)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(place)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_the_proof_would_notice(tmp_path: Path) -> None:
    assert growth(hoard, tmp_path) > 2 * SOME


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.__name__)
def test_memory_is_bounded(work: Work, tmp_path: Path) -> None:
    limit, prepare = WORKS[work]
    if prepare is not None:
        prepare(tmp_path)
    assert growth(work, tmp_path) < limit


if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    before = resident("VmRSS")
    globals()[sys.argv[1]](Path(sys.argv[2]))
    print(resident("VmHWM") - before)
