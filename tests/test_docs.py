"""The documentation says what there is: commands, settings, errors, fields, files; and its links lead somewhere."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from holdfast import errors, events
from holdfast.cli.main import app
from holdfast.config import BackupConfig
from holdfast.config import _tables as tables
from holdfast.config._origins import CONFIG_VARIABLE, VARIABLES
from holdfast.errors import HoldfastError
from holdfast.manager import BackupManager
from holdfast.model import BackupMetadata, Entry, ManifestLocation, Signature, SourceRecord
from holdfast.repository import _manifest as manifest
from holdfast.scheduler import BackupScheduler
from holdfast.schedules import Schedule
from holdfast.schedules._schedule import CONFIG_KEYS
from holdfast.storage.local import LocalStorage

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
FENCE = re.compile(r"^( *)(```+)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
# A command in its place: after a prompt, variables or the key of a unit file.
COMMAND = re.compile(
    r"""^(?:\$\s+|[A-Z_]+=(?:"[^"]*"|\S*)\s+|ExecStartPre=)*(?:\S*/)?holdfast(?:\s+(?P<rest>.*))?$"""
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def section(page: Path, title: str) -> str:
    """What stands below a heading, up to the next one of its rank or above."""
    text = text_of(page)
    for found in HEADING.finditer(text):
        if found[2] == title:
            rank = len(found[1])
            ends = [other.start() for other in HEADING.finditer(text, found.end()) if len(other[1]) <= rank]
            return text[found.end() : min(ends, default=len(text))]
    raise AssertionError(f"{page.name} has no section {title!r}")


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables in a text, by what is in their first cell: all names in it, or the cell itself."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|- "):
            first, *rest = (cell.strip() for cell in line.strip().strip("|").split("|"))
            for name in SPAN.findall(first) or [first]:
                found[name] = rest
    return found


def names(text: str) -> set[str]:
    return set(SPAN.findall(text))


# Commands


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


PROGRAM: Any = typer.main.get_command(app)
COMMANDS = dict(commands(PROGRAM))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_is_in_the_reference_with_its_options_and_no_others(path: tuple[str, ...]) -> None:
    text = section(REFERENCE / "commands.md", "holdfast " + " ".join(path))
    synopsis = FENCE.search(text)
    assert synopsis
    options = {
        name for parameter in COMMANDS[path].params if parameter.opts for name in options_of(parameter)
    }
    described = {word for name in rows(text) for word in name.split() if word.startswith("-")}
    assert described == options
    told = set(re.findall(r"--[a-z-]+", synopsis[3]))
    assert told == {name for name in options if name.startswith("--")}
    assert synopsis[3].split()[: len(path) + 1] == ["holdfast", *path]
    for parameter in COMMANDS[path].params:
        if parameter.param_type_name == "argument":
            assert parameter.metavar.strip("[]") in synopsis[3]


