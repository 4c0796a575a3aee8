from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forks import among_own_mounts, as_nobody, mount_memory, scratch
from holdfast.errors import CorruptBackup, HostileBackup, NoSpace, RestoreError
from holdfast.events import ignore
from holdfast.model import Entry, order_key
from holdfast.sources.files._staging import FilesTarget
from sources.disk import Backup, directory, file, hardlink, look, places, symlink
from sources.files_source import open_descriptors
from sources.live import MODELS, Target, everything

LARGE = 17 << 20
"""Bytes: a file that is made durable while the next is written."""


@pytest.fixture
def target() -> Iterator[Target]:
    with scratch() as root:
        yield Target(root)


def test_what_is_staged_is_what_the_backup_holds(target: Target) -> None:
    target.restore(everything())
    assert look(target.root) == everything().seen(names=MODELS)
    assert target.warnings() == []


def test_what_is_written_elsewhere_is_the_same(target: Target) -> None:
    names = {"files/models": "absolute/srv/models"}
    target.write(everything(), names)
    found = look(target.root)
    assert found.pop("absolute").mode == found.pop("absolute/srv").mode == 0o755
    assert found == everything().seen(names=names)


NAMES = st.binary(min_size=1, max_size=6).filter(lambda name: name not in (b".", b".."))
SAFE = NAMES.map(lambda name: os.fsdecode(name.replace(b"/", b"_").replace(b"\0", b"_")))
CONTENT = st.one_of(
    st.binary(max_size=50),
    st.builds(
        lambda before, zeros, after: before + bytes(zeros) + after,
        st.binary(max_size=3),
        st.integers(0, 20_000),
        st.binary(max_size=3),
    ),
)
LEAF = st.one_of(
    st.tuples(st.just("file"), st.integers(0, 0o7777), CONTENT, st.booleans()),
    st.tuples(st.just("symlink"), st.binary(min_size=1, max_size=9).map(lambda b: b.replace(b"\0", b"_"))),
    st.tuples(st.just("hardlink"), st.integers(0, 9)),
)
TREE = st.recursive(
    LEAF,
    lambda inner: st.tuples(st.integers(0, 0o7777), st.dictionaries(SAFE, inner, max_size=4)),
    max_leaves=12,
)
TOP = st.tuples(st.integers(0, 0o7777), st.dictionaries(SAFE, TREE, max_size=5))


def entries_of(path: str, node: Any, files: list[str]) -> Iterator[tuple[Entry, bytes]]:
    """A random tree as entries in a backup's order."""
    if isinstance(node[0], int):
        yield directory(path, mode=node[0], mtime_ns=len(files)), b""
        for name in sorted(node[1], key=order_key):
            yield from entries_of(f"{path}/{name}", node[1][name], files)
    elif node[0] == "symlink":
        yield symlink(path, os.fsdecode(node[1])), b""
    elif node[0] == "hardlink" and files:
        yield hardlink(path, files[node[1] % len(files)]), b""
    else:
        _, mode, content, sparse = node if node[0] == "file" else ("file", 0o600, b"", False)
        files.append(path)
        yield file(path, mode=mode, sparse=sparse, mtime_ns=len(content)), content


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TOP)
def test_any_tree_comes_back_as_it_was(tree: Any) -> None:
    backup = Backup(*entries_of("files/models", tree, []))
    with scratch() as root:
        target = Target(root)
        target.restore(backup)
        assert look(root) == backup.seen(names=MODELS)
        target.restore(backup)
        assert look(root) == backup.seen(names=MODELS)


def test_a_tree_may_be_deeper_than_any_path_with_few_descriptors(target: Target) -> None:
    path, entries = "files/models", [directory("files/models")]
    for _ in range(400):
        path += "/" + "d" * 20
        entries.append(directory(path))
    entries += [file(f"{path}/x", 4), hardlink("files/models/z", f"{path}/x")]
    before, during = open_descriptors(), []

    def read(entry: Entry) -> Iterator[bytes]:
        during.append(open_descriptors() - before)
        yield b"deep"

    models = FilesTarget({"files/models": target.root / "models"})
    (swap,) = models.stage(iter(entries), read, target.places, ignore)
    swap.apply()
    assert (target.root / "models" / "z").read_bytes() == b"deep"
    assert (target.root / "models" / "z").stat().st_nlink == 2
    assert max(during) < 100


def test_zeros_of_a_sparse_file_take_no_room(target: Target) -> None:
    size = 4 << 20
    content = b"begin" + bytes(size) + b"end"
    target.restore(Backup(directory("files/models"), (file("files/models/holes", sparse=True), content)))
    path = target.root / "models" / "holes"
    assert path.read_bytes() == content
    assert path.stat().st_blocks * 512 < size // 10


