"""The files source: the order of its entries, and trees of any width and depth."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import SourceChanged, SourceMissing, SourceUnreadable
from holdfast.events import ignore
from holdfast.model import order_key
from holdfast.sources.files import _walk
from holdfast.sources.files._spill import Spill
from sources.files_source import (
    bound_by_permissions,
    content_of,
    files_source,
    open_descriptors,
    paths_of,
    scan,
)

# Characters on both sides of the slash, one beyond the BMP, and bytes that are not UTF-8, which stand between.
names = st.text(st.sampled_from("\x01 -.09ab~é\uffee\U0001f600\udc80\udcff"), min_size=1, max_size=3)
trees: st.SearchStrategy[object] = st.recursive(
    st.none(), lambda below: st.dictionaries(names, below, max_size=5), max_leaves=25
)


def build(directory: Path, tree: object) -> Iterator[str]:
    """Makes a tree of directories (dictionaries) and files, and gives its paths."""
    directory.mkdir()
    if isinstance(tree, dict):
        for name, below in tree.items():
            if name in (".", ".."):
                continue
            yield name
            if below is None:
                (directory / name).touch()
            else:
                yield from (f"{name}/{path}" for path in list(build(directory / name, below)))


@settings(max_examples=60, deadline=None)
@given(trees=st.dictionaries(st.sampled_from(["a", "a-", "a.b", "b", "a\x01"]), trees, min_size=1))
def test_entries_of_all_roots_come_in_order_and_none_is_missing(
    tmp_path_factory: pytest.TempPathFactory, trees: dict[str, object]
) -> None:
    root = tmp_path_factory.mktemp("ordered", numbered=True)
    expected = []
    for name, tree in trees.items():
        expected += [f"files/{name}", *(f"files/{name}/{path}" for path in build(root / name, tree))]
    found = paths_of(files_source(root, list(trees)))
    assert found == sorted(expected, key=order_key)
    shutil.rmtree(root)


def wide(models: Path) -> list[str]:
    """A directory of many names, in which one of many names is nested."""
    models.mkdir(parents=True)
    made = [f"{number:03}é" for number in range(60)] + [f"{number:03}\udce9" for number in range(60)]
    for name in made:
        (models / name).touch()
    (models / "030").mkdir()
    for name in made:
        (models / "030" / name).touch()
    return [*made, "030", *(f"030/{name}" for name in made)]


@pytest.mark.parametrize("limit", [1, 7, 60, 121, 122, 200, 1000])
def test_directories_too_large_for_memory_come_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    expected = ["files/models", *(f"files/models/{name}" for name in wide(tmp_path / "models"))]
    held: list[int] = []
    write = Spill.write

    def counted(spill: Spill, run: list[str]) -> Iterator[str]:
        held.append(len(run))
        return write(spill, run)

    monkeypatch.setattr(_walk, "NAMES_IN_MEMORY", limit)
    monkeypatch.setattr(Spill, "write", counted)
    before = open_descriptors()
    assert paths_of(files_source(tmp_path)) == sorted(expected, key=order_key)
    assert max(held, default=0) <= limit
    assert sum(held) >= len(expected) - 1 - limit
    assert open_descriptors() == before


def test_a_large_directory_leaves_out_what_any_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for number in range(20):
        (models / f"{number}").write_bytes(b"SQLite format 3\0" + bytes(496))
        (models / f"{number}-wal").write_bytes(b"x")
        (models / f".holdfast-{number}").touch()
        (models / f"{number}.tmp").touch()
    monkeypatch.setattr(_walk, "NAMES_IN_MEMORY", 3)
    found = scan(files_source(tmp_path, exclude=["*.tmp"], never=[models / "7"]))
    expected = [f"files/models/{number}" for number in range(20) if number != 7]
    assert [entry.path for entry in found] == ["files/models", *sorted(expected)]
    assert all(entry.token for entry in found[1:])


def test_memory_does_not_grow_with_what_is_nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "models"
    for _ in range(10):
        directory.mkdir()
        for number in range(4):
            (directory / f"z{number}").touch()
        directory /= "a"
    monkeypatch.setattr(_walk, "NAMES_IN_MEMORY", 12)
    held = []
    write = Spill.write

    def counted(spill: Spill, run: list[str]) -> Iterator[str]:
        held.append(len(run))
        return write(spill, run)

    monkeypatch.setattr(Spill, "write", counted)
    found = paths_of(files_source(tmp_path))
    assert len(found) == 10 * 5
    assert found == sorted(found, key=order_key)
    assert sum(held) == 10 * 5 - 1 - 10  # the first two levels, five names each, stay in memory


def test_directories_beside_one_another_share_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in range(10):
        (tmp_path / "small" / str(directory)).mkdir(parents=True)
        (tmp_path / "large" / str(directory)).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "small" / str(directory) / str(number)).touch()
            (tmp_path / "large" / str(directory) / str(number)).touch()
            (tmp_path / "large" / str(directory) / f"{number:020}").touch()
    monkeypatch.setattr(_walk, "NAMES_IN_MEMORY", 18)
    ends = []
    write = Spill.write

    def counted(spill: Spill, run: list[str]) -> Iterator[str]:
        names = write(spill, run)
        ends.append(spill.end)
        return names

    monkeypatch.setattr(Spill, "write", counted)
    assert len(paths_of(files_source(tmp_path, ["small"]))) == 91
    assert ends == []
    assert len(paths_of(files_source(tmp_path, ["large"]))) == 171
    assert ends == [8 * (2 + 21)] * 10


DEPTH = 3000


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path far longer than the system takes in one piece, with a file in every directory, after the next one."""
    monkeypatch.chdir(tmp_path)
    for _ in range(DEPTH):
        os.mkdir("d")
        os.chdir("d")
        with open("e", "w") as file:
            file.write("x")
    yield tmp_path
    for _ in range(DEPTH):
        os.unlink("e")
        os.chdir("..")
        os.rmdir("d")


