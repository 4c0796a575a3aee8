"""What can be wrong around the archives: disks, clocks, settings, and others who are at work at the same time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

import forks
import holdfast
from conformance.ground import in_child
from forge import honest
from holdfast.cli.main import app
from holdfast.errors import (
    ConfigError,
    HoldfastError,
    LockHeld,
    NoSpace,
    RestoreError,
    StorageError,
)
from holdfast.events import ignore
from holdfast.jobs.expire import expire
from holdfast.jobs.gc import gc
from holdfast.jobs.restore import restore
from holdfast.jobs.undo import undo
from installed import Service, agree, refused, seen, untouched

SOURCE = str(Path(holdfast.__file__).parents[1])


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path)


@dataclass
class Told:
    """What the program said, and how it ended."""

    code: int
    output: str
    errors: str


@pytest.fixture
def run(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Runs the program in the service's root, in this process."""
    monkeypatch.chdir(service.root)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str, **environ: str) -> Told:
        try:
            done = CliRunner().invoke(app, list(arguments), env=service.environ | environ)
        finally:
            signal.signal(signal.SIGTERM, before)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Told(done.exit_code, done.stdout, done.stderr)

    return run


# A disk that is full, or may not be written


@contextmanager
def own_disk(at: Path, size: int) -> Iterator[None]:
    at.mkdir(parents=True, exist_ok=True)
    forks.mount_memory(at, size=size)
    try:
        yield
    finally:
        forks.unmount(at)


def fill(disk: Path) -> Path:
    """Leaves not a byte. Returns the file to delete."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def with_disks(test: Callable[[], None]) -> None:
    """Runs a test among mounts of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    forks.among_own_mounts(test)


def test_a_full_backup_directory_ends_the_run_and_loses_nothing(service: Service) -> None:
    def test() -> None:
        with own_disk(service.backups, 600_000):
            (service.root / "models/noise").write_bytes(random.Random(1).randbytes(200_000))
            good = service.back_up()
            (service.root / "models/noise").write_bytes(random.Random(2).randbytes(2_000_000))
            live = seen(service.root, but=[service.backups])
            with pytest.raises(NoSpace):
                service.back_up()
            assert seen(service.root, but=[service.backups]) == live
            found = service.installation().repository.backups()
            assert [metadata for metadata in found if metadata.is_good] == [good]
            archives = [path for path in service.backups.rglob("*") if ".tar.gz" in path.name]
            assert [path.name for path in archives] == [f"{good.backup_id}.tar.gz"]
            service.verify(good.backup_id)
            (service.root / "models/noise").write_bytes(b"small again")
            assert service.back_up().is_good

    with_disks(test)


def test_a_backup_directory_that_is_full_to_the_last_byte_loses_nothing(service: Service) -> None:
    """Not even the record of the failure can be written."""

    def test() -> None:
        with own_disk(service.backups, 300_000):
            good = service.back_up()
            filler = fill(service.backups)
            with pytest.raises(NoSpace):
                service.back_up()
            found = service.installation().repository.backups()
            assert [metadata for metadata in found if metadata.is_good] == [good]
            service.verify(good.backup_id)
            service.restore(good.backup_id)
            filler.unlink()
            assert service.back_up().is_good

    with_disks(test)


