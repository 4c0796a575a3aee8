from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from forks import NOBODY, among_own_mounts, as_nobody, bind, mount_memory, scratch
from holdfast.errors import RestoreError
from holdfast.sources.files._staging import FilesTarget, make_empty_directory
from holdfast.sources.files._swap import RenameSwap
from sources.disk import Backup, Seen, directory, file, hardlink, look, places, symlink
from sources.files_source import open_descriptors
from sources.live import MODELS, Target, everything


@pytest.fixture
def target() -> Iterator[Target]:
    with scratch() as root:
        yield Target(root)


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


def test_what_was_chosen_in_a_directory_that_may_not_be_written() -> None:
    def restore(root: Path) -> None:
        target = Target(root)
        closed = root / "models" / "closed"
        (closed / "d").mkdir(parents=True)
        (closed / "d/x").write_text("old")
        (closed / "y").write_text("old")
        closed.chmod(0o500)
        models = root / "models"
        path = "files/models/closed/y"
        with pytest.raises(RestoreError, match="cannot write to"):
            target.stage(Backup((file(path), b"new")), {path: "models/closed/y"}, inner={path: models})
        path = "files/models/closed/d"
        backup = Backup(directory(path, mode=0o700), (file(f"{path}/x"), b"new"))
        (swap,) = target.stage(backup, {path: "models/closed/d"}, inner={path: models})
        assert isinstance(swap, RenameSwap)
        assert swap.place.parent == closed / "d"
        swap.apply()
        assert (closed / "d/x").read_text() == "new"
        swap.revert()
        assert [(closed / name).read_text() for name in ("d/x", "y")] == ["old", "old"]

    with scratch() as root:
        if os.geteuid() == 0:
            os.chown(root, NOBODY, NOBODY)
        as_nobody(lambda: restore(root))


def test_what_was_chosen_in_a_mount_point_is_kept_within_it(tmp_path: Path) -> None:
    chosen = Backup((file("files/models/d/x"), b"new"))
    names = {"files/models/d/x": "models/d/x"}

    def restore(mounted: str, kept_in: str) -> None:
        target = Target(tmp_path)
        models = tmp_path / "models"
        (models / "d").mkdir(parents=True, exist_ok=True)
        if mounted:
            mount_memory(tmp_path / mounted, size=1 << 20)
        (models / "d").mkdir(exist_ok=True)
        (models / "d/x").write_text("old")
        before = look(models)
        (swap,) = target.stage(chosen, names, inner={"files/models/d/x": models})
        assert isinstance(swap, RenameSwap)
        assert swap.place.parent == tmp_path / kept_in
        swap.apply()
        assert (models / "d/x").read_text() == "new"
        swap.revert()
        assert look(models).keys() - {swap.place.name} >= before.keys()
        assert (models / "d/x").read_text() == "old"

    for mounted, kept_in in (("", ""), ("models", "models"), ("models/d", "models/d")):
        among_own_mounts(lambda mounted=mounted, kept_in=kept_in: restore(mounted, kept_in))  # type: ignore[misc]


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
