"""The files source: which kinds of things it gives, and what it says of them."""

from __future__ import annotations

import os
import socket
import stat
from itertools import islice
from pathlib import Path

import pytest

from holdfast.errors import SourceMissing
from holdfast.events import Event, Skipped
from holdfast.model import SourceRecord, is_unchanged
from holdfast.sources.base import Item, Method, Source
from sources.files_source import content_of, files_source, item_at, paths_of, read_all, scan


def test_it_is_a_source(tmp_path: Path) -> None:
    source: Source = files_source(tmp_path)
    (tmp_path / "models").mkdir()
    item: Item = next(iter(files_source(tmp_path).scan(print)))
    assert source.method is Method.FILES
    assert item.entry.kind == "directory"


@pytest.mark.parametrize(("component", "tolerates"), [("models", False), ("config", True), ("logs", True)])
def test_only_models_may_not_change_while_read(tmp_path: Path, component: str, tolerates: bool) -> None:
    assert files_source(tmp_path, component=component).tolerates_change is tolerates


def test_the_record_names_the_roots_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / ".env").touch()
    source = files_source(tmp_path, [".env", "Dockerfile", "config"], component="config", optional=True)
    list(source.scan(print))
    assert source.record() == SourceRecord("config", "main", "files", roots=("files/.env", "files/config"))


def test_every_attribute_of_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "models" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    path.chmod(0o4751)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    status = path.lstat()

    listed = item_at(files_source(tmp_path), "files/models/weights.bin").entry
    entry, content = read_all(files_source(tmp_path))["files/models/weights.bin"]

    assert content == b"weights"
    assert listed == entry
    assert (entry.kind, entry.size, entry.mode) == ("file", 7, 0o4751)
    assert (entry.uid, entry.gid, entry.inode) == (status.st_uid, status.st_gid, status.st_ino)
    assert (entry.mtime_ns, entry.ctime_ns) == (1_600_000_000_123_456_789, status.st_ctime_ns)
    assert (entry.digest, entry.target, entry.token, entry.xattrs) == ("", "", "", None)
    assert not entry.racy
    assert not entry.sparse


def test_directories_are_entries_empty_ones_and_the_root_too(tmp_path: Path) -> None:
    (tmp_path / "models" / "empty").mkdir(parents=True)
    (tmp_path / "models" / "empty").chmod(0o1750)
    found = read_all(files_source(tmp_path))
    assert list(found) == ["files/models", "files/models/empty"]
    entry, content = found["files/models/empty"]
    assert (entry.kind, entry.size, entry.mode, content) == ("directory", 0, 0o1750, None)


def test_links_are_kept_as_links_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    models = tmp_path / "models"
    models.mkdir()
    (models / "latest").symlink_to("../outside")
    (models / "nowhere").symlink_to("gone")
    found = read_all(files_source(tmp_path))
    assert {path: (entry.kind, entry.target, entry.size) for path, (entry, _) in found.items()} == {
        "files/models": ("directory", "", 0),
        "files/models/latest": ("symlink", "../outside", 0),
        "files/models/nowhere": ("symlink", "gone", 0),
    }


def test_names_and_targets_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    models = os.fsencode(tmp_path / "models")
    os.mkdir(models)
    os.mkdir(models + b"/d\xff")
    with open(models + b"/d\xff/caf\xe9\n", "wb") as file:
        file.write(b"x")
    os.symlink(b"caf\xe9\n", models + b"/d\xff/link")
    found = read_all(files_source(tmp_path))
    assert found["files/models/d\udcff/caf\udce9\n"][1] == b"x"
    assert found["files/models/d\udcff/link"][0].target == "caf\udce9\n"


def test_further_names_of_a_file_are_hard_links_to_its_first(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "sub").mkdir(parents=True)
    (models / "m").write_bytes(b"shared")
    os.link(models / "m", models / "a")
    os.link(models / "m", models / "sub" / "z\udce9")
    found = read_all(files_source(tmp_path))
    kinds = {path: (entry.kind, entry.target, entry.size) for path, (entry, _) in found.items()}
    assert kinds["files/models/a"] == ("file", "", 6)
    assert kinds["files/models/m"] == ("hardlink", "files/models/a", 0)
    assert kinds["files/models/sub/z\udce9"] == ("hardlink", "files/models/a", 0)
    assert found["files/models/m"][1] is None


def test_a_file_whose_other_name_is_elsewhere_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").touch()
    os.link(tmp_path / "models" / "m", tmp_path / "elsewhere")
    assert [entry.kind for entry in scan(files_source(tmp_path))] == ["directory", "file"]


