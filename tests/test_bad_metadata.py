"""Metadata files that are garbage: they hide no other backup, and can be made again from the archives."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.errors import BackupNotFound, CorruptBackup, UntrustedSignature
from holdfast.events import ignore
from holdfast.jobs.repair import repair
from installed import Service, refused


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """One service, with backups, for all that is refused, since that changes nothing."""
    service = Service.make(tmp_path_factory.mktemp("standing"))
    full = service.back_up()
    service.back_up(components=["models"])
    service.back_up()
    service.back_up(since=full.backup_id)
    return service


GARBAGE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(5000)),
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "NaN": lambda path: path.write_text("NaN"),
    "an empty object": lambda path: path.write_text("{}"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "four megabytes": lambda path: path.write_bytes(b" " * (4 << 20)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    **{
        f"{field} {value!r:.20}": lambda path, field=field, value=value: path.write_text(
            json.dumps(json.loads(path.read_text()) | {field: value})
        )
        for field, value in [
            ("backup_id", 5), ("backup_id", "full_20240101_999999"), ("backup_id", "../x"),
            ("timestamp", None), ("timestamp", "yesterday"), ("timestamp", "2024-02-30T00:00:00"), ("timestamp", 5),
            ("timestamp", "2024-1-1T2:0:0"), ("type", "weekly"), ("type", ["full"]), ("type", {}),
            ("size_bytes", -1), ("size_bytes", 1e999), ("size_bytes", "5"), ("size_bytes", 2**64),
            ("checksum", 5), ("components", "models"), ("components", []), ("components", ["weights"]),
            ("components", [[]]), ("components", 5), ("status", 5), ("status", "perfect"), ("status", None),
            ("parent", "x"), ("parent", 5), ("entries", 1.5), ("source_bytes", []), ("duration_seconds", "long"),
            ("duration_seconds", float("nan")), ("duration_seconds", -1e300), ("warnings", "none"), ("host", 5),
            ("host", ["a"]), ("tool", {}), ("version", []), ("tags", 5), ("pinned", "yes"),
            ("encrypted", 1), ("encrypted", None), ("error_message", ["x"]),
            ("manifest", 5), ("manifest", {}), ("manifest", {"digest": "x", "size": 1e999, "compressed_offset": 0}),
            ("manifest", {"digest": 5, "size": -5, "compressed_offset": 0}), ("signature", 5), ("signature", {}),
        ]
    },
}  # fmt: skip


@pytest.fixture
def record(standing: Service) -> Iterator[Path]:
    """The metadata of the last full backup; a models backup is older and an incremental newer."""
    record = standing.backups / "full" / "full_20240101_040000.metadata.json"
    content = record.read_bytes()
    yield record
    shutil.rmtree(record) if record.is_dir() else record.unlink()
    record.write_bytes(content)


@pytest.mark.parametrize("spoil", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_for_metadata_hides_no_other_backup(
    standing: Service, record: Path, spoil: Callable[[Path], object]
) -> None:
    before = standing.installation().repository.backups()
    spoil(record)
    found = standing.installation().repository.backups()
    assert [metadata for metadata in found if metadata.is_good] == [before[0], *before[2:]]
    assert found[1].backup_id == before[1].backup_id == "full_20240101_040000"
    assert found[1].status == "damaged"
    with refused(standing, CorruptBackup, BackupNotFound, match=before[1].backup_id):
        standing.restore(before[1].backup_id)
    assert standing.verify("latest", deep=False) == before[0]


@pytest.mark.parametrize(
    "kind", ["nothing", "noise", "a link to nowhere", "status 'perfect'", "size_bytes inf"]
)
def test_garbage_for_metadata_is_repaired_from_the_archive(service: Service, kind: str) -> None:
    older, spoiled = service.back_up(), service.back_up()
    GARBAGE[kind](service.backups / "full" / f"{spoiled.backup_id}.metadata.json")
    assert service.back_up(incremental=True).parent == older.backup_id
    repair(service.installation(), ignore)
    again = service.installation().repository.find(spoiled.backup_id)
    assert (again.checksum, again.size_bytes) == (spoiled.checksum, spoiled.size_bytes)
    with refused(service, UntrustedSignature):
        service.restore(spoiled.backup_id)
    service.restore(spoiled.backup_id, trust=True)


@pytest.mark.parametrize(
    "name",
    ["full_20241399_999999.metadata.json", "full_00000000_000000.metadata.json", "incr_20240101_000000.metadata.json",
     "full_2024.metadata.json", ".metadata.json", "x" * 200 + ".metadata.json", "full_20240101_000000.tar.gz"],
    ids=lambda name: name[:20],
)  # fmt: skip
def test_files_with_names_that_nobody_gave_hide_no_backup(service: Service, name: str) -> None:
    good = service.back_up()
    (service.backups / "full" / name).write_text("{}")
    found = service.installation().repository.backups()
    assert [metadata for metadata in found if metadata.is_good] == [good]
    assert service.back_up(incremental=True).parent == good.backup_id
