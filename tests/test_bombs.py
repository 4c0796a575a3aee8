"""Small archives that would fill memory or a disk, if they were believed."""

from __future__ import annotations

import gc
import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from forge import Forge, honest, told
from holdfast.errors import CorruptBackup, NoSpace
from installed import Service, refused

FORGED = "full_20240101_050000"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path)


def save(service: Service, forge: Forge, **how: Any) -> Path:
    return forge.save(service.backups, service.installation().sign, **how)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What happens in the test allocates little, however much is declared. Begin with what makes the bomb."""
    gc.collect()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24e6, f"{peak / 1e6:.0f} MB were allocated"


def test_a_backup_of_terabytes_is_refused_before_a_byte_is_written(service: Service) -> None:
    forge = honest(FORGED).line(told("files/models/z", size=10**13, offset=None, parts=1))
    forge.line({"data": 0, "chunks": [[10**13, "0" * 64]]})
    save(service, forge)
    with refused(service, NoSpace, CorruptBackup):
        service.restore(FORGED)
    elsewhere = service.root.parent / "elsewhere"
    with refused(service, NoSpace, CorruptBackup):
        service.restore(FORGED, target=elsewhere)


def test_one_megabyte_that_is_listed_a_million_times_is_no_terabyte(service: Service) -> None:
    """Parts may name the same stretch again and again: what they add up to is declared, and there is no room."""
    forge = honest(FORGED)
    forge.write(bytes(1 << 20))
    forge.line(told("files/models/z", size=10**6 << 20, offset=None, parts=1000))
    part = {"data": forge.raw - (1 << 20), "chunks": [[1 << 20, "0" * 64]]}
    for _ in range(1000):
        forge.line(part)
    save(service, forge)
    with refused(service, NoSpace, CorruptBackup):
        service.restore(FORGED)


def bomb(service: Service, *, lines: bytes = b"", blocks: list[tuple[int, int]] | None = None) -> None:
    forge = honest(FORGED)
    if lines:
        forge.lines.append(lines)
    save(service, forge, manifest=forge.manifest(blocks=blocks))
    tracemalloc.start()


@pytest.mark.usefixtures("little_memory")
def test_a_line_of_a_hundred_megabytes_is_refused_in_little_memory(service: Service) -> None:
    bomb(service, lines=b'{"path":"files/models/' + b"z" * 100_000_000 + b'"}\n')
    with pytest.raises(CorruptBackup, match="long line"):
        service.restore(FORGED)


@pytest.mark.usefixtures("little_memory")
def test_a_multitude_of_sources_is_refused_in_little_memory(service: Service) -> None:
    line = '{"source":{"component":"models","name":"n%d","whole":true}}\n'
    bomb(service, lines="".join(line % number for number in range(120_000)).encode())
    with pytest.raises(CorruptBackup):
        service.restore(FORGED)


@pytest.mark.usefixtures("little_memory")
def test_more_blocks_than_the_archive_has_room_for_are_refused_in_little_memory(service: Service) -> None:
    bomb(service, blocks=[(5, 1)] * 1_000_000)
    with pytest.raises(CorruptBackup):
        service.restore(FORGED)


@pytest.mark.usefixtures("little_memory")
def test_a_multitude_of_empty_parts_is_refused_in_little_memory(service: Service) -> None:
    count = 60_000
    line = json.dumps(told("files/models/z", size=0, parts=count, sha256=hashlib.sha256(b"").hexdigest()))
    parts = b"".join(b'{"data":%d,"chunks":[]}\n' % (number % 2 * 512) for number in range(count))
    bomb(service, lines=line.encode() + b"\n" + parts)
    with pytest.raises(CorruptBackup):
        service.verify(FORGED)


@pytest.mark.usefixtures("little_memory")
def test_a_manifest_that_inflates_without_end_is_read_no_further_than_declared(service: Service) -> None:
    forge = honest(FORGED)
    save(service, forge, after=bytes(200_000_000))
    tracemalloc.start()
    with suppress(CorruptBackup):
        service.restore(FORGED)
