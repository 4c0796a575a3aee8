from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.config import Settings, load_settings
from holdfast.errors import ConfigError


def load(root: Path, text: str = "", **environ: str) -> Settings:
    (root / "holdfast.toml").write_text(text)
    return load_settings(root, environ)


def names(settings: Settings, component: str) -> list[str]:
    (spec,) = (spec for spec in settings.files if spec.component == component)
    return [str(path.relative_to(settings.root)) for path in spec.paths]


def test_without_configuration_what_is_usual_is_found(tmp_path: Path) -> None:
    usual = (".env", "pyproject.toml", "b.yaml", "a.yaml", "ci.yml", "Dockerfile", "docker-compose.yml")
    for name in (*usual, "holdfast.key", "README.md", "app.py"):
        (tmp_path / name).touch()
    for name in ("models", "logs", "config", "src"):
        (tmp_path / name).mkdir()
    settings = load(tmp_path)
    assert [(spec.component, spec.name) for spec in settings.files] == [
        ("models", "models"),
        ("config", "config"),
        ("logs", "logs"),
    ]
    assert names(settings, "models") == ["models"]
    assert names(settings, "logs") == ["logs"]
    assert names(settings, "config") == [
        ".env",
        "pyproject.toml",
        "a.yaml",
        "b.yaml",
        "ci.yml",
        "docker-compose.yml",
        "Dockerfile",
        "config",
    ]
    settings.check_paths()


def test_what_is_usual_and_not_there_is_not_listed(tmp_path: Path) -> None:
    assert [spec.paths for spec in load(tmp_path).files] == [(), (), ()]


def test_a_virtual_environment_in_dotenv_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert names(load(tmp_path), "config") == []


def test_a_link_to_a_disk_that_is_gone_is_listed_so_that_it_is_missed(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("/nowhere/models")
    assert names(load(tmp_path), "models") == ["models"]


def test_keys_and_holdfast_toml_are_never_configuration(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('key_file = "key.yaml"\n')
    for name in ("holdfast.toml", "holdfast.key", "key.yaml", "app.toml"):
        (tmp_path / name).touch()
    settings = load_settings(tmp_path, {"HOLDFAST_CONFIG": "my.toml"})
    assert names(settings, "config") == ["app.toml"]
    never = {tmp_path.resolve() / name for name in ("my.toml", "key.yaml", "holdfast.toml", "holdfast.key")}
    assert all(set(spec.never) == never for spec in settings.files)


def test_what_is_configured_is_listed_even_when_it_is_not_there(tmp_path: Path) -> None:
    settings = load(tmp_path, '[models]\npaths = ["weights", "*.onnx", "../shared", "weights/"]')
    root = tmp_path.resolve()
    assert settings.files[0].paths == (root / "weights", root / "*.onnx", root.parent / "shared")


def test_a_pattern_is_replaced_by_what_it_matches(tmp_path: Path) -> None:
    root = tmp_path / "odd [root]"
    root.mkdir()
    for name in ("b.onnx", "a.onnx", "[x].bin", "x.bin"):
        (root / name).touch()
    settings = load(root, '[models]\npaths = ["*.onnx", "a.onnx", "[x].bin"]')
    assert names(settings, "models") == ["a.onnx", "b.onnx", "[x].bin"]


def test_files_are_looked_for_when_asked(tmp_path: Path) -> None:
    settings = load(tmp_path)
    (tmp_path / "models").mkdir()
    assert names(settings, "models") == ["models"]


@pytest.mark.parametrize(
    ("text", "directory"),
    [
        ('[models]\npaths = ["."]', "backups"),
        ('[logs]\npaths = ["var"]', "var/backups"),
        ('[models]\npaths = ["backups"]', "backups"),
        ("", "models/backups"),
        ("", "link/backups"),
        ("", "."),
    ],
)
def test_a_backup_directory_inside_what_is_backed_up_is_an_error(
    tmp_path: Path, text: str, directory: str
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "link").symlink_to("models")
    settings = load(tmp_path, text, BACKUP_DIR=directory)
    with pytest.raises(ConfigError) as caught:
        settings.check_paths()
    assert f"the backup directory {settings.backup_dir}" in str(caught.value)
    assert "(models)" in str(caught.value) or "(logs)" in str(caught.value)
    assert "BACKUP_DIR" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "inner", "outer"),
    [
        ('[models]\npaths = ["m"]\n[logs]\npaths = ["m/logs"]', "m/logs (logs)", "m (models)"),
        ('[models]\npaths = ["m", "m-1", "m/x"]', "m/x (models)", "m (models)"),
        ('[models]\npaths = ["m"]\n[logs]\npaths = ["link"]', "m (models)", "link (logs)"),
    ],
)
def test_sources_that_overlap_are_an_error_that_names_both(
    tmp_path: Path, text: str, inner: str, outer: str
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to("m")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text).check_paths()
    assert str(tmp_path.resolve() / inner) in str(caught.value)
    assert str(tmp_path.resolve() / outer) in str(caught.value)


def test_neighbours_are_no_overlap_and_one_file_may_have_two_names(tmp_path: Path) -> None:
    (tmp_path / "docker-compose.prod.yml").touch()
    (tmp_path / "docker-compose.yml").symlink_to("docker-compose.prod.yml")
    load(tmp_path, '[models]\npaths = ["m", "m-1", "m.1"]', BACKUP_DIR="m-backups").check_paths()
