from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from forks import as_nobody, scratch
from holdfast.errors import JournalRefused, RestoreError
from holdfast.sources.files._swap import RenameSwap
from sources.disk import Seen, look

PLACE = ".holdfast-0123456789abcdef-0"


@pytest.fixture
def live() -> Iterator[Path]:
    with scratch() as directory:
        (directory / "live").mkdir()
        yield directory / "live"


def fill(directory: Path, text: str, names: Sequence[str]) -> None:
    """Files, links and directories, told apart by their contents."""
    directory.mkdir(exist_ok=True)
    for name in names:
        if name.startswith("d"):
            (directory / name).mkdir()
            (directory / name / text).write_text(text)
        elif name.startswith("l"):
            (directory / name).symlink_to(text)
        else:
            (directory / name).write_text(text)


def prepare(live: Path, names: Sequence[str] | None, *, new: Sequence[str]) -> RenameSwap:
    (live / PLACE).mkdir(mode=0o700)
    fill(live / PLACE / "staged", "new", new)
    return RenameSwap.prepare(live / PLACE, names)


def again(swap: RenameSwap) -> RenameSwap:
    """The swap as a process to come has it."""
    return RenameSwap.from_journal(json.loads(json.dumps(swap.to_journal())))


def test_a_place_may_lie_in_a_directory_above(live: Path) -> None:
    inner = live / "a" / "b"
    inner.mkdir(parents=True)
    fill(inner, "old", ALL)
    old = content(inner)
    (live / PLACE).mkdir(mode=0o700)
    fill(live / PLACE / "staged", "new", NEW)
    swap = RenameSwap.prepare(live / PLACE, NEW, ("a", "b"))
    again(swap).apply()
    new = content(inner)
    assert new["file"] != old["file"]
    assert new["only-old"] == old["only-old"]
    back = again(swap).reversed()
    back.apply()
    assert content(inner) == old


def test_a_journal_cannot_name_a_way_out_of_a_place(live: Path) -> None:
    (live / PLACE).mkdir(mode=0o700)
    fill(live / PLACE / "staged", "new", NEW)
    state = RenameSwap.prepare(live / PLACE, NEW).to_journal()
    for way in ([".."], ["a/b"], [""], [PLACE], 1):
        with pytest.raises((TypeError, ValueError)):
            RenameSwap.from_journal({**state, "within": way})


def content(live: Path) -> dict[str, tuple[str, object]]:
    return {path: (seen.kind, seen.content) for path, seen in look(live).items()}


ALL = ("directory", "file", "link", "only-old")
NEW = ("directory", "file", "link", "only-new")


@pytest.mark.parametrize("whole", [False, True], ids=["names", "whole"])
def test_apply_and_undo_and_redo(live: Path, whole: bool) -> None:
    fill(live, "old", ALL)
    old = content(live)
    swap = prepare(live, None if whole else sorted({*ALL, *NEW}), new=NEW)
    new = content(live / PLACE / "staged")
    assert content(live) == old
    swap.apply()
    assert content(live) == new
    swap.settle()
    for state in (old, new, old):
        back = again(swap).reversed()
        assert isinstance(back, RenameSwap)
        swap = again(back)
        swap.apply()
        swap.settle()
        assert content(live) == state
    swap.discard()
    assert content(live) == old
    assert not (live / PLACE).exists()


@pytest.mark.parametrize("whole", [False, True], ids=["names", "whole"])
@pytest.mark.parametrize("step", ["apply", "revert", "settle"])
def test_every_step_may_be_repeated(live: Path, whole: bool, step: str) -> None:
    fill(live, "old", ALL)
    old = content(live)
    swap = prepare(live, None if whole else sorted({*ALL, *NEW}), new=NEW)
    new = content(live / PLACE / "staged")
    swap.revert()
    assert content(live) == old
    swap.apply()
    for _ in range(3):
        getattr(again(swap), step)()
    assert content(live) == (old if step == "revert" else new)


def test_undo_of_what_was_not_settled_leaves_no_false_trail(live: Path) -> None:
    fill(live, "old", ["file"])
    swap = prepare(live, ["file"], new=["file"])
    swap.apply()
    back = again(swap).reversed()
    back.apply()
    redo = back.reversed()
    redo.revert()
    assert content(live) == {"file": ("file", b"old")}


def test_what_is_not_named_stays(live: Path) -> None:
    fill(live, "old", ["file", "directory", "neighbor"])
    swap = prepare(live, ["file", "directory"], new=["file"])
    swap.apply()
    assert content(live) == {"file": ("file", b"new"), "neighbor": ("file", b"old")}
    swap.revert()
    assert content(live)["directory/old"] == ("file", b"old")


def test_a_name_may_be_missing_before(live: Path) -> None:
    swap = prepare(live, ["directory", "file"], new=["directory"])
    swap.apply()
    assert content(live) == {"directory": ("directory", b""), "directory/new": ("file", b"new")}
    swap.revert()
    assert content(live) == {}
    assert (live / PLACE / "staged" / "directory" / "new").exists()


def test_whole_means_all_but_private_places(live: Path) -> None:
    fill(live, "old", ["file", ".holdfast-notes"])
    other = live / ".holdfast-fedcba9876543210-3"
    other.mkdir(mode=0o700)
    prepare(live, None, new=["file"]).apply()
    assert content(live) == {"file": ("file", b"new")}
    assert other.exists()


def test_whole_may_be_more_than_one_listing(live: Path) -> None:
    names = [f"{number}" for number in range(1500)]
    fill(live, "old", names)
    swap = prepare(live, None, new=names[::2])
    swap.apply()
    assert content(live) == dict.fromkeys(names[::2], ("file", b"new"))
    swap.revert()
    assert content(live) == dict.fromkeys(names, ("file", b"old"))