def options_of(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return []
    return [*parameter.opts, *parameter.secondary_opts]


def test_every_option_of_the_program_is_in_the_reference() -> None:
    described = rows(section(REFERENCE / "commands.md", "Options of the program"))
    options = {name for parameter in PROGRAM.params for name in options_of(parameter)}
    assert set(described) - {"Option"} == options | {"-h", "--help"}


def test_the_reference_has_no_command_that_there_is_not() -> None:
    titles = re.findall(r"^### holdfast (.+)$", text_of(REFERENCE / "commands.md"), re.MULTILINE)
    assert sorted(titles) == sorted(" ".join(path) for path in COMMANDS)


def test_every_exit_code_is_in_the_reference() -> None:
    codes = {str(kind.exit_code) for kind in ERRORS.values()}
    codes |= {str(errors.EXIT_DONE), str(errors.EXIT_WARNINGS)}
    assert set(rows(section(REFERENCE / "commands.md", "Exit codes"))) - {"Code"} == codes


def shown_commands() -> Iterator[Any]:
    for page in PAGES:
        text = text_of(page)
        lines = [line for block in FENCE.finditer(text) for line in command_lines(block[3])]
        for line in [*lines, *SPAN.findall(FENCE.sub("", text))]:
            for part in re.split(r"&&|\|\||[;|]", line):
                found = COMMAND.match(part.strip())
                if found and found["rest"]:
                    yield pytest.param(found["rest"], id=f"{page.name}: {found['rest']}")


def command_lines(block: str) -> list[str]:
    """Where a block has prompts, the lines that have one; the others are what was printed."""
    lines = [line.strip() for line in block.splitlines()]
    prompted = [line for line in lines if line.startswith("$ ")]
    return prompted or lines


@pytest.mark.parametrize("arguments", list(shown_commands()))
def test_every_command_line_that_is_shown_can_be_parsed(arguments: str) -> None:
    words = shlex.split(re.sub(r"[\[\]…]", "", arguments), comments=True)
    words = [word for word in words if not re.match(r"\d?>", word)]
    command = PROGRAM
    while hasattr(command, "commands"):
        while words and words[0] in ("-v", "--verbose"):
            words.pop(0)
        if words[0] in ("-h", "--help", "--version"):
            return
        assert words[0] in command.commands
        command = command.commands[words.pop(0)]
    needed = [parameter for parameter in command.params if parameter.required]
    if not words and needed:
        return  # `holdfast restore` in a sentence names the command
    command.make_context("holdfast", words)


def test_command_lines_are_found_where_they_are_shown() -> None:
    found = {str(parameter.values[0]) for parameter in shown_commands()}
    assert {"restore latest --confirm", "key new ml-backups.key", "recover", "-v backup"} <= found
    assert len(found) > 50


# Settings

TABLES: dict[str, type[BaseModel]] = {
    "[backup]": tables.BackupTable,
    "[database.NAME]": tables.DatabaseTable,
    "[models]": tables.FilesTable,
    "[hooks]": tables.HooksTable,
    "[notify]": tables.NotifyTable,
    "[metrics]": tables.MetricsTable,
    "[retention]": tables.RetentionTable,
    "[log]": tables.LogTable,
    "[drill]": tables.DrillTable,
}


def written(default: object) -> str:
    """A default as `holdfast.toml` would have it."""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


@pytest.mark.parametrize("title", TABLES)
def test_every_key_of_a_table_is_in_the_reference(title: str) -> None:
    described = rows(section(REFERENCE / "settings.md", title))
    fields = TABLES[title].model_fields
    assert set(described) - {"Key"} == set(fields)
    for name, field in fields.items():
        if field.default is not None:
            assert described[name][0] == written(field.default)


def test_every_key_before_the_tables_is_in_the_reference() -> None:
    text = section(REFERENCE / "settings.md", "holdfast.toml").partition("\n### ")[0]
    fields = tables.Tables.model_fields
    titles = re.findall(r"^### \[(\w+)", text_of(REFERENCE / "settings.md"), re.MULTILINE)
    assert sorted([*rows(text), *titles]) == sorted(["Key", *fields])
    assert rows(text)["database_timeout"][0] == written(fields["database_timeout"].default)
    for same in ("[config]", "[logs]"):
        assert {"[models]", "paths", "exclude"} <= names(section(REFERENCE / "settings.md", same))


def test_every_variable_is_in_the_reference_with_its_default() -> None:
    described = rows(section(REFERENCE / "settings.md", "Variables"))
    assert {*VARIABLES, CONFIG_VARIABLE} <= set(described)
    for variable, (area, *path) in VARIABLES.items():
        title = f"[{path[0]}]"
        model = TABLES[title] if area == "tables" else tables.Variables
        default = model.model_fields[str(path[-1])].default
        assert described[variable][0] == ("" if default is None else written(default))
        if area == "tables":
            row = rows(section(REFERENCE / "settings.md", title))[str(path[-1])]
            assert f"`{variable}`" in row


def test_every_variable_that_the_sources_read_is_in_the_reference() -> None:
    read = {
        name
        for source in (ROOT / "src").rglob("*.py")
        if source.name != "demo.py"
        for name in re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", text_of(source))
    }
    assert "TMPDIR" in read
    assert read <= names(text_of(REFERENCE / "settings.md"))


# Errors

ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, HoldfastError)
}


def test_every_error_is_in_the_reference_with_its_exit_code_and_hint() -> None:
    page = REFERENCE / "errors.md"
    described = {name: cells for name, cells in rows(text_of(page)).items() if name != "Class"}
    assert set(described) == set(ERRORS)
    for name, kind in ERRORS.items():
        code, _, hint = described[name]
        assert code == str(kind.exit_code), name
        assert kind.default_hint in hint, name


def test_the_tree_of_errors_is_drawn_as_it_grows() -> None:
    drawn = FENCE.search(text_of(REFERENCE / "errors.md"))
    assert drawn
    above: list[str] = []
    for line in drawn[3].splitlines():
        name = line.strip("│├└─ ")
        depth = (len(line) - len(name)) // 4
        above[depth:] = [name]
        assert ERRORS[name].__base__ is (ERRORS[above[depth - 1]] if depth else Exception)
    assert set(ERRORS) == set(re.findall(r"\w+", drawn[3]))


# The archive format and the Python API

FORMAT = ROOT / "docs" / "archive-format.md"


