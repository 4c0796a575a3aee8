from __future__ import annotations

import os
from pathlib import Path

import pytest

from forks import NOBODY, among_own_mounts, as_nobody, mount_memory, scratch
from holdfast.errors import JournalRefused, NoSpace, RestoreError
from holdfast.transaction import is_place_name, open_place, remove_place, restoring

NAME = ".holdfast-0123456789abcdef-0"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".holdfast-",
        ".holdfast-0123456789abcdef",
        f"{NAME}x",
        f"x{NAME}",
        f"{NAME}\n",
        f"a/{NAME}",
        "models",
    ],
)
def test_only_our_own_names_are_places(name: str) -> None:
    assert is_place_name(NAME)
    assert not is_place_name(name)


def test_a_place_goes_with_all_that_is_in_it_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    place = tmp_path / NAME
    (place / "a" / "b" / "c").mkdir(parents=True)
    (place / "a" / "to-directory").symlink_to(outside)
    (place / "a" / "b" / "to-file").symlink_to(outside / "file")
    os.link(outside / "file", place / "a" / "linked")
    (place / "risen-0").mkdir()
    (place / "risen-0" / "inner").mkdir()
    (place / "risen-1").touch()
    place.chmod(0o700)
    remove_place(place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "outside"]
    remove_place(place)
    remove_place(tmp_path / "gone" / NAME)


def test_a_place_may_be_deeper_than_any_path_and_wider_than_one_listing() -> None:
    with scratch() as directory:
        place = directory / NAME
        place.mkdir(mode=0o700)
        descriptor = os.open(place, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("deeper", dir_fd=descriptor)
            below = os.open("deeper", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        for number in range(2500):
            os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        os.close(descriptor)
        remove_place(place)
        assert list(directory.iterdir()) == []


def test_directories_without_permissions_go_too() -> None:
    with scratch() as directory:
        directory.chmod(0o777)
        place = directory / NAME

        def build_and_remove() -> None:
            inner = place / "a" / "b" / "c"
            inner.mkdir(parents=True)
            (inner / "file").touch()
            for path in (inner, inner.parent, inner.parent.parent):
                path.chmod(0)
            place.chmod(0o700)
            remove_place(place)

        as_nobody(build_and_remove)
        assert list(directory.iterdir()) == []


def test_what_is_mounted_in_a_place_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / NAME
    (place / "mounted").mkdir(parents=True)
    place.chmod(0o700)

    def remove_around_it() -> None:
        mount_memory(place / "mounted", size=1 << 16)
        (place / "mounted" / "precious").touch()
        with pytest.raises(OSError, match="another file system"):
            remove_place(place)
        assert (place / "mounted" / "precious").exists()

    among_own_mounts(remove_around_it)


@pytest.mark.parametrize("mode", [0o750, 0o701 | 0o004, 0o722])
def test_a_place_that_others_may_use_is_not_opened(tmp_path: Path, mode: int) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME).chmod(mode)
    with pytest.raises(JournalRefused):
        remove_place(tmp_path / NAME)
    assert (tmp_path / NAME).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_place_of_somebody_else_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(mode=0o700)
    os.chown(tmp_path / NAME, NOBODY, NOBODY)
    with pytest.raises(JournalRefused):
        remove_place(tmp_path / NAME)


def test_a_place_that_is_a_link_or_a_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / NAME).symlink_to("real")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(JournalRefused):
            open_place(NAME, directory)
        (tmp_path / NAME).unlink()
        (tmp_path / NAME).touch()
        with pytest.raises(JournalRefused):
            open_place(NAME, directory)
    finally:
        os.close(directory)


@pytest.mark.parametrize(
    ("number", "expected"), [(28, NoSpace), (122, NoSpace), (30, RestoreError), (5, RestoreError)]
)
def test_refusals_of_the_system_are_told_in_our_own_errors(number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected, match="cannot do it") as told, restoring("cannot do it"):
        raise OSError(number, os.strerror(number))
    assert type(told.value) is expected
