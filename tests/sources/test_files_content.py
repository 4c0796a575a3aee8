"""The files source: content is one moment of a file, or an error."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import SourceChanged, SourceMissing, SourceUnreadable
from holdfast.sources.files._content import PIECE_BYTES, SMALL_BYTES, SPARSE_BYTES, FileItem
from sources.files_source import (
    bound_by_permissions,
    content_of,
    files_source,
    item_at,
    long_after,
    open_descriptors,
)

LARGE = 3 * PIECE_BYTES + 17
SIZES = [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, PIECE_BYTES, LARGE]


def item_of(
    tmp_path: Path, content: bytes, component: str = "models", **settings: Any
) -> tuple[Path, FileItem]:
    path = tmp_path / "models" / "m"
    path.parent.mkdir()
    path.write_bytes(content)
    source = files_source(tmp_path, component=component, **settings)
    return path, item_at(source, "files/models/m")


@pytest.mark.parametrize("component", ["models", "logs"])
@pytest.mark.parametrize("size", SIZES)
def test_content_of_any_size_is_given_whole(tmp_path: Path, size: int, component: str) -> None:
    content = os.urandom(size)
    _, item = item_of(tmp_path, content, component)
    entry, opened = item.open()
    assert opened is not None
    assert entry.size == opened.size == size
    assert (opened.data is not None) is (size <= SMALL_BYTES)
    assert content_of(opened) == content


def test_pieces_are_large_and_share_one_buffer(tmp_path: Path) -> None:
    _, item = item_of(tmp_path, bytes(LARGE))
    opened = item.open()[1]
    assert opened is not None
    assert opened.stream is not None
    pieces = list(opened.stream)
    assert [len(piece) for piece in pieces] == [PIECE_BYTES] * 3 + [17]
    assert len({id(piece.obj) for piece in pieces if isinstance(piece, memoryview)}) == 1


def test_an_item_can_be_opened_again(tmp_path: Path) -> None:
    path, item = item_of(tmp_path, b"first")
    assert content_of(item.open()[1]) == b"first"
    path.write_bytes(b"second time")
    entry, opened = item.open()
    assert (entry.size, content_of(opened)) == (11, b"second time")


@pytest.mark.parametrize("size", [SMALL_BYTES, LARGE])
@pytest.mark.parametrize("begun", [False, True])
def test_a_descriptor_is_freed_when_the_content_is_not_read_to_its_end(
    tmp_path: Path, size: int, begun: bool
) -> None:
    before = open_descriptors()
    _, item = item_of(tmp_path, bytes(size))
    for _ in range(3):
        opened = item.open()[1]
        assert opened is not None
        if opened.stream is not None:
            if begun:
                next(opened.stream)
            opened.stream.close()
    del item
    assert open_descriptors() == before


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def overwrite_and_pretend(path: Path) -> None:
    status = path.stat()
    overwrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: list[Callable[[Path], None]] = [append, truncate, overwrite, touch, overwrite_and_pretend]


@pytest.mark.parametrize("component", ["models", "config"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_large_file_that_changes_between_pieces_is_an_error(
    tmp_path: Path, change: Callable[[Path], None], component: str
) -> None:
    path, item = item_of(tmp_path, bytes(LARGE), component)
    opened = item.open()[1]
    assert opened is not None
    assert opened.stream is not None
    next(opened.stream)
    change(path)
    with pytest.raises(SourceChanged, match=f"{path} changed while it was read"):
        content_of(opened)


@pytest.mark.parametrize("change", CHANGES)
def test_a_small_file_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "models" / "m"

    def changing_clock() -> datetime:  # read after the file was looked at, and before its content is
        change(path)
        return long_after()

    _, item = item_of(tmp_path, bytes(100), clock=changing_clock)
    with pytest.raises(SourceChanged, match=f"{path} changed while it was read"):
        item.open()


def test_a_log_that_shrinks_after_its_last_byte_was_read_is_an_error(tmp_path: Path) -> None:
    path, item = item_of(tmp_path, bytes(LARGE), "logs")
    opened = item.open()[1]
    assert opened is not None
    assert opened.stream is not None
    for _ in range(4):
        next(opened.stream)
    truncate(path)
    with pytest.raises(SourceChanged):
        next(opened.stream)


@pytest.mark.parametrize("component", ["config", "logs"])
@pytest.mark.parametrize("size", [100, LARGE])
def test_who_settles_gets_the_declared_size_filled_up_with_zeros(
    tmp_path: Path, size: int, component: str
) -> None:
    path = tmp_path / "models" / "m"

    def truncating_clock() -> datetime:
        os.truncate(path, 10)
        return long_after()

    _, item = item_of(tmp_path, b"x" * size, component, clock=truncating_clock)
    entry, opened = item.open(settle=True)
    assert entry.size == size
    assert content_of(opened) == b"x" * 10 + bytes(size - 10)
    assert opened is not None
    assert opened.changed


@pytest.mark.parametrize("size", [100, LARGE])
def test_who_settles_for_a_growing_file_gets_no_more_than_the_declared_size(
    tmp_path: Path, size: int
) -> None:
    path = tmp_path / "models" / "m"

    def growing_clock() -> datetime:
        append(path)
        return long_after()

    content = os.urandom(size)
    _, item = item_of(tmp_path, content, clock=growing_clock)
    opened = item.open(settle=True)[1]
    assert content_of(opened) == content
    assert opened is not None
    assert opened.changed


@pytest.mark.parametrize("component", ["models", "logs"])
@pytest.mark.parametrize("size", [100, LARGE])
def test_who_settles_for_what_did_not_change_is_told_so(tmp_path: Path, size: int, component: str) -> None:
    content = os.urandom(size)
    _, item = item_of(tmp_path, content, component)
    opened = item.open(settle=True)[1]
    assert content_of(opened) == content
    assert opened is not None
    assert not opened.changed


def test_a_file_that_another_thread_keeps_writing_is_an_error_until_it_stops(tmp_path: Path) -> None:
    path, item = item_of(tmp_path, bytes(LARGE))
    started, stop = threading.Event(), threading.Event()

    def write() -> None:
        while not stop.is_set():
            append(path)
            started.set()
            stop.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        started.wait()
        opened = item.open()[1]
        assert opened is not None
        assert opened.stream is not None
        next(opened.stream)
        size = path.stat().st_size
        while path.stat().st_size == size:
            stop.wait(0.001)
        with pytest.raises(SourceChanged):
            content_of(opened)
    finally:
        stop.set()
        writer.join()
    assert content_of(item.open()[1]) == path.read_bytes()


@pytest.mark.parametrize("size", [100, LARGE])
def test_a_log_is_read_to_its_size_at_opening(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    path = tmp_path / "models" / "m"
    grown = []

    def growing_clock() -> datetime:
        append(path)
        grown.append(path.stat().st_size)
        return long_after()

    _, item = item_of(tmp_path, content, "logs", clock=growing_clock)
    before = path.stat().st_mtime_ns
    entry, opened = item.open()
    assert grown == [size + 4]
    assert content_of(opened) == content
    assert (entry.size, entry.mtime_ns) == (size, before)


@pytest.mark.parametrize("size", [100, LARGE])
def test_a_log_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "models" / "m"

    def shrinking_clock() -> datetime:
        truncate(path)
        return long_after()

    _, item = item_of(tmp_path, bytes(size), "logs", clock=shrinking_clock)
    with pytest.raises(SourceChanged):
        content_of(item.open()[1])


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "hardlink"])
def test_what_vanished_since_it_was_listed_is_missing(tmp_path: Path, kind: str) -> None:
    models = tmp_path / "models"
    (models / "directory").mkdir(parents=True)
    (models / "file").touch()
    os.link(models / "file", models / "hardlink")
    (models / "symlink").symlink_to("file")
    item = item_at(files_source(tmp_path), f"files/models/{kind}")
    assert item.entry.kind == kind
    if kind == "directory":
        (models / kind).rmdir()
    else:
        (models / kind).unlink()
    with pytest.raises(SourceMissing, match=f"{models}/{kind} is gone"):
        item.open()


def replace_by_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def replace_by_fifo(path: Path) -> None:
    os.mkfifo(path)


def replace_by_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("replace", [replace_by_link, replace_by_fifo, replace_by_directory])
def test_a_file_that_became_something_else_is_never_read(
    tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    path, item = item_of(tmp_path, b"x")
    path.unlink()
    replace(path)
    with pytest.raises(SourceChanged, match=f"{path} became something else"):
        item.open()


def test_a_directory_that_became_a_link_to_another_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "models" / "x"
    path.mkdir(parents=True)
    item = item_at(files_source(tmp_path), "files/models/x")
    path.rename(tmp_path / "away")
    path.symlink_to(tmp_path / "away")
    with pytest.raises(SourceChanged, match=f"{path} became something else"):
        item.open()


@pytest.mark.parametrize("kind", ["directory", "symlink"])
def test_a_directory_or_link_that_became_a_file_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "models" / "x"
    path.parent.mkdir()
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("y")
    item = item_at(files_source(tmp_path), "files/models/x")
    path.rename(tmp_path / "away")
    path.touch()
    with pytest.raises(SourceChanged, match=f"{path} became something else"):
        item.open()


def test_a_file_that_may_not_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    path, item = item_of(tmp_path, b"x")
    path.chmod(0o200)
    with (
        bound_by_permissions(),
        pytest.raises(SourceUnreadable, match=f"cannot read {path}: Permission") as refused,
    ):
        item.open()
    assert refused.value.hint


def test_messages_cannot_carry_what_a_terminal_obeys(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "\x1b[2Jx\udce9\n").touch()
    item = item_at(files_source(tmp_path), "files/models/\x1b[2Jx\udce9\n")
    (tmp_path / "models" / "\x1b[2Jx\udce9\n").unlink()
    with pytest.raises(SourceMissing) as error:
        item.open()
    assert r"\x1b[2Jx\udce9\n" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("field", "age", "racy"),
    [("mtime", 1.9, True), ("mtime", 2.1, False), ("ctime", 1.9, True), ("mtime", -3600, True)],
)
def test_a_file_modified_within_two_seconds_of_its_reading_is_marked(
    tmp_path: Path, field: str, age: float, racy: bool
) -> None:
    now = [long_after()]
    path, item = item_of(tmp_path, b"x", clock=now.pop)
    # The time of change cannot be set, so the other one is moved: well before it or well after.
    changed = path.stat().st_ctime_ns / 1e9
    modified = changed + (3600 if field == "mtime" else -3600)
    os.utime(path, (modified, modified))
    latest = modified if field == "mtime" else path.stat().st_ctime_ns / 1e9
    now[:] = [datetime.fromtimestamp(latest, UTC) + timedelta(seconds=age)]
    assert not item.entry.racy
    assert item.open()[0].racy is racy


@pytest.mark.parametrize(
    ("size", "written", "sparse"),
    [
        (SPARSE_BYTES, 0, True),
        (8 * SPARSE_BYTES, SPARSE_BYTES, True),
        (SPARSE_BYTES - 1, 0, False),
        (2 * SPARSE_BYTES, 2 * SPARSE_BYTES, False),
        (0, 0, False),
    ],
)
def test_holes_are_noticed(tmp_path: Path, size: int, written: int, sparse: bool) -> None:
    path = tmp_path / "models" / "m"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(b"x" * written)
        file.truncate(size)
        os.fsync(file.fileno())  # blocks may be counted only once they are written
    if sparse and path.stat().st_blocks * 512 >= size:
        pytest.skip("this file system has no holes")
    item = item_at(files_source(tmp_path), "files/models/m")
    entry, opened = item.open()
    assert item.entry.sparse is entry.sparse is sparse
    assert content_of(opened) == b"x" * written + bytes(size - written)


ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, identity)
    for tag, permissions, identity in [
        (0x01, 6, 2**32 - 1),  # owner
        (0x02, 4, 12345),  # a user
        (0x04, 4, 2**32 - 1),  # group
        (0x10, 4, 2**32 - 1),  # mask
        (0x20, 0, 2**32 - 1),  # others
    ]
)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("user.origin", b"https://example.org/\0\xff", True),
        ("user.empty", b"", True),
        ("system.posix_acl_access", ACL, True),
        ("security.selinux", b"system_u:object_r:usr_t:s0", False),
    ],
)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_extended_attributes_are_read_when_opened(
    tmp_path: Path, name: str, value: bytes, kept: bool, kind: str
) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("Python has no extended attributes here")
    path = tmp_path / "models" / "x"
    path.parent.mkdir()
    if kind == "file":
        path.touch()
    else:
        path.mkdir()
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"{name} cannot be set here: {error.strerror}")
    item = item_at(files_source(tmp_path), "files/models/x")
    assert item.entry.xattrs is None
    assert item.open()[0].xattrs == ({name: value} if kept else None)


def test_the_access_list_that_a_directory_passes_on_is_kept(tmp_path: Path) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("Python has no extended attributes here")
    (tmp_path / "models").mkdir()
    try:
        os.setxattr(tmp_path / "models", "system.posix_acl_default", ACL)
    except OSError as error:
        pytest.skip(f"access lists cannot be set here: {error.strerror}")
    assert item_at(files_source(tmp_path), "files/models").open()[0].xattrs == {
        "system.posix_acl_default": ACL
    }
