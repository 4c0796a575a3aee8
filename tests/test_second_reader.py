"""A second reader of the archive format, written from docs/archive-format.md, and proof that it reads what Holdfast
writes.

It rests on the standard library and the ``age`` program. Holdfast itself is only run, in processes of its own.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest

AGE = shutil.which("age")
KEYGEN = shutil.which("age-keygen")
pytestmark = pytest.mark.skipif(not (AGE and KEYGEN), reason="the age program is not installed")

MIB = 1 << 20
COMPONENTS = ("database", "models", "config", "logs")
PATH = re.compile(r"(files|absolute|database)(/(?!\.\.?(/|\Z))[^/\0]+)+")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


# The reader


class Stretch(NamedTuple):
    """Content that lies in one archive's tar."""

    archive: Archive
    offset: int
    length: int


class Entry(NamedTuple):
    """A line of a manifest, and where the content lies."""

    line: dict[str, Any]
    content: list[Stretch]


Entries = dict[str, Entry]


class Archive:
    """One archive: decrypted into a file, its manifest read and checked."""

    def __init__(self, directory: Path, backup_id: str, key: Path | None, scratch: Path) -> None:
        kind = {"full": "full", "incr": "incremental", "config": "config", "models": "models"}[
            backup_id.partition("_")[0]
        ]
        self.metadata = json.loads((directory / kind / f"{backup_id}.metadata.json").read_bytes())
        assert (self.metadata["status"], self.metadata["type"]) == ("success", kind)
        ending = ".tar.gz.enc" if self.metadata["encrypted"] else ".tar.gz"
        self.path = directory / kind / (backup_id + ending)
        stored = self.path.read_bytes()
        assert len(stored) == self.metadata["size_bytes"]
        assert hashlib.sha256(stored).hexdigest() == self.metadata["checksum"]
        self.gzip = _decrypted(self.path, key, scratch) if self.metadata["encrypted"] else stored
        self._read_manifest(self.metadata["manifest"])

    def _read_manifest(self, place: dict[str, Any]) -> None:
        tail = zlib.decompressobj(-15).decompress(self.gzip[place["compressed_offset"] :])
        assert tail[257:263] == b"ustar\0"
        assert tail[:100].rstrip(b"\0") == b"MANIFEST.jsonl"
        assert int(tail[124:135], 8) == place["size"]
        self.manifest = tail[512 : 512 + place["size"]]
        self.digest = hashlib.sha256(self.manifest).hexdigest()
        assert self.digest == place["digest"]
        lines = [json.loads(line) for line in self.manifest.splitlines()]
        self.header, *self.lines, end = lines
        self.end = end["end"]
        assert self.header["holdfast"] == 1
        renamed = {"id": "backup_id", "time": "timestamp", "bytes": "source_bytes"}
        for field in ("id", "type", "parent", "time", "host", "tool", "components", "tags"):
            assert self.header.get(field) == self.metadata.get(renamed.get(field, field))
        for field in ("entries", "bytes"):
            assert self.end[field] == self.metadata[renamed.get(field, field)]
        blocks = [tuple(block) for line in self.lines for block in line.get("blocks", ())]
        assert all(0 < raw <= 16 * MIB and 0 < packed <= raw + raw // 256 + 64 for packed, raw in blocks)
        self._packed = list(accumulate((packed for packed, _ in blocks), initial=10))
        self._raw = list(accumulate((raw for _, raw in blocks), initial=0))
        assert self._packed[-1] == place["compressed_offset"]

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the tar, each block that holds them inflated apart."""
        found = b""
        while length:
            number = bisect_right(self._raw, offset) - 1
            block = self.gzip[self._packed[number] : self._packed[number + 1]]
            assert block.endswith(b"\0\0\xff\xff")
            raw = zlib.decompressobj(-15).decompress(block)
            assert len(raw) == self._raw[number + 1] - self._raw[number]
            piece = raw[offset - self._raw[number] :][:length]
            found += piece
            offset, length = offset + len(piece), length - len(piece)
        return found

    def sections(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Each source line with the lines after it."""
        section: list[dict[str, Any]] = []
        for line in self.lines:
            if "source" in line:
                section = []
                yield line["source"], section
            elif "blocks" not in line:
                section.append(line)


def _decrypted(path: Path, key: Path | None, scratch: Path) -> bytes:
    sealed = path.read_bytes()
    assert sealed.startswith(b"age-encryption.org/v1\n")
    plain = scratch / path.name
    subprocess.run([str(AGE), "-d", "-i", str(key), "-o", str(plain), str(path)], check=True, timeout=60)
    content = plain.read_bytes()
    # The payload's layout, as the page has it: it is what reading at an offset rests on.
    payload = len(sealed) - _header_length(sealed) - 16
    chunks = -(-payload // 65552)
    assert payload - 16 * chunks == len(content)
    return content


def _header_length(sealed: bytes) -> int:
    """Bytes of the age header, the line feed after its MAC included."""
    return sealed.index(b"\n", sealed.index(b"\n---") + 1) + 1


def open_chain(directory: Path, backup_id: str, key: Path | None, scratch: Path) -> list[Archive]:
    """A backup and all it rests on, itself first."""
    chain = [Archive(directory, backup_id, key, scratch)]
    while (parent := chain[-1].header.get("parent")) is not None:
        assert parent not in {archive.header["id"] for archive in chain}
        chain.append(Archive(directory, parent, key, scratch))
        assert chain[-2].header["parent_manifest"] == chain[-1].digest
    for archive in chain:
        assert signed(archive.metadata)
    return chain


def resolve(chain: list[Archive]) -> dict[tuple[str, str], Entries]:
    """The entries of each source of a backup, all that it rests on taken into account."""
    archive = chain[0]
    sections = list(archive.sections())
    keys = [(source["component"], source["name"]) for source, _ in sections]
    records = {(record["component"], record["name"]): record for record in archive.end["sources"]}
    assert keys == sorted(keys, key=lambda key: (COMPONENTS.index(key[0]), key[1]))
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(records)
    below = resolve(chain[1:]) if not all(source["whole"] for source, _ in sections) else {}
    found = {
        key: _merge(archive, {} if source["whole"] else below[key], lines)
        for key, (source, lines) in zip(keys, sections, strict=True)
    }
    for key, entries in found.items():
        files = [entry.line["size"] for entry in entries.values() if entry.line["kind"] == "file"]
        assert (records[key]["entries"], records[key]["bytes"]) == (len(entries), sum(files))
        assert NAME.fullmatch(key[1])
    sums = [(record["entries"], record["bytes"]) for record in records.values()]
    assert (archive.end["entries"], archive.end["bytes"]) == tuple(map(sum, zip(*sums, strict=True)))
    return found


def _merge(archive: Archive, below: Entries, lines: list[dict[str, Any]]) -> Entries:
    given: Entries = {}
    dropped: set[str] = set()
    last = ""
    cursor = iter(lines)
    for line in cursor:
        path = line["path"]
        assert PATH.fullmatch(path)
        order = path.replace("/", "\0")
        assert order > last
        last = order
        if line["kind"] == "deleted":
            dropped.add(path)
            continue
        parts = [next(cursor) for _ in range(line.get("parts", 0))]
        given[path] = Entry(line, _content(archive, line, parts, below.get(path)))
    merged = {path: entry for path, entry in below.items() if path not in dropped} | given
    return dict(sorted(merged.items(), key=lambda item: item[0].replace("/", "\0")))


def _content(
    archive: Archive, line: dict[str, Any], parts: list[dict[str, Any]], below: Entry | None
) -> list[Stretch]:
    if line["kind"] != "file":
        return []
    if "offset" in line:
        return [Stretch(archive, line["offset"], line["size"])]
    found: list[Stretch] = []
    for part in parts:
        if "copy" in part:
            assert below is not None
            found += _slice(below.content, part["copy"], part["length"])
        else:
            found.append(Stretch(archive, part["data"], sum(length for length, _ in part["chunks"])))
    return found


def _slice(content: list[Stretch], offset: int, length: int) -> Iterator[Stretch]:
    for stretch in content:
        count = max(0, min(stretch.length - offset, length))
        if count:
            yield Stretch(stretch.archive, stretch.offset + offset, count)
            length -= count
        offset = max(0, offset - stretch.length)
    assert not length


def bytes_of(entry: Entry) -> bytes:
    content = b"".join(stretch.archive.read(stretch.offset, stretch.length) for stretch in entry.content)
    assert len(content) == entry.line["size"]
    assert hashlib.sha256(content).hexdigest() == entry.line["sha256"]
    return content


def restore(sources: dict[tuple[str, str], Entries], target: Path) -> None:
    """Writes the entries below `target`, under their entry paths; links last, then directories' attributes."""
    entries = {path: entry for found in sources.values() for path, entry in found.items()}
    for path, entry in entries.items():
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if entry.line["kind"] == "file":
            place.write_bytes(bytes_of(entry))
            _dress(place, entry.line)
        elif entry.line["kind"] == "directory":
            place.mkdir()
    for path, entry in entries.items():
        if entry.line["kind"] == "hardlink":
            os.link(target / entry.line["target"], target / path)
        elif entry.line["kind"] == "symlink":
            os.symlink(entry.line["target"], target / path)
            stamp = entry.line["mtime_ns"]
            os.utime(target / path, ns=(stamp, stamp), follow_symlinks=False)
    for path, entry in reversed(entries.items()):
        if entry.line["kind"] == "directory":
            _dress(target / path, entry.line)


def _dress(place: Path, line: dict[str, Any]) -> None:
    for name, value in line.get("xattrs", {}).items():
        os.setxattr(place, name, base64.b64decode(value))
    place.chmod(int(line["mode"], 8))
    os.utime(place, ns=(line["mtime_ns"], line["mtime_ns"]))


# Ed25519, RFC 8032, section 5.1, with plain integers

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def _add(one: Point, two: Point) -> Point:
    (x1, y1), (x2, y2) = one, two
    product = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P,
    )


def _times(factor: int, point: Point) -> Point:
    found = (0, 1)
    while factor:
        if factor & 1:
            found = _add(found, point)
        point = _add(point, point)
        factor >>= 1
    return found


def _point(encoded: bytes) -> Point:
    number = int.from_bytes(encoded, "little")
    y, sign = number & ((1 << 255) - 1), number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - square) % P == 0
    return (x if x & 1 == sign else P - x, y)


