"""Databases and models of one moment, and a backup that says so when they are not."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast.events import Event, Progressed, StageStarted, Warned, ignore
from holdfast.jobs.backup import backup
from holdfast.model import BackupMetadata, Report, SourceRecord
from installed import Service


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path)


class Training:
    """Subscribes to a backup, and writes a model whenever it comes to a stage of the run."""

    def __init__(self, model: Path, stage: str, *, times: int) -> None:
        self.written = 0
        self.warnings: list[str] = []
        self._model = model
        self._stage = stage
        self._times = times

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)
        if isinstance(event, StageStarted) and event.subject == self._stage and self.written < self._times:
            self.written += 1
            # Renamed into place, as a careful trainer does it.
            fresh = self._model.with_name("fresh")
            fresh.write_text(f"trained {self.written} times")
            fresh.rename(self._model)


def run(service: Service, training: Training) -> Report:
    report = backup(service.installation(), training)
    service.clock.forward()
    return report


def test_a_backup_of_databases_and_models_that_stood_still_is_coherent(service: Service) -> None:
    metadata = service.back_up()
    assert metadata.coherent is True
    assert (
        json.loads((service.backups / f"full/{metadata.backup_id}.metadata.json").read_text())["coherent"]
        is True
    )
    assert service.verify(metadata.backup_id).coherent is True


@pytest.mark.parametrize("components", [["database"], ["models"], ["database", "config"]])
def test_without_both_nothing_is_said(service: Service, components: list[str]) -> None:
    assert service.back_up(components=components).coherent is None


@pytest.mark.parametrize("stage", ["database main", "models"])
def test_a_model_that_is_retrained_meanwhile_has_both_taken_again(service: Service, stage: str) -> None:
    training = Training(service.root / "models/a.bin", stage, times=1)
    report = run(service, training)
    metadata = report.metadata
    assert metadata.coherent is True
    assert training.warnings == []
    assert any("everything is read again" in note for note in report.notes) or stage == "models"
    service.restore(metadata.backup_id)
    assert (service.root / "models/a.bin").read_text() == "trained 1 times"
    # Of the run that was taken back nothing is left, and it is not told as a failure.
    backups = service.installation().repository.backups()
    assert [known.backup_id for known in backups] == [metadata.backup_id]


def test_models_that_never_rest_are_told_and_backed_up(service: Service) -> None:
    training = Training(service.root / "models/a.bin", "database main", times=100)
    report = run(service, training)
    assert training.written == 3
    assert report.metadata.coherent is False
    assert report.metadata.is_good
    assert any("models kept changing" in warning for warning in training.warnings)
    service.verify(report.metadata.backup_id)


def test_a_tampered_claim_of_coherence_is_refused(service: Service) -> None:
    training = Training(service.root / "models/a.bin", "database main", times=100)
    metadata = run(service, training).metadata
    path = service.backups / f"full/{metadata.backup_id}.metadata.json"
    path.write_text(path.read_text().replace('"coherent": false', '"coherent": true'))
    with pytest.raises(Exception, match="contradict each other"):
        service.verify(metadata.backup_id)


def test_a_database_that_was_not_read_again_has_the_moment_of_its_parent(service: Service) -> None:
    # By this clock nothing is too young to be believed unchanged.
    service.clock.now = datetime(2100, 1, 1, tzinfo=UTC)
    full = service.back_up()
    (service.root / "models/new").write_text("new")
    report = backup(service.installation(), ignore, incremental=True)
    assert report.bytes_read == len("new")
    service.clock.forward()
    again = service.back_up(since=report.metadata.backup_id)
    assert moment(service, full)["rows"] == {"sample": 500}
    assert moment(service, report.metadata) == moment(service, again) == moment(service, full)


def moment(service: Service, metadata: BackupMetadata) -> dict[str, object]:
    with service.installation().repository.open(metadata) as stored:
        (record,) = [record for record in stored.sources() if record.component == "database"]
    assert isinstance(record, SourceRecord)
    return record.moment


class Rotation:
    """Subscribes to a backup, and cuts a log short and takes it away in the middle of its being read."""

    def __init__(self, log: Path) -> None:
        self.done = False
        self._log = log

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progressed) and not self.done:
            self.done = True
            self._log.write_bytes(b"")
            self._log.unlink()


def test_a_log_that_is_rotated_away_while_it_is_read_has_everything_read_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.jobs._progress._INTERVAL", 0.0)
    log = service.root / "logs/large.log"
    log.write_bytes(random.Random(1).randbytes(24_000_000))
    rotation = Rotation(log)
    report = backup(service.installation(), rotation, components=["logs"])
    assert rotation.done
    assert report.notes == ("files/logs/large.log was deleted while it was read: everything is read again",)
    assert report.metadata.source_bytes == len("started\n")
    service.verify(report.metadata.backup_id)
