from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.config import Settings, load_settings
from holdfast.errors import ConfigError

TWO = '[database.a]\nurl = "sqlite:///a.db"\n[database.{}]\nurl = "sqlite:///b.db"\n'


def load(root: Path, text: str = "", **environ: str) -> Settings:
    (root / "holdfast.toml").write_text(text)
    return load_settings(root, environ)


def found(settings: Settings) -> dict[str, Path]:
    return {
        spec.name: spec.sqlite_path(settings.root).relative_to(settings.root) for spec in settings.databases
    }


@pytest.mark.parametrize("name", ["iit_ml_service.db", "x.sqlite3", "x.sqlite", "100% what?#.db"])
def test_the_one_database_in_the_root_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / ".hidden.db").touch()
    (tmp_path / "directory.db").mkdir()
    assert found(load(tmp_path)) == {"main": Path(name)}


def test_no_database_is_no_database_component(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.databases == ()
    assert "database" not in settings.default_components()


def test_two_databases_are_an_error_that_names_both_and_comes_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "b.sqlite3").touch()
    settings = load(tmp_path)
    settings.check_paths()
    with pytest.raises(ConfigError, match=r"2 databases: a.db, b.sqlite3") as caught:
        settings.default_components()
    assert "DATABASE_URL=sqlite:///a.db" in caught.value.hint
    assert found(load(tmp_path, DATABASE_URL="sqlite:///b.sqlite3")) == {"main": Path("b.sqlite3")}


def test_a_table_wins_over_what_lies_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    assert found(load(tmp_path, '[database.x]\nurl = "sqlite:///x.db"')) == {"x": Path("x.db")}


def test_database_url_replaces_the_url_of_the_only_table(tmp_path: Path) -> None:
    text = '[database.x]\nurl = "sqlite:///x.db"'
    assert found(load(tmp_path, text, DATABASE_URL="sqlite:///y.db")) == {"x": Path("y.db")}


def test_database_url_replaces_the_url_of_main_among_several(tmp_path: Path) -> None:
    databases = found(load(tmp_path, TWO.format("main"), DATABASE_URL="sqlite:///y.db"))
    assert databases == {"a": Path("a.db"), "main": Path("y.db")}


def test_database_url_that_is_one_of_several_changes_nothing(tmp_path: Path) -> None:
    databases = found(load(tmp_path, TWO.format("b"), DATABASE_URL="sqlite:///b.db"))
    assert databases == {"a": Path("a.db"), "b": Path("b.db")}


@pytest.mark.parametrize("text", [TWO.format("b"), '[database.a]\nenv = "A_URL"'])
def test_database_url_that_fits_no_table_is_an_error_since_it_would_be_left_out(
    tmp_path: Path, text: str
) -> None:
    settings = load(tmp_path, text, DATABASE_URL="sqlite:///hidden.db", A_URL="sqlite:///a.db")
    with pytest.raises(ConfigError, match="DATABASE_URL is set") as caught:
        _ = settings.databases
    assert "hidden" not in str(caught.value)


def test_a_table_with_a_variable_keeps_to_it(tmp_path: Path) -> None:
    text = '[database.a]\nenv = "A_URL"\n[database.b]\nenv = "DATABASE_URL"\n'
    databases = found(load(tmp_path, text, DATABASE_URL="sqlite:///b.db", A_URL="sqlite:///a.db"))
    assert databases == {"a": Path("a.db"), "b": Path("b.db")}


def test_a_variable_that_holdfast_toml_names_may_stand_in_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A_URL=sqlite:///a.db\n")
    assert found(load(tmp_path, '[database.a]\nenv = "A_URL"')) == {"a": Path("a.db")}


def test_a_named_variable_that_is_not_set_is_an_error_when_asked(tmp_path: Path) -> None:
    settings = load(tmp_path, '[database.a]\nenv = "A_URL"')
    with pytest.raises(ConfigError, match="database a takes its URL from A_URL, which is not set"):
        _ = settings.databases


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///service.db", "/root/service.db"),
        (" sqlite:///service.db\n", "/root/service.db"),
        ("sqlite:///./data/../service.db", "/root/service.db"),
        ("sqlite:////srv/service.db", "/srv/service.db"),
        ("sqlite+aiosqlite:///service.db", "/root/service.db"),
        ("sqlite+pysqlite:///service.db?timeout=5", "/root/service.db"),
        ("sqlite:///file:service.db?uri=true", "/root/service.db"),
        ("sqlite:///file:service.db?mode=ro&uri=true", "/root/service.db"),
        ("sqlite:///file:/srv/my%20service.db?uri=true", "/srv/my service.db"),
        ("sqlite:///file:///srv/service.db?uri=1", "/srv/service.db"),
        ("sqlite:///file://localhost/srv/service.db?uri=1", "/srv/service.db"),
        ("sqlite:///file:service.db", "/root/file:service.db"),
    ],
)
def test_a_sqlite_url_is_read_as_sqlalchemy_reads_it(tmp_path: Path, url: str, path: str) -> None:
    (spec,) = load(tmp_path, DATABASE_URL=url).databases
    assert spec.dialect == "sqlite"
    assert spec.sqlite_path(Path("/root")) == Path(path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file::memory:?uri=true", "in memory"),
        ("sqlite:///file:x.db?mode=memory&cache=shared&uri=true", "in memory"),
        ("sqlite://service.db", "names a host"),
        ("sqlite:///file://server/x.db?uri=true", "names a host"),
        ("postgresql+psycopg://u:hidden@host/x", "is postgresql, and no file"),
    ],
)
def test_what_cannot_be_backed_up_is_refused_at_use(tmp_path: Path, url: str, said: str) -> None:
    (spec,) = load(tmp_path, DATABASE_URL=url).databases
    with pytest.raises(ConfigError, match=said) as caught:
        spec.sqlite_path(tmp_path)
    assert "hidden" not in str(caught.value)


def test_another_dialect_is_named_without_its_driver(tmp_path: Path) -> None:
    (spec,) = load(tmp_path, DATABASE_URL="mysql+pymysql://u:p@host/x").databases
    assert spec.dialect == "mysql"


@pytest.mark.parametrize("url", ["./service.db", "postgresql://u:hidden@host:port/x"])
def test_what_is_no_url_is_refused_without_showing_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="the URL of database main cannot be read") as caught:
        _ = load(tmp_path, DATABASE_URL=url).databases
    assert "hidden" not in f"{caught.value} {caught.value.__cause__}"
    assert "sqlite:///" in caught.value.hint