BASE = _point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def signed(metadata: dict[str, Any]) -> bool:
    """Whether the metadata's signature is that of the statement in the page."""
    key, value = (base64.b64decode(metadata["signature"][field]) for field in ("key", "value"))
    statement = f"holdfast backup\n{metadata['backup_id']}\n{metadata['manifest']['digest']}\n".encode()
    digest = int.from_bytes(hashlib.sha512(value[:32] + key + statement).digest(), "little") % L
    left = _times(int.from_bytes(value[32:], "little"), BASE)
    return left == _add(_point(value[:32]), _times(digest, _point(key)))


# What Holdfast is asked to do

_WRITER = """
import sys
from datetime import UTC, datetime, timedelta
from holdfast import BackupManager

hours, verb, *since = sys.argv[1:]
# Later than every change of a file, so that what is unchanged is seen to be.
manager = BackupManager(clock=lambda: datetime.now(UTC) + timedelta(hours=int(hours)))
metadata = manager.create_full_backup() if verb == "full" else manager.create_incremental_backup(*since)
print(metadata.backup_id)
"""


class Service:
    """A service in a directory of its own, and its backups."""

    def __init__(self, directory: Path, *, encrypt: bool) -> None:
        self.root = directory / "service"
        self.backups = self.root / "backups"
        self.key = directory / "key.txt" if encrypt else None
        self.scratch = directory / "scratch"
        self.runs = 0
        for made in (self.root / "models", self.root / "logs", self.scratch):
            made.mkdir(parents=True)
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
            "XDG_STATE_HOME": str(directory / "state"),
            "BACKUP_ENCRYPT": "true" if encrypt else "false",
        }
        if self.key is not None:
            subprocess.run([str(KEYGEN), "-o", str(self.key)], check=True, capture_output=True, timeout=60)
            self.environment["ENCRYPTION_KEY"] = self.key.read_text()
        (self.root / "holdfast.toml").write_text("[backup]\ninclude_logs = true\n")
        (self.root / "service.yaml").write_text("threads: 4\n")
        self.sql("CREATE TABLE sample (id INTEGER PRIMARY KEY, reading REAL, label TEXT)")
        self.insert(20_000)

    def sql(self, statement: str, rows: list[tuple[Any, ...]] | None = None) -> None:
        with closing(sqlite3.connect(self.root / "service.db")) as database, database:
            if rows is None:
                database.execute(statement)
            else:
                database.executemany(statement, rows)

    def insert(self, count: int) -> None:
        draw = random.Random(self.runs)
        rows = [(draw.random(), f"state-{draw.randrange(7)}") for _ in range(count)]
        self.sql("INSERT INTO sample (reading, label) VALUES (?, ?)", rows)

    def run(self, verb: str, *since: str) -> str:
        self.runs += 1
        done = self._python(_WRITER, str(self.runs), verb, *since)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def holdfast(self, *arguments: str) -> None:
        done = self._python("from holdfast.cli import main; main()", *arguments)
        assert done.returncode == 0, done.stderr

    def _python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def chain(self, backup_id: str) -> list[Archive]:
        return open_chain(self.backups, backup_id, self.key, self.scratch)

    def snapshot(self, name: str) -> Path:
        """A copy of the service as it is now, to compare with."""
        copy = self.scratch / name
        subprocess.run(["cp", "-a", str(self.root), str(copy)], check=True, timeout=60)
        return copy

    def assert_restores(self, backup_id: str, was: Path) -> list[Archive]:
        chain = self.chain(backup_id)
        target = self.scratch / f"restored-{backup_id}"
        restore(resolve(chain), target)
        assert _facts(target / "files") == _facts(was)
        assert _rows(target / "database" / "main.db") == _rows(was / "service.db")
        return chain