def test_hard_links_across_roots_of_one_source_are_found(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "m").touch()
    os.link(tmp_path / "one" / "m", tmp_path / "two" / "m")
    assert scan(files_source(tmp_path, ["two", "one"]))[-1].target == "files/one/m"


def linked(tmp_path: Path) -> Path:
    """A directory in which ``b`` and ``c`` are further names of ``a``."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "a").write_bytes(b"old")
    os.link(models / "a", models / "b")
    os.link(models / "a", models / "c")
    return models


def test_a_second_name_stands_for_itself_when_the_first_is_gone_once_opened(tmp_path: Path) -> None:
    models = linked(tmp_path)
    items = files_source(tmp_path).scan(print)
    first = list(islice(items, 2))[1]
    (models / "a").unlink()
    with pytest.raises(SourceMissing):
        first.open()
    second, third = items
    assert second.entry.kind == "file"
    assert content_of(second.open()[1]) == b"old"
    assert third.entry.target == "files/models/b"


def test_a_second_name_stands_for_itself_when_the_first_was_replaced_once_opened(tmp_path: Path) -> None:
    models = linked(tmp_path)
    (tmp_path / "new").write_bytes(b"new")
    items = files_source(tmp_path).scan(print)
    first = list(islice(items, 2))[1]
    (tmp_path / "new").rename(models / "a")
    assert content_of(first.open()[1]) == b"new"
    second, third = items
    assert second.entry.kind == "file"
    assert content_of(second.open()[1]) == b"old"
    assert third.entry.target == "files/models/b"


def test_a_hard_link_that_became_a_file_of_its_own_comes_as_a_file(tmp_path: Path) -> None:
    models = linked(tmp_path)
    item = item_at(files_source(tmp_path), "files/models/b")
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").rename(models / "b")
    entry, content = item.open()
    assert item.entry.kind == "hardlink"
    assert (entry.kind, entry.target) == ("file", "")
    assert content_of(content) == b"new"


def test_sockets_fifos_and_devices_are_passed_over_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")  # the name of a socket may have no more than a hundred characters
    os.mkfifo("pipe")
    expected = ["pipe is a fifo", "sock is a socket"]
    if os.geteuid() == 0:
        os.mknod("a\x1bnull", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        expected.insert(0, r"a\x1bnull' is a device")
    events: list[Event] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
        assert [entry.path for entry in scan(files_source(tmp_path), events.append)] == ["files/models"]
    assert len(events) == len(expected)
    for event, words in zip(events, expected, strict=True):
        assert isinstance(event, Skipped)
        assert f"/models/{words} and was passed over" in event.message


def test_what_is_never_to_be_backed_up_is_left_out_with_all_that_is_in_it(tmp_path: Path) -> None:
    real = tmp_path / "real"
    for name in ("backups/full", "models/backups", "config"):
        (real / name).mkdir(parents=True)
    for name in ("backups/full/x", "models/backups/mine", "config/key", "config/key2", "holdfast.toml"):
        (real / name).touch()
    (tmp_path / "service").symlink_to(real)
    service = tmp_path / "service"
    source = files_source(
        service,
        ["."],
        never=[service / "backups", real / "config" / "key", service / "holdfast.toml", real / "not-there"],
    )
    assert paths_of(source) == [
        "files",
        "files/config",
        "files/config/key2",
        "files/models",
        "files/models/backups",
        "files/models/backups/mine",
    ]


def test_what_a_restore_is_staging_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "models" / "deep" / ".holdfast-7f3a").mkdir(parents=True)
    (tmp_path / "models" / ".holdfast-1").touch()
    (tmp_path / "models" / ".holdfast").touch()
    (tmp_path / ".holdfast-2").touch()
    source = files_source(tmp_path, ["models", ".holdfast-2", ".*"])
    assert paths_of(source) == ["files/models", "files/models/.holdfast", "files/models/deep"]


def test_what_did_not_change_is_recognized_without_reading(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "d").mkdir(parents=True)
    (models / "f").write_bytes(b"1" * 400_000)
    (models / "l").symlink_to("f")
    os.link(models / "f", models / "h")
    source = files_source(tmp_path)
    before = [entry for entry, _ in read_all(source).values()]
    assert all(is_unchanged(known, now) for known, now in zip(before, scan(source), strict=True))
    (models / "f").write_bytes(b"2" * 400_000)
    changed = [
        now.path for known, now in zip(before, scan(source), strict=True) if not is_unchanged(known, now)
    ]
    assert changed == ["files/models/f", "files/models/h"]