def fields_of(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def test_every_field_of_the_metadata_is_described_in_its_order() -> None:
    described = rows(section(FORMAT, "Metadata"))
    assert [name for name in described if name != "Field"] == fields_of(BackupMetadata)
    assert set(fields_of(ManifestLocation)) <= names(described["manifest"][0])
    assert set(fields_of(Signature)) <= names(described["signature"][0])


def test_every_field_of_the_manifest_is_described() -> None:
    described = rows(section(FORMAT, "Header"))
    assert set(described) - {"Field"} == {"holdfast", *fields_of(manifest.Header)}
    assert f"format: {manifest.VERSION}." in described["holdfast"][0]
    entry = Entry("files/a", "file", 1, 0o644, 1, 1, 1, 1, 1, "d", "t", {"user.a": b""}, True, "token", True)
    written = json.loads(manifest.entry_line(entry, 1, 1))
    assert set(rows(section(FORMAT, "Entry"))) - {"Field"} == set(written)
    end = rows(section(FORMAT, "End"))
    assert {*fields_of(SourceRecord), *manifest.End._fields} == set(end) - {"Field", "Field of a source"}
    for line in (
        manifest.source_line(("models", "models"), whole=True),
        manifest.part_line(manifest.Part(True, 0, 1, [])),
        manifest.part_line(manifest.Part(False, 0, 1, [(1, "d")])),
        *manifest.blocks_lines([(1, 1)]),
        manifest.end_line(0, 0, []),
    ):
        kind, *others = json.loads(line)
        assert f'{{"{kind}":' in text_of(FORMAT)
        assert all(f'"{other}":' in text_of(FORMAT) for other in others)


def test_every_public_name_of_the_python_api_is_described() -> None:
    page = REFERENCE / "python-api.md"
    for kind in (BackupManager, BackupScheduler):
        for name in (name for name, value in vars(kind).items() if callable(value) and name[0] != "_"):
            assert f"{name}(" in section(page, name)
    assert set(rows(section(page, "schedules"))) - {"Key"} == set(fields_of(Schedule))
    assert set(CONFIG_KEYS) <= names(section(page, "schedule_backup"))
    described = rows(section(page, "BackupConfig"))
    assert set(described) - {"Field"} == set(fields_of(BackupConfig))
    for field in dataclasses.fields(BackupConfig):
        default = f'"{field.default}"' if isinstance(field.default, str) else str(field.default)
        assert described[field.name][0] == f"`{default}`"
    told = names(section(page, "Events"))
    assert {name for name, kind in vars(events).items() if isinstance(kind, type)} - {"Event"} <= {
        *told,
        "Callable",
    }


# Files


def made_by_holdfast(tmp_path: Path) -> dict[str, Path]:
    """Every path that a life with backups leaves: from the service root, and from the state directory."""
    service, state = tmp_path / "service", tmp_path / "state"
    (service / "models").mkdir(parents=True)
    (service / "models" / "weights.bin").write_bytes(b"weights")
    (service / "logs").mkdir()  # the service's own
    before = set(service.rglob("*"))
    environment = {"PATH": os.environ["PATH"], "XDG_STATE_HOME": str(state), "PYTHONPATH": str(ROOT / "src")}
    for arguments in (
        ["init"],
        ["backup"],
        ["key", "rotate"],
        ["backup", "--incremental"],
        ["backup", "--component", "models"],
        ["backup", "--component", "config"],
        ["schedule", "add"],
        ["scheduler", "--once"],
        ["export", "latest"],
        ["restore", "latest", "--confirm"],
    ):
        (service / "service.yaml").write_text(f"after: {arguments[0]}\n")
        done = subprocess.run(
            [sys.executable, "-m", "holdfast", *arguments],
            cwd=service,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    # A run that was killed.
    LocalStorage(service / "backups").create("full/full_20240101_020000.tar.gz").write(b"half of it")
    found = {str(path.relative_to(service)): path for path in set(service.rglob("*")) - before}
    found |= {str(path.relative_to(state / "holdfast")): path for path in (state / "holdfast").rglob("*")}
    return {name: path for name, path in found.items() if not _below_place(name) and name != "service.yaml"}


def _below_place(name: str) -> bool:
    return "/" in name and name.startswith(".holdfast-")


def test_every_file_that_is_made_is_in_the_reference_and_private(tmp_path: Path) -> None:
    described = [name.rstrip("/") for name in rows(text_of(REFERENCE / "files.md"))]
    patterns = [re.sub(r"<[a-z\\ ]+>", "[^/]+", re.escape(name)) for name in described]
    made = made_by_holdfast(tmp_path)
    assert {"holdfast.key", "signing.key", "backups/temp", "holdfast.toml"} <= set(made)
    assert {"backups/schedules.json", "logs/backup_scheduler.log"} <= set(made)
    for name, path in made.items():
        assert any(re.fullmatch(pattern, name.removeprefix("backups/")) for pattern in patterns), name
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o644 if name == "holdfast.toml" else 0o700 if path.is_dir() else 0o600), name


# Links


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = [found[2] for found in HEADING.finditer(FENCE.sub("", text_of(page)))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links() -> Iterator[Any]:
    for page in PAGES:
        for target in LINK.findall(FENCE.sub("", text_of(page))):
            if not re.match(r"[a-z]+:", target):
                yield pytest.param(page, target, id=f"{page.name}: {target}")


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_every_link_leads_somewhere(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    linked = (page.parent / name).resolve() if name else page
    assert linked.exists()
    assert not anchor or anchor in slugs(linked)


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or not page.exists():
            continue
        reached.add(page)
        targets = LINK.findall(FENCE.sub("", text_of(page)))
        waiting += [
            (page.parent / target.partition("#")[0]).resolve() for target in targets if ".md" in target
        ]
    assert set(PAGES) - reached == set()
