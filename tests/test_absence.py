from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast.absence import absence, last_good
from holdfast.clock import timestamp
from holdfast.jobs.check import check
from holdfast.model import BackupMetadata, BackupType, Finding, ManifestLocation, make_backup_id
from installed import Service

NOW = datetime(2024, 1, 10, 12, tzinfo=UTC)


def made(hours_ago: float, kind: BackupType = "full", status: str = "success") -> BackupMetadata:
    moment = NOW - timedelta(hours=hours_ago)
    return BackupMetadata(
        backup_id=make_backup_id(kind, moment),
        timestamp=timestamp(moment),
        version="1.0.0",
        type=kind,
        size_bytes=1,
        checksum="0" * 64,
        components=("config",),
        status=status,
        manifest=ManifestLocation("0" * 64, 1, 0),
    )


def test_the_last_good_backup_is_the_newest_full_or_incremental_one_in_any_order() -> None:
    backups = [made(9), made(3, "incremental"), made(5), made(1, "config"), made(1, "models")]
    assert last_good(backups, NOW) == backups[1]
    assert last_good(backups[::-1], NOW) == backups[1]
    assert last_good([made(1, status=status) for status in ("failed", "running", "damaged")], NOW) is None


def test_a_backup_from_the_future_hides_no_absence() -> None:
    assert last_good([made(-0.5)], NOW) is not None
    assert last_good([made(-24), made(30)], NOW) == made(30)


@pytest.mark.parametrize(("hours", "missing"), [(23.9, False), (24, False), (24.1, True)])
def test_the_alarm_begins_after_its_hours(hours: float, missing: bool) -> None:
    found = absence([made(hours)], NOW, 24)
    assert (found is not None) == missing
    if found:
        assert str(found) == (
            "no good backup for 24.1 hours, more than 24: the last one is " + made(24.1).backup_id
        )


def test_no_backup_at_all_is_an_absence() -> None:
    assert str(absence([], NOW, 24)) == "there is no good backup"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path)


def backups_of(service: Service) -> Finding:
    [finding] = [found for found in check(service.installation()) if found.subject == "backups"]
    return finding


def test_check_fails_while_good_backups_are_missing(service: Service) -> None:
    assert backups_of(service).state == "warning"
    service.environ["BACKUP_ALARM_HOURS"] = "24"
    assert backups_of(service) == Finding("backups", "FAILED", "there is no good backup")
    service.back_up()
    assert backups_of(service).state == "ok"
    service.clock.forward(24 * 3600)
    assert backups_of(service).state == "FAILED"
    assert "no good backup for 25.0 hours" in backups_of(service).detail
    del service.environ["BACKUP_ALARM_HOURS"]
    assert backups_of(service).state == "ok"


def test_check_tells_of_notifications_that_cannot_work(service: Service) -> None:
    assert "notifications" not in {found.subject for found in check(service.installation())}
    service.environ["SMTP_USERNAME"] = "robot"
    [finding] = [found for found in check(service.installation()) if found.subject == "notifications"]
    assert (finding.state, finding.detail) == ("FAILED", "SMTP_USERNAME is set, and SMTP_PASSWORD is not")
