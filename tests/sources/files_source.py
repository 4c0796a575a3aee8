"""What the tests of the files source share: a source over a directory, and what came of it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from holdfast.events import Emit, ignore
from holdfast.model import Entry
from holdfast.sources.base import Content
from holdfast.sources.files import FilesSource
from holdfast.sources.files._content import FileItem
from holdfast.sources.sqlite._snapshot import Snapshot, take_snapshot


def long_after() -> datetime:
    """A clock by which every file of a test is old."""
    return datetime(2100, 1, 1, tzinfo=UTC)


def snapshot(path: Path) -> Snapshot:
    return take_snapshot(path, timeout=5)


def files_source(
    root: Path, paths: Sequence[str | Path] = ("models",), *, component: str = "models", **settings: Any
) -> FilesSource:
    settings = {"clock": long_after, "snapshot": snapshot, **settings}
    return FilesSource(component, "main", root, paths, **settings)  # type: ignore[arg-type]  # a plain string


def scan(source: FilesSource, emit: Emit = ignore) -> list[Entry]:
    """Entries as listed."""
    return [item.entry for item in source.scan(emit)]


def paths_of(source: FilesSource) -> list[str]:
    return [entry.path for entry in scan(source)]


def item_at(source: FilesSource, path: str) -> FileItem:
    """One item, opened or not only after the scan has gone on and ended."""
    return next(item for item in list(source.scan(ignore)) if item.entry.path == path)


def content_of(content: Content | None) -> bytes:
    assert content is not None
    if content.data is not None:
        return content.data
    assert content.stream is not None
    return b"".join(bytes(piece) for piece in content.stream)


def read_all(source: FilesSource) -> dict[str, tuple[Entry, bytes | None]]:
    """Each entry as opened in its turn, with its content."""
    found = {}
    for item in source.scan(ignore):
        entry, content = item.open()
        found[entry.path] = entry, None if content is None else content_of(content)
    return found


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


CAPABILITY_VERSION = 0x20080522
DAC_OVERRIDE_AND_READ_SEARCH = 0b110


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Even root is refused what a file's mode refuses: this thread does without the capabilities that say
    otherwise (capget(2))."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read everything here")
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: twice 32 bits
    assert library.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~DAC_OVERRIDE_AND_READ_SEARCH
    assert library.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert library.capset(header, sets) == 0
