"""The files source: patterns for what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigError, SourceUnreadable
from holdfast.sources.files._excludes import Excludes
from sources.files_source import bound_by_permissions, files_source, paths_of

TREE = [
    ".hidden",
    "a.bin",
    "a.tmp",
    "b[1]",
    "cache/",
    "cache/a.bin",
    "cache/deep/",
    "cache/deep/a.bin",
    "sub/",
    "sub/cache/",
    "sub/cache/x",
    "sub/deep/",
    "sub/deep/er/",
    "sub/deep/er/a.bin",
    "sub/tmp",
    "tmp/",
    "tmp/keep",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("service")
    (root / "models").mkdir()
    for path in TREE:
        if path.endswith("/"):
            (root / "models" / path).mkdir()
        else:
            (root / "models" / path).touch()
    return root


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        # a name, at any depth
        ("a.bin", "a.bin cache/a.bin cache/deep/a.bin sub/deep/er/a.bin"),
        ("*.tmp", "a.tmp"),
        ("models/*", " ".join(TREE)),
        (".*", ".hidden"),
        ("?.tmp", "a.tmp"),
        ("*a*b*n", "a.bin cache/a.bin cache/deep/a.bin sub/deep/er/a.bin"),
        ("cache", "cache/ cache/a.bin cache/deep/ cache/deep/a.bin sub/cache/ sub/cache/x"),
        ("A.bin", ""),
        ("bin", ""),
        # directories only
        ("tmp", "sub/tmp tmp/ tmp/keep"),
        ("tmp/", "tmp/ tmp/keep"),
        ("a.bin/", ""),
        # whole paths, from the service root or from the root of the source
        ("models/a.bin", "a.bin"),
        ("/models/a.bin", "a.bin"),
        ("/a.bin", "a.bin"),
        ("cache/a.bin", "cache/a.bin"),
        ("cache/*", "cache/a.bin cache/deep/ cache/deep/a.bin"),
        ("*/cache", "cache/ cache/a.bin cache/deep/ cache/deep/a.bin sub/cache/ sub/cache/x"),
        ("/cache", "cache/ cache/a.bin cache/deep/ cache/deep/a.bin"),
        ("./cache/", "cache/ cache/a.bin cache/deep/ cache/deep/a.bin"),
        ("/tmp/", "tmp/ tmp/keep"),
        ("sub/tmp/", ""),
        ("sub?tmp", ""),
        ("sub[/]tmp", ""),
        # any number of directories
        ("**/a.bin", "a.bin cache/a.bin cache/deep/a.bin sub/deep/er/a.bin"),
        ("sub/**", "sub/cache/ sub/cache/x sub/deep/ sub/deep/er/ sub/deep/er/a.bin sub/tmp"),
        ("models/**/deep", "cache/deep/ cache/deep/a.bin sub/deep/ sub/deep/er/ sub/deep/er/a.bin"),
        ("sub/**/a.bin", "sub/deep/er/a.bin"),
        ("cache/**/a.bin", "cache/a.bin cache/deep/a.bin"),
        # characters
        ("[ab].*", "a.bin a.tmp cache/a.bin cache/deep/a.bin sub/deep/er/a.bin"),
        ("[!b-z].tmp", "a.tmp"),
        ("[^b-z].tmp", "a.tmp"),
        ("[z-a].tmp", ""),
        ("b[1]", ""),
        (r"b\[1]", "b[1]"),
        ("b[[]1[]]", "b[1]"),
        ("b[", ""),
        ("a\\", ""),
    ],
)
def test_a_pattern_leaves_out_just_what_it_matches(service: Path, pattern: str, gone: str) -> None:
    kept = [path.rstrip("/") for path in TREE if path not in gone.split()]
    found = [
        path.removeprefix("files/models/") for path in paths_of(files_source(service, exclude=[pattern]))
    ]
    assert found == ["files/models", *kept]


def test_several_patterns_leave_out_what_any_of_them_matches(service: Path) -> None:
    source = files_source(service, exclude=["*.bin", "sub/", "/tmp/keep", "cache/deep/"])
    assert paths_of(source) == [
        "files/models",
        *(f"files/models/{name}" for name in (".hidden", "a.tmp", "b[1]", "cache", "tmp")),
    ]


def test_outside_the_service_root_a_whole_path_begins_at_the_file_system_root(service: Path) -> None:
    models = str(service / "models")
    source = files_source(service / "models" / "tmp", [models], exclude=[f"{models}/cache", "/sub"])
    found = [path.removeprefix(f"absolute{models}/") for path in paths_of(source)]
    assert found[1:] == [path.rstrip("/") for path in TREE if not path.startswith(("cache/", "sub/"))]


@pytest.mark.parametrize("pattern", ["shut", "shut/", "models/shut", "**/shut/"])
def test_an_excluded_directory_is_not_even_opened(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "models" / "shut").mkdir(parents=True)
    (tmp_path / "models" / "shut").chmod(0)
    with bound_by_permissions():
        with pytest.raises(SourceUnreadable):
            paths_of(files_source(tmp_path))
        assert paths_of(files_source(tmp_path, exclude=[pattern])) == ["files/models"]


def test_a_link_to_a_directory_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tmp").symlink_to("/tmp")
    assert "files/models/tmp" in paths_of(files_source(tmp_path, exclude=["tmp/"]))


def test_names_that_are_not_utf8_and_newlines_are_matched_like_others(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "caf\udce9").touch()
    (tmp_path / "models" / "a\nb").touch()
    (tmp_path / "models" / "sub" / "x\ny").mkdir(parents=True)
    source = files_source(tmp_path, exclude=["caf?", "a*b", "sub/**"])
    assert paths_of(source) == ["files/models", "files/models/sub"]


@pytest.mark.parametrize("pattern", ["", "/", "//", ".", "!keep", "../x", "a/../b"])
def test_a_pattern_that_cannot_mean_anything_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match="exclude pattern") as refused:
        files_source(tmp_path, exclude=[pattern])
    assert refused.value.hint


@given(
    st.text("ab*?[]!^-\\&~|.{}()+$", min_size=1, max_size=12), st.text("ab-]\\&~|.", min_size=1, max_size=8)
)
def test_no_pattern_is_misread_as_a_regular_expression(pattern: str, name: str) -> None:
    if not pattern.startswith("!") and pattern not in (".", ".."):
        matched = Excludes([pattern]).matches(name, "files/" + name, (6,))
        if not set(pattern) & set("*?[\\"):
            assert matched is (pattern == name)


def test_many_stars_take_no_more_than_a_moment() -> None:
    assert not Excludes(["*a" * 60 + "b"]).matches("a" * 250, "files/" + "a" * 250, (6,))