@pytest.mark.parametrize("place", ["temporary files", "local state"])
def test_a_full_disk_elsewhere_is_told_as_such(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def test() -> None:
        good = service.back_up()
        small = tmp_path / ("temporary" if place == "temporary files" else "state")
        if place == "temporary files":
            small.mkdir()
            monkeypatch.setenv("TMPDIR", str(small))
        kept = tmp_path / "kept"
        if small.exists():
            shutil.copytree(small, kept)
        with own_disk(small, 200_000):
            shutil.copytree(kept, small, dirs_exist_ok=True)
            for number in range(1500):
                (service.root / "models" / f"a file with a long name {number}").write_bytes(b"")
            filler = fill(small)
            before = service.installation().repository.backups()
            try:
                # What of the local state cannot be kept may be a mere warning.
                service.verify(service.back_up().backup_id, deep=False)
            except (NoSpace, StorageError):
                found = service.installation().repository.backups()
                assert [m for m in found if m.is_good] == [m for m in before if m.is_good] == [good]
            live = seen(service.root, but=[service.backups])
            with pytest.raises((NoSpace, StorageError, RestoreError)):
                service.restore(good.backup_id)
            assert seen(service.root, but=[service.backups]) == live
            filler.unlink()
            service.restore(good.backup_id)

    with_disks(test)


def test_a_restore_that_has_no_room_changes_nothing(service: Service) -> None:
    def test() -> None:
        content = random.Random(1).randbytes(20_000_000)
        (service.root / "models/large").write_bytes(content)
        good = service.back_up(components=["models"])
        shutil.rmtree(service.root / "models")
        with own_disk(service.root / "models", 24_000_000):
            (service.root / "models/large").write_bytes(content)
            (service.root / "models/own").write_bytes(b"live")
            with refused(service, NoSpace):
                service.restore(good.backup_id)
        with own_disk(service.root.parent / "elsewhere", 10_000_000), refused(service, NoSpace):
            service.restore(good.backup_id, target=service.root.parent / "elsewhere/here")

    with_disks(test)


def test_a_restore_onto_a_read_only_disk_changes_nothing(service: Service) -> None:
    def test() -> None:
        service.back_up()
        with own_disk(service.root / "models", 64_000_000):
            (service.root / "models/a.bin").write_bytes(b"live")
            subprocess.run(["mount", "-o", "remount,ro", service.root / "models"], check=True)
            with refused(service, RestoreError, match="models") as raised:
                service.restore("latest")
            assert isinstance(raised.value, HoldfastError)
            assert "--target" in raised.value.hint
            with refused(service, RestoreError):
                service.restore("latest", target=service.root / "models/here")

    with_disks(test)


def test_a_read_only_backup_directory_can_be_restored_from_and_not_written_to(service: Service) -> None:
    def test() -> None:
        with own_disk(service.backups, 2_000_000):
            good = service.back_up()
            subprocess.run(["mount", "-o", "remount,ro", service.backups], check=True)
            with untouched(service.backups):
                with pytest.raises(StorageError, match="read-only"):
                    service.back_up()
                service.verify("latest")
                (service.root / "models/a.bin").write_bytes(b"changed")
                service.restore(good.backup_id)
                assert (service.root / "models/a.bin").read_bytes() == b"live"

    with_disks(test)


def test_a_backup_directory_that_is_not_mounted_is_not_quietly_made_anew(service: Service) -> None:
    """An incremental on what an unmounted disk has would be an incremental on nothing."""
    service.back_up()
    shutil.move(service.backups, service.root.parent / "unmounted")
    with pytest.raises(HoldfastError, match="no full backup"):
        service.back_up(incremental=True)


# Others at work


def test_a_second_run_of_the_program_is_refused_while_the_first_is_at_work(service: Service) -> None:
    environ = os.environ | service.environ | {"PYTHONPATH": SOURCE}
    held = []

    def hold() -> None:
        lock = service.installation().repository.expiring()
        lock.__enter__()
        held.append(lock)

    with in_child(hold):
        command = [sys.executable, "-m", "holdfast"]
        for verb in (["backup"], ["backup", "--json"], ["expire"], ["gc"], ["repair"]):
            done = subprocess.run(
                [*command, *verb], cwd=service.root, env=environ, capture_output=True, text=True, check=False
            )
            assert done.returncode == 11, done
            assert "another run is at work" in done.stderr
            assert "Traceback" not in done.stderr
            if "--json" in verb:
                assert json.loads(done.stdout)["exit_code"] == 11
    assert service.back_up().is_good


def test_restoring_and_expiring_keep_out_of_each_others_way(service: Service) -> None:
    service.back_up()
    held = []

    def read() -> None:
        lent = service.installation().repository.lent()
        lent.__enter__()
        held.append(lent)

    with in_child(read):
        with pytest.raises(LockHeld):
            gc(service.installation(), ignore)
        service.restore("latest")
    gc(service.installation(), ignore)


def test_two_restores_at_once_are_one_restore(service: Service) -> None:
    service.back_up()
    (service.root / "models/a.bin").write_bytes(b"changed")
    started, go = os.pipe(), os.pipe()

    def first() -> None:
        def emit(event: object) -> None:
            if type(event).__name__ == "StageStarted" and getattr(event, "stage", "") == "swap":
                os.write(started[1], b"1")
                os.read(go[0], 1)

        restore(service.installation(), "latest", emit, confirm=agree)

    child = os.fork()
    if child == 0:
        try:
            first()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        assert os.read(started[0], 1) == b"1"
        with pytest.raises(LockHeld):
            service.restore("latest")
        assert (service.root / "models/a.bin").read_bytes() == b"changed"
        os.write(go[1], b"1")
    finally:
        _, status = os.waitpid(child, 0)
        for descriptor in (*started, *go):
            os.close(descriptor)
    assert status == 0
    assert (service.root / "models/a.bin").read_bytes() == b"live"


# Clocks that jump


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, -86400, -1, 0, 10 * 365 * 86400])
def test_a_clock_that_jumps_gives_every_backup_an_id_and_loses_none(service: Service, jump: int) -> None:
    made = [service.back_up()]
    service.clock.forward(jump - 3600)
    made += [service.back_up(), service.back_up(incremental=True), service.back_up(components=["config"])]
    assert len({metadata.backup_id for metadata in made}) == 4
    found = service.installation().repository.backups()
    assert {metadata.backup_id for metadata in found} == {metadata.backup_id for metadata in made}
    assert [metadata.timestamp for metadata in found] == sorted((m.timestamp for m in made), reverse=True)
    for metadata in made:
        service.verify(metadata.backup_id)
    if jump < 0:
        assert all(verdict.keep for verdict in expire(service.installation(), ignore))