def test_extended_attributes_come_back(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.probe", b"1")
    except (OSError, AttributeError):
        pytest.skip("the file system has none")
    attributes = {"user.note": b"\0\xff", "user.empty": b""}
    target = Target(tmp_path / "root")
    target.root.mkdir()
    target.restore(
        Backup(
            directory("files/models", xattrs=attributes),
            (file("files/models/a", xattrs=attributes), b"a"),
        )
    )
    for path in (target.root / "models", target.root / "models" / "a"):
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == attributes
    assert target.warnings() == []


def test_what_the_file_system_cannot_keep_is_told_once(target: Target) -> None:
    attributes = {"impossible.name": b"x"}
    files = [file(f"files/models/{number}", xattrs=attributes) for number in range(3)]
    target.restore(Backup(directory("files/models"), *files))
    (warning,) = target.warnings()
    assert "extended attributes" in warning
    assert "files/models/0" in warning


def test_without_root_owners_are_told_and_set_uid_is_not_granted() -> None:
    def restore(root: Path) -> None:
        target = Target(root)
        stranger = {"uid": 4242, "gid": 4343}
        target.restore(
            Backup(
                directory("files/models"),
                (file("files/models/mine", mode=0o6755), b""),
                (file("files/models/theirs", mode=0o6755, **stranger), b""),
            )
        )
        found = look(root)
        assert found["models/mine"].mode == 0o6755
        assert found["models/theirs"].mode == 0o755
        assert found["models/theirs"].uid == os.geteuid()
        assert len(target.warnings()) == 1

    with scratch() as root:
        root.chmod(0o777)
        as_nobody(lambda: restore(root))


def test_closed_directories_come_back_without_root_too() -> None:
    def restore(root: Path) -> None:
        backup = Backup(
            directory("files/models", mode=0o500),
            directory("files/models/closed", mode=0),
            directory("files/models/closed/inner", mode=0),
            (file("files/models/closed/inner/a", mode=0), b"a"),
            symlink("files/models/closed/link", "inner"),
            hardlink("files/models/z", "files/models/closed/inner/a"),
        )
        Target(root).restore(backup)
        for path in ("models/closed", "models/closed/inner", "models/closed/inner/a"):
            assert (root / path).lstat().st_mode & 0o777 == 0
            (root / path).chmod(0o700)
        found, expected = look(root), backup.seen(names=MODELS)
        assert found.keys() == expected.keys()
        assert {path: seen.content for path, seen in found.items()} == {
            path: seen.content for path, seen in expected.items()
        }
        assert found["models"] == expected["models"]

    with scratch() as root:
        root.chmod(0o777)
        as_nobody(lambda: restore(root))


HOSTILE = {
    "no root": [file("files/other/x")],
    "root beside": [file("files/modelsx")],
    "parent of root": [directory("files")],
    "no directory": [directory("files/models"), file("files/models/missing/x")],
    "before its root": [file("files/models/x")],
    "absolute": [directory("files/models"), file("/etc/holdfast-test")],
    "empty": [directory("files/models"), file("")],
    "up": [directory("files/models"), file("files/models/..")],
    "up after another": [directory("files/models"), file("files/models/a"), directory("files/models/..")],
    "up and away": [directory("files/models"), file("files/models/../../x")],
    "up in the middle": [directory("files/models"), directory("files/models/a"), file("files/models/a/../x")],
    "here": [directory("files/models"), file("files/models/.")],
    "empty name": [directory("files/models"), file("files/models/")],
    "empty component": [directory("files/models"), file("files/models//x")],
    "NUL": [directory("files/models"), file("files/models/a\0b")],
    "no bytes": [directory("files/models"), file("files/models/\ud800")],
    "beneath a link": [
        directory("files/models"),
        symlink("files/models/a", "/tmp"),
        file("files/models/a/x"),
    ],
    "beneath a root that is a link": [symlink("files/models", "/tmp"), file("files/models/x")],
    "beneath a file": [directory("files/models"), file("files/models/a"), file("files/models/a/x")],
    "file twice": [directory("files/models"), file("files/models/a"), file("files/models/a")],
    "directory twice": [directory("files/models"), directory("files/models/a"), directory("files/models/a")],
    "root twice": [directory("files/models"), directory("files/models")],
    "link twice": [directory("files/models"), symlink("files/models/a", "x"), symlink("files/models/a", "y")],
    "link then file": [directory("files/models"), symlink("files/models/a", "x"), file("files/models/a")],
    "link to nothing": [directory("files/models"), symlink("files/models/a", "")],
    "link with NUL": [directory("files/models"), symlink("files/models/a", "a\0b")],
    "hard link out": [directory("files/models"), hardlink("files/models/a", "/etc/passwd")],
    "hard link up": [directory("files/models"), hardlink("files/models/a", "files/models/../../x")],
    "hard link to nothing": [directory("files/models"), hardlink("files/models/a", "files/models/b")],
    "hard link to a directory": [directory("files/models"), hardlink("files/models/a", "files/models")],
    "hard link to a link": [
        directory("files/models"),
        symlink("files/models/a", "/etc/passwd"),
        hardlink("files/models/b", "files/models/a"),
    ],
    "deleted": [directory("files/models"), file("files/models/a")._replace(kind="deleted")],
    "unheard of": [directory("files/models"), file("files/models/a")._replace(kind="door")],  # type: ignore[arg-type]
    "time": [directory("files/models"), file("files/models/a", mtime_ns=1 << 100)],
    "time of a directory": [directory("files/models", mtime_ns=1 << 100)],
    "owner": [directory("files/models"), file("files/models/a", uid=1 << 80)],
    "more than declared": [directory("files/models"), (file("files/models/a", 2), b"abc")],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("way", [Target.stage, Target.write], ids=["stage", "write"])
def test_what_no_honest_backup_asks_is_refused(
    target: Target, entries: list[Any], way: Callable[[Target, Backup], object]
) -> None:
    if os.geteuid() != 0 and any("owner" in str(entry) for entry in entries):
        pytest.skip("only root sets owners")
    inner = Target(target.root / "inner")
    inner.root.mkdir()
    with pytest.raises(HostileBackup):
        way(inner, Backup(*entries))
    assert sorted(os.listdir(target.root)) == ["inner"]
    assert not (set(os.listdir(inner.root)) - {"models"}) - set(places(inner.root))


def test_content_that_ends_early_is_corrupt(target: Target) -> None:
    with pytest.raises(CorruptBackup, match="files/models/a"):
        target.stage(Backup(directory("files/models"), (file("files/models/a", 5), b"abc")))


@pytest.mark.parametrize("name", ["../x", "models/../../x", "link/x"])
def test_nothing_is_written_outside_the_directory_for_a_restore_elsewhere(target: Target, name: str) -> None:
    inner = Target(target.root / "inner")
    inner.root.mkdir()
    (target.root / "outside").mkdir()
    (inner.root / "link").symlink_to(target.root / "outside")
    with pytest.raises(HostileBackup):
        inner.write(Backup((file("files/models"), b"x")), {"files/models": name})
    assert list((target.root / "outside").iterdir()) == []
    assert sorted(os.listdir(target.root)) == ["inner", "outside"]


def test_a_full_disk_is_told_and_leaves_the_live_data(tmp_path: Path) -> None:
    def restore() -> None:
        mount_memory(tmp_path, size=1 << 18)
        target = Target(tmp_path)
        with pytest.raises(NoSpace, match="files/models/large"):
            target.stage(
                Backup(directory("files/models"), (file("files/models/large"), bytes(b"x" * (1 << 19))))
            )
        assert look(tmp_path) == {}

    among_own_mounts(restore)


def test_hard_links_become_copies_where_there_can_be_none(tmp_path: Path) -> None:
    def restore() -> None:
        (tmp_path / "other").mkdir()
        mount_memory(tmp_path / "other", size=1 << 20)
        target = Target(tmp_path)
        original = file("files/a", mode=0o640, sparse=True)
        content = b"x" + bytes(100_000) + b"y"
        backup = Backup((original, content), hardlink("files/b", "files/a"), hardlink("files/c", "files/a"))
        target.restore(backup, {"files/a": "a", "files/b": "other/b", "files/c": "other/c"})
        found = look(tmp_path)
        for name in ("a", "other/b", "other/c"):
            assert found[name].content == content
            assert found[name].mode == 0o640
            assert found[name].mtime_ns == original.mtime_ns
        assert len(target.warnings()) == 1

    among_own_mounts(restore)


def test_an_error_of_the_backup_passes_through(target: Target) -> None:
    def read(entry: Entry) -> Iterator[bytes]:
        yield b"a"
        raise CorruptBackup("not what was stored")

    entries = iter([directory("files/models"), file("files/models/a", 1)])
    with pytest.raises(CorruptBackup, match="not what was stored"):
        FilesTarget({"files/models": target.root / "models"}).stage(entries, read, target.places, ignore)


@pytest.mark.parametrize("at", [0, 2])
def test_what_the_disk_refuses_while_the_next_file_is_written_fails_the_restore(
    target: Target, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls = count()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size >= LARGE and next(calls) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    names = [f"files/models/{number}" for number in range(3)]
    backup = Backup(directory("files/models"), *((file(name), b"x" * LARGE) for name in names))
    with pytest.raises(RestoreError, match="Input/output error"):
        target.stage(backup)
    assert next(calls) > at
    assert "models" not in os.listdir(target.root)
