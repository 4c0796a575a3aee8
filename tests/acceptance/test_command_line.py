"""Every command of the program, as a person or a machine runs it. How commands fail: `test_exit_codes`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast as package
from acceptance.contract import FULL_ID
from acceptance.running import at_terminal, command_of, holdfast, run
from acceptance.service_state import (
    ARCHIVE,
    MODEL,
    PREDICTIONS,
    SETTINGS,
    BackUpAt,
    damage,
    make_slow,
    predict,
    predictions,
    state,
    tree,
    work_on,
)
from app.utils.backup import BackupConfig, BackupManager, backup_manager
from holdfast.clock import system_clock
from holdfast.config import load_settings
from holdfast.crypto import X25519Identity, write_key_file
from holdfast.errors import KeyWrong

VERBS = set(
    re.findall(
        r"\w+",
        "init backup list show ls diff verify restore undo recover pin unpin expire check key export gc repair demo "
        "schedule scheduler notify",
    )
)
PROGRAM = str(Path(sys.executable).with_name("holdfast"))
INCREMENTAL_ID = "incr_20240101_080000"


@pytest.fixture
def two(plain: Path, back_up_at: BackUpAt) -> Path:
    """The project with a full backup, an incremental one after some work, and some work since."""
    back_up_at("2024-01-01T02:00:00")
    work_on()
    back_up_at("2024-01-01T08:00:00", incremental=True)
    predict(5)
    return plain


def ids() -> list[str]:
    return [known.backup_id for known in backup_manager.list_backups()]


def test_the_version() -> None:
    assert holdfast("--version") == (0, f"holdfast {package.__version__}\n", "")


def test_help_lists_every_verb() -> None:
    done = holdfast("--help")
    assert done.status == 0
    listed = re.findall(r"^  ([a-z]+)  ", done.out.split("Commands:")[1], re.MULTILINE)
    assert set(listed) >= VERBS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_for_each_shell(shell: str) -> None:
    done = run([PROGRAM], {"_HOLDFAST_COMPLETE": f"source_{shell}"})
    assert done.status == 0
    assert f"_HOLDFAST_COMPLETE=complete_{shell}" in done.out


def test_completion_knows_the_verbs() -> None:
    typed = {"_HOLDFAST_COMPLETE": "complete_bash", "COMP_WORDS": "holdfast re", "COMP_CWORD": "1"}
    assert run([PROGRAM], typed).out.split() == ["restore", "recover", "repair"]


def test_init_writes_settings_and_a_key_once(project: Path) -> None:
    done = holdfast("init")
    assert done.status == 0, done.err
    key = Path("holdfast.key")
    assert key.stat().st_mode & 0o777 == 0o600
    assert "iit_ml_service.db" in done.out
    assert "AGE-SECRET-KEY" in key.read_text()
    assert "AGE-SECRET-KEY" not in done.out + done.err
    before = tree(".")
    again = holdfast("init", "--json")
    assert (again.status, again.json["exit_code"]) == (2, 2)
    assert tree(".") == before
    # What it has written is what a backup needs, and is no part of one.
    assert backup_manager.create_full_backup().encrypted
    names = {line.split()[-1] for line in holdfast("ls", "latest").out.splitlines()}
    assert not names & {"files/holdfast.key", "files/holdfast.toml"}


def test_init_names_a_server_by_its_variable_and_writes_no_password(project: Path) -> None:
    url = "postgresql://service:sesame@db.example.com/serving"
    done = holdfast("init", DATABASE_URL=url)
    assert done.status == 0, done.err
    written = Path("holdfast.toml").read_text()
    assert tomllib.loads(written)["database"] == {"main": {"env": "DATABASE_URL"}}
    assert "sesame" not in written + done.out + done.err
    assert "database main: postgresql, from DATABASE_URL" in done.out


def test_all_that_init_has_commented_out_is_valid(project: Path) -> None:
    assert holdfast("init").status == 0
    config = Path("holdfast.toml")
    lines = config.read_text().splitlines()
    uncommented = [re.sub(r"^# (?=\[|\w+ = )", "", line) for line in lines]
    assert len([line for line in lines if line not in uncommented]) > 30
    config.write_text("\n".join(uncommented))
    settings = load_settings(project, {"REDIS_URL": "redis://127.0.0.1:6379/0"})
    assert {database.dialect for database in settings.databases} == {"sqlite", "redis"}
    assert all((settings.keep, settings.drill_command, settings.ping_url, settings.metrics_port))


def test_backup_tells_a_person_and_a_machine(plain: Path) -> None:
    done = holdfast("backup", "--component", "database", "--component", "config")
    assert done.status == 0, done.err
    [full] = backup_manager.list_backups()
    assert list(full.components) == ["database", "config"]
    assert f"backup      {full.backup_id}\n" in done.out
    assert "read database" in done.err
    assert "\x1b" not in done.out + done.err
    incremental = holdfast("backup", "--incremental", "--component", "config", "--json")
    assert (incremental.status, incremental.err) == (0, "")
    assert (incremental.json["type"], incremental.json["parent"]) == ("incremental", full.backup_id)
    assert incremental.json["components"] == ["config"]
    since = holdfast(
        "backup", "--since", incremental.json["backup_id"], "--component", "config", "--json"
    ).json
    assert since["parent"] == incremental.json["backup_id"]
    assert ids() == [since["backup_id"], incremental.json["backup_id"], full.backup_id]


def test_list_shows_the_newest_first_and_one_type_when_asked(two: Path) -> None:
    done = holdfast("list")
    assert done.status == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["ID", INCREMENTAL_ID, FULL_ID]
    metadata = json.loads(Path(f"backups/full/{FULL_ID}.metadata.json").read_text())
    assert holdfast("list", "--type", "full", "--json").json == [metadata]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("full_2024", FULL_ID),
        (str(ARCHIVE), FULL_ID),
        (f"./backups/incremental/{INCREMENTAL_ID}.tar.gz", INCREMENTAL_ID),
    ],
)
def test_a_backup_is_found_by_a_prefix_of_its_id_and_by_path(
    two: Path, reference: str, expected: str
) -> None:
    assert holdfast("show", reference, "--json").json["backup_id"] == expected


def test_an_archive_that_lies_alone_elsewhere_is_found_by_its_path(two: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / ARCHIVE.name
    moved.parent.mkdir()
    ARCHIVE.rename(moved)
    refused = holdfast("restore", str(moved), "--confirm")
    # Its signature is in the metadata that stayed behind.
    assert (refused.status, "--trust" in refused.err) == (12, True)
    assert holdfast("restore", str(moved), "--confirm", "--trust").status == 0
    assert predictions() == PREDICTIONS


def test_show_tells_a_person_what_is_known(two: Path) -> None:
    done = holdfast("show", INCREMENTAL_ID)
    assert done.status == 0
    assert f"{INCREMENTAL_ID} → {FULL_ID}" in done.out
    assert "SHA256:" in done.out
    assert "database, models, config" in done.out


def test_ls_lists_what_a_backup_holds(two: Path) -> None:
    paths = {line.split()[-1] for line in holdfast("ls", "latest").out.splitlines()}
    assert {f"files/{path}" for path in tree("models", "config")} <= paths
    assert "database/main.db" in paths
    lines = holdfast("ls", "latest", "--component", "models", "--json").out.splitlines()
    sizes = {known["path"]: known["size"] for known in map(json.loads, lines) if known["kind"] == "file"}
    assert sizes == {f"files/{path}": len(content) for path, content in tree("models").items()}


def test_verify_tells_which_backups_are_good(two: Path) -> None:
    assert holdfast("verify").out == f"{INCREMENTAL_ID}  good\n"
    told = holdfast("verify", "--all", "--deep", "--json")
    assert told.status == 0
    assert told.json == [
        {"backup_id": known, "good": True, "error": ""} for known in (INCREMENTAL_ID, FULL_ID)
    ]
    damage(Path(f"backups/incremental/{INCREMENTAL_ID}.tar.gz"))
    told = holdfast("verify", "--all", "--json")
    assert told.status == 1
    assert [known["good"] for known in told.json] == [False, True]
    assert INCREMENTAL_ID in told.json[0]["error"]


def test_restore_puts_back_and_undo_takes_back_and_forth(two: Path) -> None:
    before = state()
    done = holdfast("restore", FULL_ID, "--confirm", "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json["backup_id"] == FULL_ID
    assert Path(done.json["log"]).is_file()
    restored = state()
    assert restored[0] == PREDICTIONS
    assert holdfast("undo").status == 2
    assert state() == restored
    undone = holdfast("undo", "--confirm")
    assert (undone.status, "as before the restore" in undone.err) == (0, True)
    assert state() == before
    redone = holdfast("undo", "--confirm")
    assert (redone.status, "as before the restore" in redone.err) == (0, False)
    assert state() == restored


def test_restore_of_one_component_leaves_the_others_alone(two: Path, seeded: Path) -> None:
    before = predictions(), tree("config")
    done = holdfast("restore", FULL_ID, "--component", "models", "--confirm")
    assert done.status == 0
    assert "stage models" in done.err
    assert "\x1b" not in done.out + done.err
    assert (predictions(), tree("config")) == before
    assert sorted(tree("models")) == sorted(f"models/{path.name}" for path in (seeded / "models").iterdir())


def test_restore_to_a_target_touches_nothing_else_and_needs_no_confirmation(two: Path, seeded: Path) -> None:
    before = state()
    done = holdfast("restore", FULL_ID, "--target", "elsewhere")
    assert done.status == 0, done.err
    assert state() == before
    assert Path("elsewhere", MODEL).read_bytes() == (seeded / MODEL).read_bytes()
    assert Path("elsewhere", SETTINGS).read_bytes() == (seeded / SETTINGS).read_bytes()
    [database] = Path("elsewhere").rglob("*.db")
    assert predictions(database) == PREDICTIONS
    assert holdfast("undo", "--confirm").status == 1


def test_yes_at_a_terminal_restores_with_progress_in_sight(two: Path) -> None:
    done = at_terminal(command_of("restore", FULL_ID), "yes")
    assert done.status == 0, done.out
    assert predictions() == PREDICTIONS
    assert "━" in done.out
    assert "1 entries" not in done.out


def test_no_answer_at_a_terminal_means_no_and_the_question_says_so(two: Path) -> None:
    before = state()
    done = at_terminal(command_of("restore", FULL_ID), "")
    assert done.status == 2
    assert state() == before
    question, options, _ = done.out.partition("[y/N]")
    assert options
    assert FULL_ID in question
    # The cursor is there while a person types, and no progress is drawn over the answer.
    assert question.count("\x1b[?25l") == question.count("\x1b[?25h")


def test_a_terminal_of_the_usual_width_cuts_nothing_short(two: Path) -> None:
    listed = at_terminal(command_of("list"))
    assert listed.status == 0
    for known in backup_manager.list_backups():
        assert known.backup_id in listed.out
        assert known.timestamp.replace("T", " ") in listed.out
    assert "…" not in listed.out


def killed_at(line: str, *arguments: str) -> None:
    """Runs Holdfast, and kills it once it has said a line."""
    with subprocess.Popen(
        command_of(*arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stderr is not None
        assert any(line in said for said in child.stderr)
        child.kill()


def test_recover_after_a_restore_that_was_killed(plain: Path) -> None:
    make_slow(Path("models/large.json"))
    full = BackupManager(BackupConfig(encrypt_backups=False, compression_level=1)).create_full_backup()
    work_on()
    before = state()
    killed_at("stage models", "restore", full.backup_id, "--confirm")
    assert list(Path().glob(".holdfast-*"))
    done = holdfast("recover")
    assert (done.status, "cut short" in done.err) == (0, True)
    assert state() == before
    assert not list(Path().glob(".holdfast-*"))


def test_gc_frees_what_a_killed_backup_has_left(plain: Path) -> None:
    kept = backup_manager.create_full_backup()
    make_slow(Path("models/large.json"))
    killed_at("read models", "backup")
    assert list(Path("backups/temp").glob("*.partial"))
    freed = holdfast("gc", "--json")
    assert freed.status == 0
    assert len(freed.json["freed"]) == 2
    assert not list(Path("backups/temp").glob("*.partial"))
    assert backup_manager.list_backups() == [kept]
    [record] = [known for known in holdfast("list", "--all", "--json").json if known["status"] != "success"]
    assert (record["status"], "killed" in record["error_message"]) == ("failed", True)


def test_pin_keeps_and_expire_drops_what_is_old(plain: Path, back_up_at: BackUpAt) -> None:
    second, third = "full_20240102_020000", "full_20240103_020000"
    for day in (1, 2, 3):
        back_up_at(f"2024-01-0{day}T02:00:00")
    assert holdfast("pin", FULL_ID).status == 0
    dry = holdfast("expire", "--dry-run", "--json")
    verdicts = {verdict["backup_id"]: verdict["keep"] for verdict in dry.json}
    assert verdicts == {FULL_ID: True, second: False, third: True}
    assert ids() == [third, second, FULL_ID]
    done = holdfast("expire")
    assert done.status == 0
    lines = [line.split()[:2] for line in done.out.splitlines()[1:]]
    assert lines == [["keep", third], ["dropped", second], ["keep", FULL_ID]]
    assert ids() == [third, FULL_ID]
    assert holdfast("unpin", FULL_ID).status == 0
    assert backup_manager.cleanup_old_backups() == 1
    assert ids() == [third]


def test_check_tells_what_works_and_what_does_not(sealed: Path) -> None:
    fresh = holdfast("check", "--json")
    assert fresh.status == 3
    states = {found["subject"]: found["state"] for found in fresh.json}
    assert (states["backups"], states["key"], states["database main"]) == ("warning", "ok", "ok")
    backup_manager.create_full_backup()
    good = holdfast("check")
    assert good.status == 0, good.out
    assert "opens what it seals" in good.out
    broken = holdfast("check", "--json", ENCRYPTION_KEY="", DATABASE_URL="sqlite:///nowhere.db")
    assert broken.status == 1
    failed = {found["subject"]: found["detail"] for found in broken.json if found["state"] == "FAILED"}
    assert "ENCRYPTION_KEY" in failed["key"]
    assert "nowhere.db" in failed["database main"]
    assert not Path("nowhere.db").exists()


def test_check_looks_at_every_source_whatever_is_wrong_with_one(sealed: Path) -> None:
    backup_manager.create_full_backup()
    shutil.rmtree("models")
    Path("holdfast.toml").write_text(
        '[database.first]\nurl = "sqlite:///gone.db"\n'
        '[database.main]\nurl = "sqlite:///iit_ml_service.db"\n'
        '[database.other]\nurl = "postgresql://nobody@127.0.0.1:1/none"\n'
    )
    done = holdfast("check", "--json", DATABASE_URL="")
    assert done.status == 1
    found = {finding["subject"]: finding for finding in done.json}
    states = {subject: finding["state"] for subject, finding in found.items()}
    assert [states[f"database {name}"] for name in ("first", "main", "other")] == ["FAILED", "ok", "FAILED"]
    assert states["models"] == "warning"
    assert "the last full backup" in found["models"]["detail"]
    assert "?." not in found["database other"]["detail"]


def test_an_empty_list_says_where_it_has_looked(project: Path) -> None:
    elsewhere = str(project / "unmounted")
    assert f"There is no backup yet in {elsewhere}." in holdfast("list", BACKUP_DIR=elsewhere).err
    assert (
        f"There is no models backup in {elsewhere}."
        in holdfast("list", "--type", "models", BACKUP_DIR=elsewhere).err
    )


def test_export_writes_an_ordinary_archive_of_a_whole_chain(sealed: Path, tmp_path: Path) -> None:
    backup_manager.create_full_backup()
    work_on()
    incremental = backup_manager.create_incremental_backup()
    done = holdfast("export", "latest")
    written = Path(f"{incremental.backup_id}.tar.gz")
    assert done.status == 0, done.err
    assert done.out == f"{written}\n"
    assert written.stat().st_mode & 0o777 == 0o600
    with tarfile.open(written) as archive:
        archive.extractall(tmp_path / "opened", filter="data")
    for path, content in tree("models", "config").items():
        assert (tmp_path / "opened/files" / path).read_bytes() == content
    assert predictions(tmp_path / "opened/database/main.db") == PREDICTIONS + 10
    again = holdfast("export", "latest", "-o", str(SETTINGS))
    assert (again.status, f"{SETTINGS} already exists" in again.err) == (1, True)


def test_repair_makes_lost_metadata_again(two: Path) -> None:
    lost = Path(f"backups/full/{FULL_ID}.metadata.json")
    known = json.loads(lost.read_text())
    lost.unlink()
    assert backup_manager.verify_backup_integrity(INCREMENTAL_ID) is False
    done = holdfast("repair", "--json")
    assert done.status == 0, done.err
    assert done.json["repaired"] >= 1
    again = json.loads(lost.read_text())
    # The signature was in the metadata alone, and how long it took is not in the archive.
    assert again == {name: value for name, value in known.items() if name != "signature"} | {
        "duration_seconds": 0.0
    }
    assert backup_manager.verify_backup_integrity(INCREMENTAL_ID) is True


def secret_in(key: str) -> str:
    return next(line for line in Path(key).read_text().splitlines() if line.startswith("AGE-SECRET-KEY-1"))


def test_a_new_key_is_written_for_its_owner_alone_and_never_over_another(project: Path) -> None:
    done = holdfast("key", "new", "other.key")
    assert done.status == 0
    key = Path("other.key")
    assert key.stat().st_mode & 0o777 == 0o600
    secret = secret_in("other.key")
    assert done.out.strip() == str(X25519Identity.parse(secret).recipient)
    assert secret not in done.out + done.err
    before = key.read_bytes()
    assert holdfast("key", "new", "other.key", "--json").json["exit_code"] == 12
    assert key.read_bytes() == before


def test_rotating_the_key_locks_the_old_one_out(
    project: Path, identity: X25519Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key_file("holdfast.key", identity, system_clock())
    backup_manager.create_full_backup()
    work_on()
    latest = backup_manager.create_incremental_backup()
    at_latest = state()
    done = holdfast("key", "rotate", "--json")
    assert (done.status, done.json) == (0, {"rotated": 2}), done.err
    assert secret_in("holdfast.key") != identity.reveal()
    assert secret_in("holdfast.key") not in done.out + done.err
    predict(5)
    monkeypatch.setenv("ENCRYPTION_KEY", identity.reveal())
    with pytest.raises(KeyWrong):
        backup_manager.restore_from_backup(latest.backup_id)
    monkeypatch.delenv("ENCRYPTION_KEY")
    assert backup_manager.restore_from_backup(latest.backup_id) is True
    assert state() == at_latest


@pytest.mark.parametrize("secret", [X25519Identity.reveal, lambda identity: "a plain-string key"])
def test_the_key_sheet_is_the_one_place_where_the_key_is_printed(
    project: Path, identity: X25519Identity, secret: Callable[[X25519Identity], Any]
) -> None:
    done = holdfast("key", "sheet", ENCRYPTION_KEY=secret(identity))
    assert done.status == 0, done.err
    assert secret(identity) in done.out
    assert "age -d" in done.out
    assert str(project / "backups") in done.out


def test_verbose_commands_log_every_step_and_no_secret(sealed: Path, identity: X25519Identity) -> None:
    for loud in (holdfast("-v", "backup", "--json"), holdfast("backup", "--json", LOG_LEVEL="DEBUG")):
        assert loud.json["status"] == "success"
        assert re.search(rf"INFO .*{loud.json['backup_id']}", loud.err)
        assert "DEBUG" in loud.err
        assert identity.reveal() not in loud.out + loud.err