def _rows(database: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT * FROM sample ORDER BY id").fetchall()


def _facts(directory: Path) -> dict[bytes, tuple[Any, ...]]:
    """What a restore must bring back of the files, by path; which names share a file, too."""
    top = os.fsencode(directory)
    paths = [os.path.join(top, b"service.yaml")]
    for root in (b"models", b"logs"):
        for above, directories, files in os.walk(os.path.join(top, root)):
            paths += [above, *(os.path.join(above, name) for name in (*directories, *files))]
    first: dict[int, bytes] = {}
    return {os.path.relpath(path, top): _fact(path, first) for path in sorted(set(paths))}


def _fact(path: bytes, first: dict[int, bytes]) -> tuple[Any, ...]:
    status = os.lstat(path)
    content = shared = b""
    xattrs = {}
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif hasattr(os, "listxattr"):
        xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path) if key.startswith("user.")}
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).digest()
        shared = os.path.basename(first.setdefault(status.st_ino, path))
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, shared, xattrs


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Service:
    return Service(tmp_path, encrypt=request.param)


@pytest.fixture
def plain(tmp_path: Path) -> Service:
    return Service(tmp_path, encrypt=False)


def _fill(models: Path, draw: random.Random) -> None:
    """Everything that a manifest can say of files."""
    (models / "weights.bin").write_bytes(draw.randbytes(3 * MIB))
    (models / "small.json").write_text('{"accuracy": 0.97}')
    (models / "empty").touch()
    (models / "nothing-in-it").mkdir(mode=0o700)
    (models / "current").symlink_to("weights.bin")
    (models / "astray").symlink_to("/no/such/place/ünï")
    os.link(models / "small.json", models / "twin.json")
    deep = models / "deep" / "-".join(["a-directory-of-a-long-name"] * 7)
    deep.mkdir(parents=True)
    (deep / ("n" * 120)).write_bytes(b"far down")
    (deep / "größe.txt").write_bytes(b"not ASCII")
    (deep / "line\nfeed").write_bytes(b"odd")
    with open(os.path.join(os.fsencode(deep), b"not-utf-8-\xff\xfe"), "wb") as file:
        file.write(b"bytes")
    with (models / "sparse.bin").open("wb") as sparse:
        sparse.seek(2 * MIB)
        sparse.write(b"end")
    (models / "locked").write_bytes(b"read only")
    (models / "locked").chmod(0o440)
    os.utime(models / "empty", ns=(-5_000_000_001, -5_000_000_001))
    if hasattr(os, "setxattr"):
        try:
            os.setxattr(models / "small.json", "user.origin", b"run 7\0=\n")
        except OSError:
            return  # this file system has none


