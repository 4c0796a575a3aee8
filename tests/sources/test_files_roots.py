"""The files source: where it begins, and what its entries are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, SourceMissing, SourceUnreadable
from holdfast.sources.files import _roots
from sources.files_source import bound_by_permissions, files_source, paths_of, read_all, scan


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).touch()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["models"], ["models", "models/m"]),
        (["models/"], ["models", "models/m"]),
        (["./models"], ["models", "models/m"]),
        (["config/../models"], ["models", "models/m"]),
        (["../service/models"], ["models", "models/m"]),
        (["models/m"], ["models/m"]),
        (["config", ".env"], [".env", "config", "config/a.toml"]),
        (["*.toml", "*.yaml"], ["a.toml", "b.toml"]),
        (["[a].toml"], ["a.toml"]),
        (["config/*.toml"], ["config/a.toml"]),
        (["mod*els"], ["models", "models/m"]),
        ([".*.toml"], [".hidden.toml"]),
        (["x*.y"], ["x*.y"]),
        # overlapping
        (["models", "models"], ["models", "models/m"]),
        (["models/m", "models"], ["models", "models/m"]),
        (["a.toml", "*.toml", "./b.toml"], ["a.toml", "b.toml"]),
        (["models", "models-2", "models.d", "models/m"], ["models", "models/m", "models-2", "models.d"]),
    ],
)
def test_paths_in_the_service_root(tmp_path: Path, paths: Sequence[str], expected: list[str]) -> None:
    service = tmp_path / "service"
    make(service, "models/m", "models-2/", "models.d/", "config/a.toml", ".env")
    make(service, "a.toml", "b.toml", ".hidden.toml", "x*.y", "x1.y")
    assert paths_of(files_source(service, paths)) == [f"files/{path}" for path in expected]


def test_the_service_root_itself_may_be_a_root(tmp_path: Path) -> None:
    make(tmp_path, "a", "b/c")
    assert paths_of(files_source(tmp_path, ["."])) == ["files", "files/a", "files/b", "files/b/c"]
    assert paths_of(files_source(tmp_path, ["b", "."])) == ["files", "files/a", "files/b", "files/b/c"]


def test_a_relative_service_root_is_taken_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "models/m")
    monkeypatch.chdir(tmp_path)
    source = files_source(Path("."))
    monkeypatch.chdir("/")
    assert paths_of(source) == ["files/models", "files/models/m"]


def test_what_lies_outside_the_service_root_goes_by_its_absolute_path(tmp_path: Path) -> None:
    make(tmp_path, "service/models/m", "service-2/m", "data/m")
    outside = f"absolute{tmp_path}"
    paths = ["models", "../data", str(tmp_path / "service-2"), str(tmp_path / "service" / "models")]
    assert paths_of(files_source(tmp_path / "service", paths)) == [
        f"{outside}/data",
        f"{outside}/data/m",
        f"{outside}/service-2",
        f"{outside}/service-2/m",
        "files/models",
        "files/models/m",
    ]


@pytest.mark.parametrize("service", ["real", "link"])
@pytest.mark.parametrize("named_by", ["real", "link"])
def test_a_service_root_behind_a_link_is_still_the_service_root(
    tmp_path: Path, service: str, named_by: str
) -> None:
    make(tmp_path, "real/models/m")
    (tmp_path / "link").symlink_to("real")
    source = files_source(tmp_path / service, [str(tmp_path / named_by / "models")])
    assert paths_of(source) == ["files/models", "files/models/m"]


def test_going_up_from_behind_a_link_goes_up_where_the_link_leads(tmp_path: Path) -> None:
    make(tmp_path, "service/data/m", "elsewhere/sub/", "elsewhere/data/wanted")
    (tmp_path / "service" / "link").symlink_to(tmp_path / "elsewhere" / "sub")
    assert paths_of(files_source(tmp_path / "service", ["link/../data"])) == [
        f"absolute{tmp_path}/elsewhere/data",
        f"absolute{tmp_path}/elsewhere/data/wanted",
    ]


def test_a_root_that_is_a_link_is_followed_and_keeps_its_name(tmp_path: Path) -> None:
    make(tmp_path, "big/disk/m", "settings")
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "models").symlink_to("../big/disk")
    (tmp_path / "service" / "app.toml").symlink_to("../settings")
    (tmp_path / "settings").write_bytes(b"port = 1")
    found = read_all(files_source(tmp_path / "service", ["models", "*.toml"]))
    assert {path: entry.kind for path, (entry, _) in found.items()} == {
        "files/app.toml": "file",
        "files/models": "directory",
        "files/models/m": "file",
    }
    assert found["files/app.toml"][1] == b"port = 1"


def test_a_root_that_is_a_link_into_another_root_is_kept_as_the_link_it_is(tmp_path: Path) -> None:
    make(tmp_path, "models/v1/m")
    (tmp_path / "current").symlink_to("models/v1")
    (tmp_path / "same").symlink_to("models")
    found = scan(files_source(tmp_path, ["current", "models", "same", "current/m"]))
    assert [(entry.path, entry.kind, entry.target) for entry in found] == [
        ("files/current", "symlink", "models/v1"),
        ("files/models", "directory", ""),
        ("files/models/v1", "directory", ""),
        ("files/models/v1/m", "file", ""),
        ("files/same", "symlink", "models"),
    ]


def test_a_root_that_another_one_holds_by_a_way_without_links_is_not_read_twice(tmp_path: Path) -> None:
    make(tmp_path, "models/v1/m")
    (tmp_path / "link").symlink_to("models")
    source = files_source(tmp_path, ["link/v1", "models"])
    assert paths_of(source) == ["files/models", "files/models/v1", "files/models/v1/m"]


def test_a_root_beyond_a_link_in_another_root_goes_by_its_real_path(tmp_path: Path) -> None:
    make(tmp_path, "service/data/x", "big/models/m", "big/other")
    (tmp_path / "service" / "data" / "big").symlink_to(tmp_path / "big")
    (tmp_path / "service" / "data" / "one").symlink_to(tmp_path / "big" / "other")
    assert paths_of(files_source(tmp_path / "service", ["data", "data/big/models", "data/one"])) == [
        f"absolute{tmp_path}/big/models",
        f"absolute{tmp_path}/big/models/m",
        f"absolute{tmp_path}/big/other",
        "files/data",
        "files/data/big",
        "files/data/one",
        "files/data/x",
    ]


def test_a_configured_path_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    make(tmp_path, "models/m")
    source = files_source(tmp_path, ["models", "more/models"])
    with pytest.raises(SourceMissing, match=f"{tmp_path}/more/models is to be backed up and is not there"):
        source.scan(print)
    assert not source.present()


def test_the_directory_of_a_configured_pattern_must_be_there(tmp_path: Path) -> None:
    make(tmp_path, "models/m")
    with pytest.raises(SourceMissing, match="conf"):
        files_source(tmp_path, ["models", "conf/*.toml"]).scan(print)
    assert paths_of(files_source(tmp_path, ["models/m", "conf/*.toml"], optional=True)) == ["files/models/m"]


def test_a_configured_pattern_may_match_nothing_beside_something(tmp_path: Path) -> None:
    make(tmp_path, "models/m")
    assert paths_of(files_source(tmp_path, ["models/m", "*.toml"])) == ["files/models/m"]


def test_optional_paths_may_be_missing_but_not_all(tmp_path: Path) -> None:
    paths = [".env", "Dockerfile", "*.toml"]
    source = files_source(tmp_path, paths, optional=True)
    assert not source.present()
    with pytest.raises(SourceMissing, match=r"models main: of \.env, Dockerfile, \*\.toml nothing is there"):
        source.scan(print)
    (tmp_path / "Dockerfile").touch()
    assert source.present()
    assert paths_of(source) == ["files/Dockerfile"]


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("target", ["/not/mounted", "models"])
def test_a_root_that_is_a_link_to_nowhere_is_missing_optional_or_not(
    tmp_path: Path, optional: bool, target: str
) -> None:
    make(tmp_path, "config")
    (tmp_path / "models").symlink_to(target)
    with pytest.raises(SourceMissing, match="models is a link to"):
        files_source(tmp_path, ["models", "config"], optional=optional).scan(print)


def test_a_link_to_nowhere_that_a_pattern_found_is_kept_as_a_link(tmp_path: Path) -> None:
    make(tmp_path, "config/")
    (tmp_path / "a.toml").symlink_to("gone")
    (tmp_path / "config" / "b.toml").symlink_to("gone")
    found = scan(files_source(tmp_path, ["*.toml", "config", "config/*.toml"]))
    assert [(entry.path, entry.kind) for entry in found] == [
        ("files/a.toml", "symlink"),
        ("files/config", "directory"),
        ("files/config/b.toml", "symlink"),
    ]


def test_a_root_that_vanishes_after_it_was_found_is_missing(tmp_path: Path) -> None:
    make(tmp_path, "a", "b/", "c/", "d.toml", "e")
    source = files_source(tmp_path, ["a", "b", "*.toml", "e"])
    items = source.scan(print)
    assert next(items).entry.path == "files/a"
    (tmp_path / "d.toml").unlink()
    assert [item.entry.path for item in items] == ["files/b", "files/e"]
    assert source.record().roots == ("files/a", "files/b", "files/e")

    items = source.scan(print)
    next(items)
    (tmp_path / "b").rmdir()
    with pytest.raises(SourceMissing, match="b is gone"):
        next(items)


def test_that_nothing_can_be_backed_up_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "models")
    with pytest.raises(SourceMissing, match=r"nothing that can be backed up at .*/models"):
        scan(files_source(tmp_path))


def test_excludes_apply_to_the_roots_as_well(tmp_path: Path) -> None:
    make(tmp_path, "a.toml", "b.toml", "config/c", ".env")
    paths = ["*.toml", "config", ".env"]
    source = files_source(tmp_path, paths, exclude=["b.toml", "/.env", "config/"])
    assert paths_of(source) == ["files/a.toml"]


def test_that_everything_is_excluded_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "models/m")
    with pytest.raises(SourceMissing, match="nothing to back up as models main"):
        files_source(tmp_path, exclude=["*"]).scan(print)


def test_a_root_in_what_is_never_backed_up_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "holdfast.toml", "a.toml", "backups/full/x")
    (tmp_path / "b.toml").symlink_to("holdfast.toml")
    source = files_source(
        tmp_path, ["*.toml", "backups/full"], never=[tmp_path / "holdfast.toml", tmp_path / "backups"]
    )
    assert paths_of(source) == ["files/a.toml"]


def test_a_pattern_that_matches_very_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "1.log", "2.log", "3.log")
    monkeypatch.setattr(_roots, "MATCHES_MAX", 2)
    with pytest.raises(ConfigError, match=r"\*\.log matches more than 2") as refused:
        files_source(tmp_path, ["*.log"]).scan(print)
    assert "directory" in refused.value.hint


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="not a path"):
        files_source(tmp_path, [path])


@pytest.mark.parametrize("path", ["shut/models", "shut/*.toml", "link"])
def test_that_a_root_may_not_be_reached_is_no_reason_to_call_it_missing(tmp_path: Path, path: str) -> None:
    make(tmp_path, "shut/models/m", "shut/a.toml")
    (tmp_path / "link").symlink_to("shut/models")
    (tmp_path / "shut").chmod(0)
    with bound_by_permissions(), pytest.raises(SourceUnreadable, match=f"cannot read {tmp_path}"):
        files_source(tmp_path, [path], optional=True).scan(print)


def test_root_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.toml", "wb"):
        pass
    assert paths_of(files_source(tmp_path, ["*.toml"])) == ["files/caf\udce9.toml"]
