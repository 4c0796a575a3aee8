"""Restoring some of a backup, of either format: elsewhere, and over what is live."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Self

import pytest

from holdfast import installation
from holdfast.errors import ConfirmationRequired, RestoreError, UsageError
from holdfast.events import ignore
from holdfast.jobs.diff import diff
from holdfast.jobs.ls import ls
from holdfast.jobs.undo import discard_kept, undo
from holdfast.storage.local import LocalFile, LocalStorage
from installed import Service, agree, refused, seen

A = "files/models/a.bin"


@pytest.fixture(params=["archive", "dedup"])
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Service:
    service = Service.make(tmp_path, BACKUP_FORMAT=request.param)
    deep = service.root / "models/deep/er"
    deep.mkdir(parents=True)
    (deep / "x").write_bytes(b"deep")
    (deep / "y").write_bytes(b"also deep")
    for directory, mode in ((deep, 0o750), (deep.parent, 0o2711)):
        directory.chmod(mode)
        os.utime(directory, ns=(0, 1_600_000_000_000_000_000))
    return service


def content(top: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in top.rglob("*")
    }


def places(service: Service) -> list[Path]:
    return list(service.root.rglob(".holdfast-*"))


@pytest.mark.parametrize("incremental", [False, True])
def test_one_file_comes_back_elsewhere_with_the_directories_above_it(
    service: Service, tmp_path: Path, incremental: bool
) -> None:
    service.back_up()
    (service.root / "models/a.bin").write_bytes(b"retrained")
    service.back_up(incremental=incremental)
    done = service.restore("latest", paths=["files/models/deep/er/x"], target=tmp_path / "out", confirm=None)
    assert content(tmp_path / "out") == {
        "models": None,
        "models/deep": None,
        "models/deep/er": None,
        "models/deep/er/x": b"deep",
    }
    for path, mode in (("models/deep", 0o2711), ("models/deep/er", 0o750)):
        status = (tmp_path / "out" / path).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (mode, 1_600_000_000_000_000_000)
    assert (done.sources, done.entries, done.bytes_restored) == (("models models",), 4, 4)


def test_every_notation_names_the_same_file(service: Service, tmp_path: Path) -> None:
    service.back_up()
    notations = [A, "models/a.bin", "./models//a.bin", f"{service.root}/models/a.bin"]
    for number, path in enumerate(notations):
        out = tmp_path / str(number)
        service.restore("latest", paths=[path], target=out)
        assert content(out) == {"models": None, "models/a.bin": b"live"}


def test_a_directory_brings_all_that_is_in_it_and_several_paths_add_up(
    service: Service, tmp_path: Path
) -> None:
    service.back_up()
    paths = ["models/deep/", "models/deep/er/x", "models/link", ".env"]
    service.restore("latest", paths=paths, target=tmp_path / "out")
    found = content(tmp_path / "out")
    assert sorted(found) == [
        ".env",
        "models",
        "models/deep",
        "models/deep/er",
        "models/deep/er/x",
        "models/deep/er/y",
        "models/link",
    ]
    assert os.readlink(tmp_path / "out/models/link") == "a.bin"


def test_a_name_that_only_begins_alike_is_not_chosen(service: Service, tmp_path: Path) -> None:
    (service.root / "models/deeper").write_bytes(b"another")
    service.back_up()
    service.restore("latest", paths=["models/deep"], target=tmp_path / "out")
    assert "models/deeper" not in content(tmp_path / "out")


@pytest.mark.parametrize("path", ["database/main.db", "service.db"])
def test_a_database_can_be_chosen_by_either_of_its_names(service: Service, tmp_path: Path, path: str) -> None:
    service.back_up()
    service.restore("latest", paths=[path], target=tmp_path / "out")
    assert list(content(tmp_path / "out")) == ["service.db"]
    with closing(sqlite3.connect(tmp_path / "out/service.db")) as database:
        assert database.execute("SELECT count(*) FROM sample").fetchone() == (500,)


def test_a_database_that_is_chosen_goes_back_into_the_live_one(service: Service) -> None:
    service.back_up()
    with closing(sqlite3.connect(service.root / "service.db")) as database:
        database.execute("DELETE FROM sample")
        database.commit()
    (service.root / "models/a.bin").write_bytes(b"newer")
    service.restore("latest", paths=["service.db"])
    with closing(sqlite3.connect(service.root / "service.db")) as database:
        assert database.execute("SELECT count(*) FROM sample").fetchone() == (500,)
    assert (service.root / "models/a.bin").read_bytes() == b"newer"


def test_a_further_name_of_a_file_that_was_not_chosen_becomes_the_file(
    service: Service, tmp_path: Path
) -> None:
    models = service.root / "models"
    (models / "v1").mkdir()
    (models / "v2").mkdir()
    for name in ("one", "two"):
        (models / "v1" / name).write_bytes(name.encode() * 100_000)
        os.link(models / "v1" / name, models / "v2" / name)
    os.link(models / "v1/one", models / "v2/again")
    service.back_up()
    done = service.restore("latest", paths=["models/v2"], target=tmp_path / "out")
    found = tmp_path / "out/models/v2"
    assert content(found) == {
        "one": b"one" * 100_000,
        "again": b"one" * 100_000,
        "two": b"two" * 100_000,
    }
    assert found.joinpath("one").stat().st_ino == found.joinpath("again").stat().st_ino
    assert not (tmp_path / "out/models/v1").exists()
    assert done.bytes_restored == 600_000
    # Where the first name comes too, they stay one file.
    service.restore("latest", paths=["models/v1/one", "models/v2/one"], target=tmp_path / "both")
    assert (tmp_path / "both/models/v2/one").stat().st_nlink == 2


def test_a_path_that_the_backup_lacks_is_refused_with_the_nearest_one(service: Service) -> None:
    service.back_up()
    nearest = {
        "models/a.bim": A,
        "files/models/deep/er/z": "files/models/deep/er/x",
        "a.bin": A,
        f"{service.root}/models/d/y": "files/models/d/x",
        "servcie.db": "files/service.db",
    }
    for path, near in nearest.items():
        with refused(service, UsageError, match="does not hold") as raised:
            service.restore("latest", paths=[path])
        assert isinstance(raised.value, UsageError)
        assert raised.value.hint == f"Did you mean {near}?"
    for path in ("", "models/../.env", "\0"):
        with refused(service, UsageError):
            service.restore("latest", paths=[path])
    with refused(service, UsageError, match="does not hold models/a.bin"):
        service.restore("latest", components=["config"], paths=["models/a.bin"])


def test_a_path_that_may_mean_two_things_is_refused(service: Service, tmp_path: Path) -> None:
    inner = service.root / "files/models"
    inner.mkdir(parents=True)
    (inner / "a.bin").write_bytes(b"inner")
    (service.root / "holdfast.toml").write_text('[models]\npaths = ["models", "files"]\n')
    service.back_up()
    with refused(service, UsageError, match="files/models/a.bin and files/files/models/a.bin"):
        service.restore("latest", paths=[A])
    service.restore("latest", paths=[f"{service.root}/files/models/a.bin"], target=tmp_path / "out")
    assert content(tmp_path / "out")["files/models/a.bin"] == b"inner"


def test_in_place_only_what_was_chosen_is_replaced_and_undo_takes_it_back(service: Service) -> None:
    full = service.back_up()
    models = service.root / "models"
    (models / "a.bin").write_bytes(b"newer")
    (models / "deep/er/x").write_bytes(b"newer")
    (models / "deep/er/added").write_bytes(b"stays not")
    (models / "d/x").write_bytes(b"stays")
    (models / "d/neighbour").write_bytes(b"stays")
    before = seen(models)
    service.restore(full.backup_id, paths=[A, "models/deep/er"])
    after = seen(models, but=places(service))
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert changed == {"a.bin", "deep/er", "deep/er/x", "deep/er/y", "deep/er/added"}
    assert (models / "a.bin").read_bytes() == b"live"
    assert content(models / "deep/er") == {"x": b"deep", "y": b"also deep"}
    undo(service.installation(), ignore, confirm=agree)
    assert seen(models, but=places(service)) == before


def test_nothing_of_ours_lies_in_a_directory_when_all_of_it_is_restored_later(service: Service) -> None:
    service.back_up()
    before = seen(service.root / "models")
    (service.root / "models/deep/er/x").write_bytes(b"newer")
    service.restore("latest", paths=["models/deep/er/x"])
    assert [place.parent for place in places(service)] == [service.root]
    service.restore("latest", components=["models"])
    undo(service.installation(), ignore, confirm=agree)
    discard_kept(service.installation(), ignore)
    assert places(service) == []
    assert content(service.root / "models").keys() == before.keys()


def test_in_place_missing_directories_come_with_their_attributes_and_nothing_else(service: Service) -> None:
    service.back_up()
    models = service.root / "models"
    shutil.rmtree(models / "deep")
    service.restore("latest", paths=["models/deep/er/y"])
    assert content(models / "deep") == {"er": None, "er/y": b"also deep"}
    assert stat.S_IMODE((models / "deep").stat().st_mode) == 0o2711
    assert stat.S_IMODE((models / "deep/er").stat().st_mode) == 0o750
    undo(service.installation(), ignore, confirm=agree)
    assert not (models / "deep").exists()
    shutil.rmtree(models)
    service.restore("latest", paths=["models/deep/er/y", "models/a.bin"])
    assert sorted(content(models)) == ["a.bin", "deep", "deep/er", "deep/er/y"]


def test_in_place_a_link_in_a_directory_is_replaced_and_not_followed(
    service: Service, tmp_path: Path
) -> None:
    service.back_up()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.bin").write_bytes(b"not ours")
    models = service.root / "models"
    (models / "a.bin").unlink()
    (models / "a.bin").symlink_to(outside / "a.bin")
    service.restore("latest", paths=[A])
    assert ((models / "a.bin").read_bytes(), (models / "a.bin").is_symlink()) == (b"live", False)
    shutil.rmtree(models / "deep")
    (models / "deep").symlink_to(outside)
    with pytest.raises(RestoreError, match="is no directory, and in the backup it is one"):
        service.restore("latest", paths=["models/deep/er/x"])
    assert content(outside) == {"a.bin": b"not ours"}
    service.restore("latest", paths=["models/deep"])
    assert content(models / "deep/er") == {"x": b"deep", "y": b"also deep"}
    assert content(outside) == {"a.bin": b"not ours"}


def test_in_place_a_root_that_is_a_link_is_followed(service: Service, tmp_path: Path) -> None:
    real = tmp_path / "disk"
    (service.root / "models").rename(real)
    (service.root / "models").symlink_to(real)
    service.back_up()
    (real / "d/x").write_bytes(b"newer")
    service.restore("latest", paths=["models/d/x"])
    assert (real / "d/x").read_bytes() == b"live too"
    assert (service.root / "models").is_symlink()


def test_what_lies_outside_the_service_goes_back_only_where_that_is_configured(
    service: Service, tmp_path: Path
) -> None:
    models = tmp_path / "disk"
    (models / "d").mkdir(parents=True)
    (models / "d/x").write_bytes(b"outside")
    settings = service.root / "holdfast.toml"
    settings.write_text(f'[models]\npaths = ["{models}"]\n')
    service.back_up()
    (models / "d/x").write_bytes(b"newer")
    service.restore("latest", paths=[f"{models}/d/x"])
    assert (models / "d/x").read_bytes() == b"outside"
    settings.unlink()
    with refused(service, RestoreError, match="not configured here"):
        service.restore("latest", paths=[f"absolute{models}/d/x"])


def test_the_question_names_what_is_replaced_and_without_a_yes_nothing_is(service: Service) -> None:
    service.back_up()
    asked: list[str] = []

    def refuse(question: str) -> bool:
        asked.append(question)
        return False

    (service.root / "models/a.bin").write_bytes(b"newer")
    with refused(service, ConfirmationRequired, match="replaces files/models/a.bin in"):
        service.restore("latest", paths=["models/a.bin"], confirm=refuse)
    assert asked[0].startswith("Replace files/models/a.bin in ")


def test_a_damaged_file_leaves_all_as_it_was(service: Service) -> None:
    (service.root / "models/big").write_bytes(os.urandom(300_000))
    service.back_up()
    (service.root / "models/a.bin").write_bytes(b"newer")
    for path in service.backups.rglob("*"):
        if path.is_file() and path.stat().st_size > 200_000:
            data = bytearray(path.read_bytes())
            data[100_000] ^= 1
            path.write_bytes(data)
    with refused(service, Exception):
        service.restore("latest", paths=["models/a.bin", "models/big"])


class Counted(LocalFile):
    """Counts the bytes that are read, by the directory that the file lies in."""

    def __init__(self, path: Path, read: Counter[str], kind: str) -> None:
        super().__init__(path)
        self._read = read
        self._kind = kind

    def read_at(self, offset: int, length: int) -> bytes:
        data = super().read_at(offset, length)
        self._read[self._kind] += len(data)
        return data

    def __enter__(self) -> Self:
        return self


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How many bytes are read of packs, of archives (``full``), of manifests."""
    counted: Counter[str] = Counter()

    class Counting(LocalStorage):
        def open(self, name: str) -> LocalFile:
            return Counted(self._path(name), counted, name.partition("/")[0])

    monkeypatch.setattr(installation, "LocalStorage", Counting)
    return counted