def test_a_full_backup_is_read_by_what_the_page_says(service: Service) -> None:
    _fill(service.root / "models", random.Random(1))
    (archive,) = service.assert_restores(service.run("full"), service.root)
    kinds = {line["kind"] for line in archive.lines if "kind" in line}
    assert kinds == {"file", "directory", "symlink", "hardlink"}
    assert any(line.get("sparse") for line in archive.lines)


def test_a_chain_is_read_by_what_the_page_says(service: Service) -> None:
    models = service.root / "models"
    draw = random.Random(2)
    _fill(models, draw)
    (models / "large.bin").write_bytes(draw.randbytes(9 * MIB))
    (models / "old").mkdir()
    (models / "old" / "a").write_bytes(b"a")
    (models / "becomes-a-file").mkdir()
    (models / "becomes-a-file" / "inside").write_bytes(b"inside")
    (models / "becomes-a-directory").write_bytes(b"file")
    (service.root / "logs" / "service.log").write_text("line\n" * 100_000)
    known = {service.run("full"): service.snapshot("0")}

    weights = bytearray((models / "weights.bin").read_bytes())
    weights[MIB : MIB + 10] = b"0123456789"
    (models / "weights.bin").write_bytes(weights)
    (models / "large.bin").write_bytes(draw.randbytes(9 * MIB))
    shutil.rmtree(models / "old")
    shutil.rmtree(models / "becomes-a-file")
    (models / "becomes-a-file").write_bytes(b"file")
    (models / "becomes-a-directory").unlink()
    (models / "becomes-a-directory").mkdir()
    (models / "becomes-a-directory" / "inside").write_bytes(b"inside")
    (models / "small.json").unlink()
    with (service.root / "logs" / "service.log").open("a") as log:
        log.write("one more\n")
    service.runs += 1
    service.insert(10)
    known[first := service.run("incremental")] = service.snapshot("1")

    weights[0:0] = b"everything moves along"
    (models / "weights.bin").write_bytes(weights[: 2 * MIB])
    (models / "large.bin").write_bytes(b"small now")
    (models / "empty").write_bytes(draw.randbytes(MIB))
    os.utime(models / "sparse.bin", ns=(1, 1))
    service.insert(10)
    known[second := service.run("incremental", first)] = service.snapshot("2")
    known[service.run("incremental", second)] = service.root

    for backup_id, was in known.items():
        chain = service.assert_restores(backup_id, was)
    assert [archive.header["type"] for archive in chain] == ["incremental"] * 3 + ["full"]
    lines = [line for archive in chain for line in archive.lines]
    assert {"copy", "data", "deleted"} <= {key for line in lines for key in (*line, line.get("kind"))}
    assert not any("path" in line for line in chain[0].lines)  # nothing had changed
    assert len(chain[1].gzip) < len(chain[3].gzip) / 4