@pytest.mark.parametrize("year", [1969, 1970, 2038, 2107, 9999])
def test_any_year_that_a_clock_may_show_can_be_backed_up_and_restored(service: Service, year: int) -> None:
    service.clock.now = datetime(year, 12, 31, 22, 0, 0, tzinfo=UTC)
    metadata = service.back_up()
    service.verify(metadata.backup_id)
    (service.root / "models/a.bin").write_bytes(b"changed")
    service.restore(metadata.backup_id)
    assert (service.root / "models/a.bin").read_bytes() == b"live"
    undo(service.installation(), ignore, confirm=lambda question: True)
    assert (service.root / "models/a.bin").read_bytes() == b"changed"


# Settings, and where things lie


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"BACKUP_COMPRESSION_LEVEL": "99"}, "BACKUP_COMPRESSION_LEVEL"),
        ({"BACKUP_COMPRESSION_LEVEL": "fast"}, "BACKUP_COMPRESSION_LEVEL"),
        ({"BACKUP_RETENTION_DAYS": "-1"}, "BACKUP_RETENTION_DAYS"),
        ({"BACKUP_RETENTION_DAYS": "1e999"}, "BACKUP_RETENTION_DAYS"),
        ({"BACKUP_MAX_SIZE_GB": "nan"}, "BACKUP_MAX_SIZE_GB"),
        ({"BACKUP_MAX_SIZE_GB": "inf"}, "BACKUP_MAX_SIZE_GB"),
        ({"BACKUP_MAX_SIZE_GB": "-5"}, "BACKUP_MAX_SIZE_GB"),
        ({"BACKUP_ENCRYPT": "perhaps"}, "BACKUP_ENCRYPT"),
        ({"BACKUP_ENCRYPT": "true"}, "ENCRYPTION_KEY"),
        ({"BACKUP_ENCRYPT": "true", "ENCRYPTION_KEY": "age1nonsense"}, "encryption key"),
        ({"DATABASE_URL": "nonsense"}, "database main"),
        ({"DATABASE_URL": "oracle://host/name"}, "oracle"),
        ({"DATABASE_URL": "sqlite:///missing.db"}, "missing.db"),
        ({"BACKUP_DIR": "service.db"}, "service.db"),
        ({"BACKUP_DIR": "service.db/inside"}, "service.db"),
        ({"BACKUP_DIR": "models/backups"}, "models"),
        ({"BACKUP_DIR": "models"}, "models"),
        ({"BACKUP_DIR": "/proc/backups"}, "/proc/backups"),
        ({"BACKUP_DIR": "/dev/null"}, "/dev/null"),
        ({"BACKUP_DIR": "x" * 300}, "xxx"),
        ({"XDG_STATE_HOME": "/dev/null"}, "/dev/null"),
        ({"XDG_STATE_HOME": "/proc/state"}, "/proc/state"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_an_absurd_setting_is_refused_by_name(
    service: Service, run: Callable[..., Told], environ: dict[str, str], named: str
) -> None:
    with untouched(service.root, but=[service.backups]):
        told = run("backup", **environ)
    assert told.code in (1, 2, 12)
    assert told.errors.startswith("Error: ") or "\nError: " in told.errors
    assert named in told.errors
    assert not list(service.backups.rglob("*.tar.gz*"))
    for verb in (["list"], ["check"], ["verify"], ["restore", "latest", "--confirm"], ["recover"]):
        assert run(*verb, **environ).code in range(13)


@pytest.mark.parametrize("where", ["models/backups", "config/backups", "logs/a/b"])
def test_a_backup_directory_inside_a_backed_up_one_is_refused(service: Service, where: str) -> None:
    (service.root / "config").mkdir()
    (service.root / "config/service.yaml").write_text("a: 1\n")
    service.environ["BACKUP_DIR"] = where
    with untouched(service.root), pytest.raises(ConfigError, match="lies inside"):
        service.back_up()


def test_a_backed_up_directory_inside_the_backup_directory_is_refused(service: Service) -> None:
    service.environ["BACKUP_DIR"] = "."
    with untouched(service.root), pytest.raises(ConfigError, match="lies inside"):
        service.back_up()


def test_a_backup_directory_reached_by_a_link_is_the_same_directory(service: Service) -> None:
    (service.root / "models/backups").mkdir()
    (service.root.parent / "link").symlink_to(service.root / "models/backups")
    service.environ["BACKUP_DIR"] = str(service.root.parent / "link")
    with untouched(service.root), pytest.raises(ConfigError, match="lies inside"):
        service.back_up()


# The program's words, whatever happens


def test_each_error_has_its_exit_code_and_tells_what_to_do(
    service: Service, run: Callable[..., Told], tmp_path: Path
) -> None:
    assert run("restore", "latest", "--confirm").code == 10
    assert run("backup").code == 0
    service.clock.forward()
    honest("full_20300101_000000").save(service.backups, None)
    foreign = tmp_path / "foreign.tar.gz"
    foreign.write_bytes(b"noise")
    for arguments, code in [
        (("restore", "full_19990101_000000", "--confirm"), 10),
        (("restore", "nonsense", "--confirm"), 10),
        (("restore", "full_2", "--confirm"), 2),
        (("restore", "full_20300101_000000", "--confirm"), 12),
        (("restore", str(foreign), "--confirm"), 1),
        (("restore", "full_20300101_000000", "--component", "weights"), 2),
        (("restore", "full_20300101_000000", "--component", "database"), 2),
        (("restore", "full_20300101_000000", "--trust"), 2),
        (("verify", "full_20300101_000000", "--deep"), 12),
        (("verify", str(foreign)), 1),
        (("ls", str(foreign)), 1),
        (("show", "nonsense"), 10),
        (("export", str(foreign)), 1),
        (("backup", "--component", "weights"), 2),
        (("backup", "--since", "full_19990101_000000"), 10),
        (("list", "--type", "weekly"), 2),
        (("pin", "nonsense"), 10),
        (("undo", "--confirm"), 1),
    ]:
        with untouched(service.root, but=[service.backups / "temp"]):
            told = run(*arguments)
        assert told.code == code, (arguments, told)
        assert "Error: " in told.errors
        assert "Hint: " in told.errors or code == 1
        if arguments[0] in ("restore", "verify", "show"):
            machine = run(*arguments, "--json")
            assert machine.code == code
            assert json.loads(machine.output)["exit_code"] == code


def test_what_a_backup_says_of_itself_cannot_speak_to_the_terminal(
    service: Service, run: Callable[..., Told]
) -> None:
    """A host name, a file name or an error message may hold what moves a cursor, or rewrites what was said."""
    escape = "\x1b[2J\x1b]0;owned\x07"
    forge = honest("full_20300101_000000", host=f"host{escape}", tool=f"tool{escape}", tags=[f"tag{escape}"])
    forge.file(f"files/models/z{escape}\udcff", b"1")
    forge.save(service.backups, service.installation().sign, says={"tags": [f"tag{escape}"]})
    honest("full_20300102_000000").save(
        service.backups, None, says={"status": "failed", "error_message": f"it failed{escape}\ud800"}
    )
    for arguments in (
        ("list", "--all"),
        ("show", "full_20300101_000000"),
        ("ls", "full_20300101_000000"),
        ("verify", "--all", "--deep"),
        ("restore", "full_20300102_000000"),
        ("restore", "full_20300101_000000", "--target", "elsewhere"),
        ("check",),
    ):
        told = run(*arguments)
        assert "\x1b" not in told.output + told.errors, arguments
        assert "\x07" not in told.output + told.errors, arguments