def test_whole_takes_the_attributes_of_the_directory_along(live: Path) -> None:
    fill(live, "old", ["file"])
    live.chmod(0o750)
    os.utime(live, ns=(1, 1_000_000_001))
    (live / PLACE).mkdir(mode=0o700)
    fill(live / PLACE / "staged", "new", ["file"])
    (live / PLACE / "staged").chmod(0o2755)
    os.utime(live / PLACE / "staged", ns=(2, 2_000_000_002))
    os.utime(live, ns=(1, 1_000_000_001))
    swap = RenameSwap.prepare(live / PLACE, None)

    def attributes() -> tuple[int, int]:
        status = live.stat()
        return status.st_mode & 0o7777, status.st_mtime_ns

    swap.apply()
    assert attributes() == (0o2755, 2_000_000_002)
    again(swap).revert()
    assert attributes() == (0o750, 1_000_000_001)
    swap.apply()
    swap.settle()
    again(swap).reversed().apply()
    assert attributes() == (0o750, 1_000_000_001)


def test_extended_attributes_of_the_directory_change_and_come_back(tmp_path: Path) -> None:
    live = tmp_path / "live"
    fill(live, "old", ["file"])
    try:
        os.setxattr(live, "user.old", b"1")
    except (OSError, AttributeError):
        pytest.skip("the file system has none")
    (live / PLACE).mkdir(mode=0o700)
    fill(live / PLACE / "staged", "new", ["file"])
    os.setxattr(live / PLACE / "staged", "user.new", b"2")
    swap = RenameSwap.prepare(live / PLACE, None)
    swap.apply()
    assert os.listxattr(live) == ["user.new"]
    again(swap).revert()
    assert os.listxattr(live) == ["user.old"]


@pytest.mark.parametrize("whole", [False, True], ids=["names", "whole"])
def test_what_the_service_makes_anew_in_between_is_put_aside(live: Path, whole: bool) -> None:
    fill(live, "old", ["directory", "file"])
    names = None if whole else ["directory", "file"]
    swap = prepare(live, names, new=["directory", "file"])
    old = content(live)
    # As if killed after the old names went, before the new ones came; then the service makes its own.
    place = live / PLACE
    (place / "kept").mkdir()
    for name in ("directory", "file"):
        (live / name).rename(place / "kept" / name)
    (live / "directory").mkdir()
    (live / "directory" / "stray").touch()
    again(swap).revert()
    assert content(live) == old
    swap.apply()
    # As if killed in the midst of the new names going live.
    (live / "file").rename(place / "staged.going" / "file")
    (live / "file").write_text("stray")
    again(swap).apply()
    assert content(live)["file"] == ("file", b"new")
    (live / "directory").rename(place / "staged.going" / "directory")
    (live / "directory").mkdir()
    again(swap).revert()
    assert content(live) == old


def test_directories_that_their_owner_may_not_write_move_too(live: Path) -> None:
    live.chmod(0o777)

    def check() -> None:
        fill(live, "old", ["d-both", "d-old"])
        for name in ("d-both", "d-old"):
            (live / name).chmod(0o555)
        (live / PLACE).mkdir(mode=0o700)
        fill(live / PLACE / "staged", "new", ["d-both", "d-new"])
        for name in ("d-both", "d-new"):
            (live / PLACE / "staged" / name).chmod(0o511)
        old, new = modes(live), modes(live / PLACE / "staged")
        swap = RenameSwap.prepare(live / PLACE, ["d-both", "d-old", "d-new"])
        swap.apply()
        assert modes(live) == new
        again(swap).revert()
        assert modes(live) == old
        swap.apply()
        swap.settle()
        (live / "d-new").chmod(0o500)
        back = again(swap).reversed()
        back.apply()
        assert modes(live) == old
        back.settle()
        back.reversed().apply()
        assert modes(live) == {**new, "d-new": 0o500}

    def modes(directory: Path) -> dict[str, int]:
        return {path.name: path.stat().st_mode & 0o777 for path in directory.glob("d-*")}

    as_nobody(check)


def test_a_missing_private_place_is_an_error_and_nothing_is_moved(live: Path) -> None:
    fill(live, "old", ["file"])
    swap = prepare(live, ["file"], new=["file"])
    swap.discard()
    steps: list[Callable[[], object]] = [swap.apply, swap.revert, swap.reversed, swap.settle]
    for step in steps:
        with pytest.raises(RestoreError, match="live"):
            step()
    assert content(live) == {"file": ("file", b"old")}
    swap.discard()


def test_a_private_place_that_others_may_use_is_refused(live: Path) -> None:
    swap = prepare(live, ["file"], new=["file"])
    (live / PLACE).chmod(0o755)
    for step in (swap.apply, swap.revert, swap.discard):
        with pytest.raises(JournalRefused):
            step()


def test_nothing_kept_nothing_reversed(live: Path) -> None:
    swap = prepare(live, ["file"], new=["file"])
    with pytest.raises(RestoreError, match="gone"):
        swap.reversed()


def test_links_are_moved_and_not_followed(live: Path) -> None:
    outside = live.parent / "outside"
    fill(outside, "precious", ["file"])
    (live / "models").symlink_to(outside)
    swap = prepare(live, ["models"], new=[])
    swap.apply()
    assert content(live) == {}
    swap.revert()
    swap.discard()
    found: dict[str, Seen] = look(live.parent)
    assert found["outside/file"].content == b"precious"
    assert found["live/models"].kind == "symlink"