def test_random_changes_come_back_at_every_link_of_a_chain(plain: Service) -> None:
    draw = random.Random(3)
    models = plain.root / "models"
    known = {}
    last: list[str] = []
    for step in range(5):
        for _ in range(12):
            _change(models, draw)
        backup_id = plain.run("incremental", *last) if last else plain.run("full")
        known[backup_id] = plain.snapshot(str(step))
        last = [backup_id]
    for backup_id, was in known.items():
        plain.assert_restores(backup_id, was)


def _change(models: Path, draw: random.Random) -> None:
    there = sorted(models.rglob("*"))
    directories = [models, *(path for path in there if path.is_dir() and not path.is_symlink())]
    place = draw.choice(directories) / f"{draw.choice(['a', 'b', 'a-b', 'c.d', 'Z'])}{draw.randrange(4)}"
    if os.path.lexists(place):
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        if draw.random() < 0.5:
            return
    files = [path for path in there if path.is_file() and not path.is_symlink() and path.exists()]
    choice = draw.randrange(6)
    if choice == 0:
        place.mkdir()
    elif choice == 1:
        place.symlink_to("anywhere")
    elif choice == 2 and files:
        os.link(draw.choice(files), place)
    elif choice == 3 and files:
        with draw.choice(files).open("r+b") as file:
            file.seek(draw.randrange(400_000))
            file.write(draw.randbytes(300_000))
    else:
        place.write_bytes(draw.randbytes(draw.choice([0, 10, 400_000])))