def test_a_tree_of_any_depth_is_read_with_few_descriptors(deep: Path) -> None:
    before = open_descriptors()
    most = 0
    depths = []
    last = ""
    for number, item in enumerate(files_source(deep, ["d"]).scan(ignore)):
        assert order_key(last) < order_key(item.entry.path)
        last = item.entry.path
        if item.entry.kind == "file":
            depths.append(last.count("/"))
            assert content_of(item.open()[1]) == b"x"
        if number % 100 == 0:
            most = max(most, open_descriptors() - before)
    assert depths == list(range(DEPTH + 1, 1, -1))
    assert most < 40
    del item
    assert open_descriptors() == before


def test_a_scan_that_is_given_up_frees_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide(tmp_path / "models")
    os.link(tmp_path / "models" / "000é", tmp_path / "models" / "000ü")
    monkeypatch.setattr(_walk, "NAMES_IN_MEMORY", 10)
    before = open_descriptors()
    items = files_source(tmp_path).scan(ignore)
    for _ in range(100):
        next(items)
    assert open_descriptors() > before
    items.close()  # type: ignore[attr-defined]  # it is a generator
    assert open_descriptors() == before


def test_what_is_deleted_after_it_was_listed_is_passed_over(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("a", "b", "c/d", "e"):
        (models / name).mkdir(parents=True)
    (models / "f").touch()
    items = files_source(tmp_path).scan(ignore)
    found = [next(items).entry.path, next(items).entry.path]
    shutil.rmtree(models / "b")
    shutil.rmtree(models / "c")
    (models / "f").unlink()
    found += [item.entry.path for item in items]
    assert found == ["files/models", "files/models/a", "files/models/e"]


def test_a_directory_replaced_by_a_link_is_not_entered(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "a").mkdir(parents=True)
    (models / "b").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    items = files_source(tmp_path).scan(ignore)
    found = [next(items).entry.path, next(items).entry.path]
    (models / "b").rmdir()
    (models / "b").symlink_to(tmp_path / "outside")
    found += [f"{item.entry.path} {item.entry.kind}" for item in items]
    assert found == ["files/models", "files/models/a", "files/models/b symlink"]


def test_an_item_opened_after_its_directory_was_replaced_is_an_error(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "a").mkdir(parents=True)
    (models / "a" / "m").write_bytes(b"listed")
    item = list(files_source(tmp_path).scan(ignore))[-1]
    assert content_of(item.open()[1]) == b"listed"
    (models / "a").rename(tmp_path / "away")
    assert content_of(item.open()[1]) == b"listed"  # by the directory that it was listed in

    item = list(files_source(tmp_path / "away", ["."]).scan(ignore))[-1]
    (tmp_path / "away").rename(tmp_path / "further")
    with pytest.raises(SourceChanged, match="away was moved or removed"):
        item.open()
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "m").write_bytes(b"other")
    with pytest.raises(SourceChanged, match="away was moved or removed"):
        item.open()
    (tmp_path / "away" / "m").unlink()
    (tmp_path / "away").rmdir()
    (tmp_path / "further").rename(tmp_path / "away")
    (tmp_path / "away" / "m").unlink()
    with pytest.raises(SourceMissing):
        item.open()


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o600])
def test_a_directory_that_may_not_be_read_is_an_error_that_names_it(tmp_path: Path, mode: int) -> None:
    shut = tmp_path / "models" / "a" / "shut"
    shut.mkdir(parents=True)
    (shut / "m").touch()
    shut.chmod(mode)
    with bound_by_permissions(), pytest.raises(SourceUnreadable, match=f"cannot read {shut}") as refused:
        paths_of(files_source(tmp_path))
    assert "exclude" in refused.value.hint
    shut.chmod(0o700)


def test_names_that_sort_before_the_slash_come_after_what_is_in_a_directory(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "a").mkdir(parents=True)
    for name in ("a/z", "a b", "a-", "a.", "a!", "a0"):
        (models / name).touch()
    found = [path.removeprefix("files/models/") for path in paths_of(files_source(tmp_path))]
    assert found[1:] == ["a", "a/z", "a b", "a!", "a-", "a.", "a0"]
    assert all(order_key(one) < order_key(other) for one, other in pairwise(found[1:]))
