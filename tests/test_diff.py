"""What differs between two backups, of whichever format."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.crypto import X25519Identity
from holdfast.errors import BackupNotFound
from holdfast.jobs.diff import Difference, RowDifference, TensorDifference, diff
from installed import Service
from repository.dedup.models import gguf


@pytest.fixture(params=["archive", "dedup"])
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Service:
    return Service.make(tmp_path, BACKUP_FORMAT=request.param)


def told(service: Service, one: str, other: str) -> list[tuple[str, ...]]:
    found = []
    for item in diff(service.installation(), one, other):
        if isinstance(item, RowDifference):
            found.append(("rows", item.table, str(item.before), str(item.after)))
        else:
            assert isinstance(item, Difference)
            found.append((item.change, item.path))
    return found


def test_a_backup_does_not_differ_from_itself(service: Service) -> None:
    full = service.back_up()
    assert told(service, full.backup_id, "latest") == []


@pytest.mark.parametrize("incremental", [False, True])
def test_what_was_added_removed_and_changed_is_told_in_order(service: Service, incremental: bool) -> None:
    full = service.back_up()
    models = service.root / "models"
    (models / "a.bin").write_bytes(b"retrained")
    (models / "d/x").unlink()
    (models / "new").write_bytes(b"new")
    (service.root / ".env").chmod(0o600 if (service.root / ".env").stat().st_mode & 0o077 else 0o640)
    with closing(sqlite3.connect(service.root / "service.db")) as database:
        database.execute("DELETE FROM sample WHERE id < 11")
        database.execute("CREATE TABLE other (id INTEGER)")
        database.commit()
    second = service.back_up(incremental=incremental)
    assert told(service, full.backup_id, second.backup_id) == [
        ("rows", "other", "None", "0"),
        ("rows", "sample", "500", "490"),
        ("changed", "database/main.db"),
        ("changed", "files/models/a.bin"),
        ("removed", "files/models/d/x"),
        ("added", "files/models/new"),
        ("attributes", "files/.env"),
    ]
    assert ("added", "files/models/d/x") in told(service, second.backup_id, full.backup_id)


def test_a_component_that_only_one_holds_is_added_or_removed(service: Service) -> None:
    full = service.back_up(components=["models", "config"])
    models = service.back_up(components=["models"])
    assert told(service, models.backup_id, full.backup_id) == [("added", "files/.env")]
    assert told(service, full.backup_id, models.backup_id) == [("removed", "files/.env")]


def test_a_file_that_was_only_touched_has_other_attributes(service: Service) -> None:
    full = service.back_up()
    os.utime(service.root / "models/a.bin", (1, 1))
    second = service.back_up()
    assert told(service, full.backup_id, second.backup_id) == [("attributes", "files/models/a.bin")]


def test_an_unknown_backup_is_an_error(service: Service) -> None:
    service.back_up()
    with pytest.raises(BackupNotFound):
        told(service, "latest", "full_20200101_000000")


def tensors(service: Service, one: str, other: str) -> list[tuple[str, ...]]:
    return [
        (item.change, item.path.rpartition("/")[2], item.tensor)
        for item in diff(service.installation(), one, other)
        if isinstance(item, TensorDifference)
    ]


@pytest.fixture(params=["true", "false"])
def dedup(tmp_path: Path, request: pytest.FixtureRequest) -> Service:
    key = X25519Identity.generate()
    environ = {"BACKUP_FORMAT": "dedup", "BACKUP_ENCRYPT": request.param, "ENCRYPTION_KEY": key.reveal()}
    return Service.make(tmp_path, **environ)


def weights(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {f"layer.{n:03}": draw.normal(0, 1, (64, 48)).astype(np.float32) for n in range(count)}


def test_of_a_model_that_was_tuned_the_changed_tensors_are_told(dedup: Service) -> None:
    before = weights(200)
    file = dedup.root / "models/m.safetensors"
    file.write_bytes(save(before))
    (dedup.root / "models/x.gguf").write_bytes(gguf({"w": (0, [4], bytes(16))}))
    one = dedup.back_up()
    after = before | {f"layer.{n:03}": before[f"layer.{n:03}"] * 2 for n in (3, 77, 199)}
    after["layer.000"] = before["layer.000"].astype(np.float16)
    after["layer.001"] = before["layer.001"].reshape(48, 64)
    after["renamed"] = after.pop("layer.002")
    file.write_bytes(save(after))
    (dedup.root / "models/x.gguf").write_bytes(gguf({"w": (0, [4], b"\1" * 16)}))
    other = dedup.back_up(incremental=True)
    assert tensors(dedup, one.backup_id, other.backup_id) == [
        ("form", "m.safetensors", "layer.000"),
        ("form", "m.safetensors", "layer.001"),
        ("removed", "m.safetensors", "layer.002"),
        ("changed", "m.safetensors", "layer.003"),
        ("changed", "m.safetensors", "layer.077"),
        ("changed", "m.safetensors", "layer.199"),
        ("added", "m.safetensors", "renamed"),
        ("changed", "x.gguf", "w"),
    ]
    found = [
        item for item in diff(dedup.installation(), one.backup_id, "latest") if item.path.endswith("x.gguf")
    ]
    assert [type(item) for item in found] == [Difference, TensorDifference]


def test_a_model_that_was_only_written_anew_has_no_other_tensors(dedup: Service) -> None:
    file = dedup.root / "models/m.safetensors"
    file.write_bytes(save(weights(3)))
    one = dedup.back_up()
    file.write_bytes(save(weights(3), {"saved": "again"}))
    other = dedup.back_up()
    assert told(dedup, one.backup_id, other.backup_id) == [("changed", "files/models/m.safetensors")]


def test_tensors_are_not_told_of_what_is_no_model_now_nor_across_formats(dedup: Service) -> None:
    file = dedup.root / "models/m.safetensors"
    file.write_bytes(save(weights(3)))
    one = dedup.back_up()
    file.write_bytes(b"{}" + os.urandom(1000))
    two = dedup.back_up()
    assert tensors(dedup, one.backup_id, two.backup_id) == []
    dedup.environ["BACKUP_FORMAT"] = "archive"
    file.write_bytes(save(weights(4)))
    three = dedup.back_up()
    file.write_bytes(save(weights(5)))
    four = dedup.back_up()
    assert tensors(dedup, one.backup_id, three.backup_id) == []
    assert tensors(dedup, three.backup_id, four.backup_id) == []
    assert ("changed", "files/models/m.safetensors") in told(dedup, three.backup_id, four.backup_id)


def test_what_is_the_same_is_the_same_in_the_other_format(dedup: Service) -> None:
    large = dedup.root / "models/large.bin"
    large.write_bytes(os.urandom(3_000_000))
    one = dedup.back_up()
    dedup.environ["BACKUP_FORMAT"] = "archive"
    other = dedup.back_up()
    assert told(dedup, one.backup_id, other.backup_id) == []
    content = bytearray(large.read_bytes())
    content[1_500_000] ^= 1
    large.write_bytes(content)
    third = dedup.back_up()
    assert told(dedup, one.backup_id, third.backup_id) == [("changed", "files/models/large.bin")]


def test_ids_under_another_key_are_not_compared(tmp_path: Path) -> None:
    key = X25519Identity.generate()
    service = Service.make(
        tmp_path, BACKUP_FORMAT="dedup", BACKUP_ENCRYPT="true", ENCRYPTION_KEY=str(key.recipient)
    )
    file = service.root / "models/m.safetensors"
    file.write_bytes(save(weights(3)))
    one = service.back_up()
    # A host that can only write, and has lost its state, names chunks by a key of its own from then on.
    shutil.rmtree(tmp_path / "state")
    file.write_bytes(save(weights(4)))
    other = service.back_up()
    service.environ["ENCRYPTION_KEY"] = key.reveal()
    assert told(service, one.backup_id, other.backup_id) == [("changed", "files/models/m.safetensors")]


def test_the_program_prints_tensors_as_text_and_as_json(
    dedup: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = dedup.root / "models/m.safetensors"
    before = weights(3)
    file.write_bytes(save(before))
    one = dedup.back_up().backup_id
    evil = "\x1b[31mevil"
    file.write_bytes(
        save({"layer.000": before["layer.000"] + 1, "layer.001": np.ones((2, 2)), evil: np.ones(1, np.int8)})
    )
    other = dedup.back_up().backup_id
    monkeypatch.chdir(dedup.root)
    for name, value in dedup.environ.items():
        monkeypatch.setenv(name, value)
    runner = CliRunner()
    lines = runner.invoke(app, ["diff", one, other]).stdout.splitlines()
    path = "files/models/m.safetensors"
    assert lines[1:] == [
        rf"T {path} \x1b[31mevil: none -> I8 1",
        f"T {path} layer.000: F32 64x48, other content",
        f"T {path} layer.001: F32 64x48 -> F64 2x2",
        f"T {path} layer.002: F32 64x48 -> none",
    ]
    printed = [
        json.loads(line) for line in runner.invoke(app, ["diff", one, other, "--json"]).stdout.splitlines()
    ]
    assert printed[3] == {
        "path": path,
        "tensor": "layer.001",
        "change": "form",
        "before": {"dtype": "F32", "shape": "64x48"},
        "after": {"dtype": "F64", "shape": "2x2"},
    }
    assert (printed[1]["before"], printed[4]["after"]) == (None, None)