def test_narrower_paths_in_an_incremental_lose_nothing(plain: Service) -> None:
    models = plain.root / "models"
    for name in ("a", "b"):
        (models / name).mkdir()
        (models / name / "weights").write_bytes(name.encode())
    plain.run("full")
    with (plain.root / "holdfast.toml").open("a") as settings:
        settings.write('[models]\npaths = ["models/a", "models/b"]\n')
    entries = resolve(plain.chain(plain.run("incremental")))["models", "models"]
    assert list(entries) == [f"files/models/{name}" for name in ("a", "a/weights", "b", "b/weights")]
    assert bytes_of(entries["files/models/b/weights"]) == b"b"


def test_tar_finds_what_the_manifest_lists(service: Service) -> None:
    _fill(service.root / "models", random.Random(4))
    (archive,) = service.chain(service.run("full"))
    unpacked = service.scratch / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "xz", "-C", str(unpacked)], input=archive.gzip, check=True, timeout=60)
    (manifest,) = [path for path in unpacked.iterdir() if path.name == "MANIFEST.jsonl"]
    assert manifest.read_bytes() == archive.manifest
    for (component, _), entries in resolve([archive]).items():
        for path, entry in entries.items():
            place = unpacked / path
            assert os.path.lexists(place), component
            if entry.line["kind"] == "file":
                assert place.read_bytes() == bytes_of(entry)
                assert stat.S_IMODE(place.stat().st_mode) == int(entry.line["mode"], 8)


def test_a_stream_of_members_ends_in_the_manifest(service: Service) -> None:
    _fill(service.root / "models", random.Random(5))
    (archive,) = service.chain(service.run("full"))
    gzip = service.scratch / "archive.tar.gz"
    gzip.write_bytes(archive.gzip)
    with tarfile.open(gzip, "r|gz") as tar:
        members = [(member.name, member.offset_data) for member in tar]
    assert members[-1][0] == "MANIFEST.jsonl"
    offsets = {line["path"]: line["offset"] for line in archive.lines if "offset" in line}
    assert offsets.items() <= dict(members).items()


def test_the_frame_of_the_gzip_file_is_as_described(service: Service) -> None:
    (archive,) = service.chain(service.run("full"))
    raw = zlib.decompress(archive.gzip, wbits=31)
    assert archive.gzip[:10] == bytes.fromhex("1f8b08000000000000ff")
    assert archive.gzip[-10:-8] == b"\x03\x00"
    assert archive.gzip[-8:] == struct.pack("<LL", zlib.crc32(raw), len(raw))
    assert raw.endswith(bytes(1024))


def test_a_signature_over_another_statement_is_noticed(plain: Service) -> None:
    (archive,) = plain.chain(plain.run("full"))
    assert signed(archive.metadata)
    other = {**archive.metadata, "backup_id": "full_20240101_020000"}
    assert not signed(other)


def test_a_rotated_key_leaves_all_but_the_age_header_as_it_was(tmp_path: Path) -> None:
    service = Service(tmp_path, encrypt=True)
    (before,) = service.chain(service.run("full"))
    stored = before.path.read_bytes()
    service.key = tmp_path / "new.txt"
    subprocess.run([str(KEYGEN), "-o", str(service.key)], check=True, capture_output=True, timeout=60)
    service.holdfast("key", "rotate", "--to", str(service.key))
    shutil.rmtree(service.scratch)
    service.scratch.mkdir()
    (after,) = service.chain(before.header["id"])
    rotated = after.path.read_bytes()
    assert (after.gzip, after.metadata["signature"]) == (before.gzip, before.metadata["signature"])
    assert stored != rotated
    assert stored[_header_length(stored) :] == rotated[_header_length(rotated) :]


def test_the_metadata_begins_with_the_eight_fields_and_leaves_out_what_is_empty(plain: Service) -> None:
    (archive,) = plain.chain(plain.run("full"))
    first = ["backup_id", "timestamp", "version", "type", "size_bytes", "checksum", "components", "status"]
    assert list(archive.metadata)[:8] == first
    assert "parent" not in archive.metadata
    assert "tags" not in archive.metadata
    assert "error_message" not in archive.metadata


def test_this_reader_shares_no_code_with_holdfast() -> None:
    tree = ast.parse(Path(__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {"pytest"}
