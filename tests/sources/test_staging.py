from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forks import NOBODY, among_own_mounts, as_nobody, bind, mount_memory, scratch
from holdfast.errors import CorruptBackup, HostileBackup, NoSpace, RestoreError
from holdfast.events import Event, Warned, ignore
from holdfast.model import Entry, order_key
from holdfast.sources._staging import FilesTarget, make_empty_directory
from holdfast.sources._swap import RenameSwap
from holdfast.transaction import Swap
from sources.disk import Backup, Seen, directory, file, hardlink, look, places, symlink
from sources.files_source import open_descriptors

MODELS = {"files/models": "models"}


class Target:
    """A service root, and a restore of a backup into it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[Event] = []
        self._numbers = count()

    def place(self, beside: Path) -> Path:
        path = beside / f".holdfast-0123456789abcdef-{next(self._numbers)}"
        path.mkdir(mode=0o700)
        return path

    def stage(self, backup: Backup, names: dict[str, str] | None = None, **settings: Any) -> list[Swap]:
        target = FilesTarget({root: self.root / name for root, name in (names or MODELS).items()}, **settings)
        return target.stage(backup.entries(), backup.read, self.place, self.events.append)

    def restore(self, backup: Backup, names: dict[str, str] | None = None, **settings: Any) -> None:
        for swap in self.stage(backup, names, **settings):
            swap.apply()

    def write(self, backup: Backup, names: dict[str, str] | None = None) -> None:
        target = FilesTarget({root: self.root / name for root, name in (names or MODELS).items()})
        target.write(backup.entries(), backup.read, self.events.append, within=self.root)

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]


@pytest.fixture
def target() -> Iterator[Target]:
    with scratch() as root:
        yield Target(root)


def everything() -> Backup:
    """One of each kind, with attributes that no default gives."""
    return Backup(
        directory("files/models", mode=0o2751),
        directory("files/models/closed", mode=0),
        (file("files/models/closed/a", mode=0o400), b"a" * 30_000),
        directory("files/models/empty", mode=0o1777, mtime_ns=1),
        (file("files/models/holes", sparse=True), bytes(100_000) + b"x" + bytes(50_000)),
        symlink("files/models/link", "/nowhere"),
        (file("files/models/one", mode=0o4755, mtime_ns=-1_000_000_000), b"one"),
        hardlink("files/models/other", "files/models/closed/a"),
        (file(os.fsdecode(b"files/models/\xff\xfe\n")), b""),
    )


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


def test_until_the_swap_nothing_live_is_touched(target: Target) -> None:
    (target.root / "models").mkdir()
    (target.root / "models" / "old").write_text("old")
    before = look(target.root)
    (swap,) = target.stage(everything())
    assert look(target.root) == before
    swap.apply()
    assert "models/old" not in look(target.root)
    swap.revert()
    assert look(target.root) == before


def test_no_descriptor_stays_open(target: Target) -> None:
    before = open_descriptors()
    target.restore(everything())
    with pytest.raises(RestoreError):
        target.stage(everything(), {"files/models": "models/one/x"})
    assert open_descriptors() == before


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


def test_a_tree_may_be_deeper_than_any_path(target: Target) -> None:
    path, entries = "files/models", [directory("files/models")]
    for _ in range(400):
        path += "/" + "d" * 20
        entries.append(directory(path))
    first, last = f"{path}/x", "files/models/z"
    entries += [file(first), hardlink(last, first)]
    target.restore(Backup(*[entry if entry.kind != "file" else (entry, b"deep") for entry in entries]))
    assert (target.root / "models" / "z").read_bytes() == b"deep"
    assert (target.root / "models" / "z").stat().st_nlink == 2


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


def test_several_roots_share_a_private_place_where_they_share_a_directory(target: Target) -> None:
    names = {"files/.env": ".env", "files/config": "config", "absolute/new/deep/x": "new/deep/x"}
    (target.root / ".env").write_text("old")
    (target.root / "neighbor").write_text("stays")
    backup = Backup(
        (file("files/.env", mode=0o600), b"new"),
        directory("files/config"),
        hardlink("files/config/env", "files/.env"),
        (file("absolute/new/deep/x"), b"x"),
    )
    before = look(target.root)
    (swap,) = target.stage(backup, names)
    swap.apply()
    found = look(target.root)
    assert found["neighbor"].content == b"stays"
    assert found.pop("new").kind == found.pop("new/deep").kind == "directory"
    assert {path: seen for path, seen in found.items() if path != "neighbor"} == backup.seen(names=names)
    assert len(places(target.root)) == 1
    swap.revert()
    assert look(target.root) == before


def test_a_root_that_the_backup_lacks_is_left_alone(target: Target) -> None:
    (target.root / "other").write_text("stays")
    target.restore(Backup(directory("files/models")), MODELS | {"files/other": "other"})
    assert (target.root / "other").read_text() == "stays"


def test_a_target_that_is_a_link_is_followed(target: Target) -> None:
    (target.root / "disk").mkdir()
    (target.root / "disk" / "real").mkdir()
    (target.root / "models").symlink_to("disk/real")
    target.restore(Backup(directory("files/models"), (file("files/models/a"), b"a")))
    assert (target.root / "models").is_symlink()
    assert (target.root / "disk" / "real" / "a").read_bytes() == b"a"


def test_a_root_that_is_a_link_in_the_backup_becomes_that_link(target: Target) -> None:
    (target.root / "real").mkdir()
    (target.root / "models").symlink_to("real")
    target.restore(Backup(symlink("files/models", "elsewhere")))
    assert os.readlink(target.root / "models") == "elsewhere"
    assert (target.root / "real").is_dir()


def test_logs_of_a_database_go_with_the_database(target: Target) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        (target.root / f"a.db{suffix}").write_text("old")
        (target.root / f"a.txt{suffix}").write_text("old")
    database = b"SQLite format 3\0" + bytes(1008)
    names = {"files/a.db": "a.db", "files/a.txt": "a.txt"}
    backup = Backup((file("files/a.db"), database), (file("files/a.txt"), bytes(1024)))
    before = look(target.root)
    (swap,) = target.stage(backup, names)
    swap.apply()
    assert sorted(look(target.root)) == ["a.db", "a.txt", "a.txt-journal", "a.txt-shm", "a.txt-wal"]
    swap.revert()
    assert look(target.root) == before


HOSTILE = {
    "no root": [file("files/other/x")],
    "root beside": [file("files/modelsx")],
    "parent of root": [directory("files")],
    "no directory": [directory("files/models"), file("files/models/missing/x")],
    "before its root": [file("files/models/x")],
    "absolute": [directory("files/models"), file("/etc/holdfast-test")],
    "empty": [directory("files/models"), file("")],
    "up": [directory("files/models"), file("files/models/..")],
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


def test_a_target_that_may_not_be_written_is_named() -> None:
    def restore(root: Path) -> None:
        with pytest.raises(RestoreError, match=str(root)) as told:
            Target(root).stage(everything())
        assert "--target" in told.value.hint

    with scratch() as root:
        root.chmod(0o755)
        if os.geteuid() != 0:
            root.chmod(0o555)
        as_nobody(lambda: restore(root))


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "others'"])
def test_a_directory_in_one_that_may_not_be_written_is_replaced_from_inside(ours: bool) -> None:
    def restore(root: Path) -> None:
        target = Target(root)
        (root / "models" / "old").write_text("old")
        (root / "models" / "closed").mkdir(mode=0o500)
        backup = Backup(
            directory("files/models", mode=0o555),
            directory("files/models/closed", mode=0o511),
            (file("files/models/closed/a"), b"a"),
        )
        before = look(root)
        (swap,) = target.stage(backup)
        swap.apply()
        found, expected = look(root), backup.seen(names=MODELS)
        top = found.pop("models")
        # Its owner can still enter and change it, or else what is kept could not be put back.
        assert top.mode == (0o755 if ours else before["models"].mode)
        assert bool(swap.note) != ours
        assert expected.pop("models").mtime_ns == top.mtime_ns or not ours
        assert found == expected
        swap.revert()
        after = look(root)
        assert _without_time(after.pop("models")) == _without_time(before.pop("models"))
        assert after == before

    with scratch() as root:
        (root / "models").mkdir()
        (root / "models").chmod(0o777)
        if os.geteuid() == 0 and ours:
            os.chown(root / "models", NOBODY, NOBODY)
        root.chmod(0o555)
        try:
            if ours or os.geteuid() == 0:
                as_nobody(lambda: restore(root))
        finally:
            root.chmod(0o755)


def _without_time(seen: Seen) -> Seen:
    return seen._replace(mtime_ns=0)


@pytest.mark.parametrize("other_file_system", [False, True], ids=["bind", "other file system"])
def test_a_mount_point_is_replaced_from_inside(tmp_path: Path, other_file_system: bool) -> None:
    def restore() -> None:
        target = Target(tmp_path)
        models = tmp_path / "models"
        models.mkdir()
        if other_file_system:
            mount_memory(models, size=1 << 20)
        else:
            (tmp_path / "volume").mkdir()
            bind(tmp_path / "volume", models)
        (models / "old").write_text("old")
        (swap,) = target.stage(everything())
        assert isinstance(swap, RenameSwap)
        assert swap.place.parent == models
        swap.apply()
        found = {path: seen for path, seen in look(tmp_path).items() if not path.startswith("volume")}
        assert found == everything().seen(names=MODELS)
        swap.revert()
        assert (models / "old").read_text() == "old"

    among_own_mounts(restore)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models", "big one is mounted in"),
        ("models/big one", "a directory that cannot be renamed"),
        (".env", "mounted by itself"),
    ],
)
def test_what_is_mounted_where_it_cannot_be_replaced_is_named(
    tmp_path: Path, name: str, message: str
) -> None:
    def restore() -> None:
        (tmp_path / "models" / "big one").mkdir(parents=True)
        mount_memory(tmp_path / "models" / "big one", size=1 << 16)
        (tmp_path / ".env").touch()
        bind(tmp_path / ".env", tmp_path / ".env")
        root = directory("files/models") if name == "models" else file("files/models")
        with pytest.raises(RestoreError, match=message) as told:
            Target(tmp_path).stage(Backup(root), {"files/models": name})
        assert "--target" in told.value.hint

    among_own_mounts(restore)


@pytest.mark.parametrize("never", ["models", "models/keys/holdfast.key"])
def test_what_no_restore_may_take_away_is_not_taken_away(target: Target, never: str) -> None:
    (target.root / "models" / "keys").mkdir(parents=True)
    (target.root / "models" / "keys" / "holdfast.key").touch()
    with pytest.raises(RestoreError, match=never):
        target.stage(everything(), never=[target.root / never])
    target.stage(everything(), never=[target.root / "other", target.root / "model"])


@pytest.mark.parametrize("second", ["models", "models/a", "."])
def test_targets_in_one_another_are_refused(target: Target, second: str) -> None:
    backup = Backup(directory("files/models"), directory("files/other"))
    with pytest.raises(RestoreError, match="another path"):
        target.stage(backup, {"files/models": "models", "files/other": second})


def test_a_file_in_the_way_to_a_target_is_named(target: Target) -> None:
    (target.root / "file").touch()
    with pytest.raises(RestoreError, match="file is no directory"):
        target.stage(everything(), {"files/models": "file/models"})


def test_room_is_needed_where_the_targets_are(target: Target) -> None:
    (needed,) = FilesTarget({"files/models": target.root / "not" / "there"}).needs(7).items()
    assert needed[0].stat().st_dev == target.root.stat().st_dev
    assert needed[1] == 7
    assert FilesTarget({"a": target.root, "b": Path("/proc")}).needs(7) == {}


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
        FilesTarget({"files/models": target.root / "models"}).stage(entries, read, target.place, ignore)


def test_a_directory_for_a_restore_elsewhere_is_made_or_must_be_empty(target: Target) -> None:
    new = target.root / "a" / "b"
    make_empty_directory(new)
    assert stat.S_IMODE(new.stat().st_mode) == 0o700
    make_empty_directory(new)
    (new / "file").touch()
    with pytest.raises(RestoreError, match="not empty"):
        make_empty_directory(new)
    with pytest.raises(RestoreError, match="file"):
        make_empty_directory(new / "file")
    with pytest.raises(RestoreError, match="file/x"):
        make_empty_directory(new / "file" / "x")