def test_of_many_models_little_more_is_read_than_the_one(
    service: Service, tmp_path: Path, read: Counter[str]
) -> None:
    for number in range(40):
        (service.root / f"models/m{number:02}").write_bytes(os.urandom(1_500_000))
    service.back_up(components=["models"])
    read.clear()
    service.restore("latest", paths=["models/m17"], target=tmp_path / "out")
    assert (tmp_path / "out/models/m17").stat().st_size == 1_500_000
    if service.environ["BACKUP_FORMAT"] == "dedup":
        # The tail of its pack, with the table, and the blocks that it lies in.
        assert 1_500_000 <= read["packs"] < 1_500_000 + (1 << 20) + (128 << 10)
        assert read["models"] < 64 << 10
    else:
        assert 1_500_000 <= read["models"] < 6_000_000


def test_listing_and_comparing_reads_no_pack(tmp_path: Path, read: Counter[str]) -> None:
    service = Service.make(tmp_path, BACKUP_FORMAT="dedup")
    one = service.back_up()
    (service.root / "models/new").write_bytes(b"new")
    (service.root / ".env").write_text("SETTING=2\n")
    other = service.back_up()
    read.clear()
    assert len(list(ls(service.installation(), "latest"))) > 5
    assert len(list(diff(service.installation(), one.backup_id, other.backup_id))) == 2
    assert (read["packs"], read["full"] > 0) == (0, True)
