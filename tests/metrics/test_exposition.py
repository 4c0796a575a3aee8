from __future__ import annotations

import re
import socket
import stat
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from acceptance.contract import sample
from holdfast.errors import ConfigError, Interrupted, SourceMissing, StorageError
from holdfast.events import Event, Warned, ignore
from holdfast.jobs.backup import backup
from holdfast.jobs.drill import drill
from holdfast.jobs.expire import expire
from holdfast.metrics import Metrics, MetricsServer, after_run
from holdfast.schedules import ScheduleFile, make_schedule
from installed import Service, untouched

Samples = dict[str, float]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path)


def metrics_of(service: Service) -> Metrics:
    installation = service.installation()
    return Metrics(
        installation.settings, installation.state, installation.repository.backups, installation.clock
    )


def parse(text: str) -> Samples:
    """By name and labels, as they are written."""
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def serving(service: Service) -> Iterator[MetricsServer]:
    server = MetricsServer(metrics_of(service), "127.0.0.1", 0)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def scrape(server: MetricsServer) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return parse(answer.read().decode())


def test_the_contracts_four_metrics_are_there_without_labels_from_the_beginning(service: Service) -> None:
    with serving(service) as server:
        found = scrape(server)
    for name in ("backup_success_total", "backup_failure_total", "backup_size_bytes"):
        assert found[name] == 0
    assert found["backup_duration_seconds_count"] == found["backup_duration_seconds_sum"] == 0
    assert found["backup_duration_seconds_bucket{le=1800.0}"] == 0
    assert found["backup_duration_seconds_bucket{le=+Inf}"] == 0


def test_the_types_are_those_of_the_contract(service: Service) -> None:
    text = metrics_of(service).text().decode()
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    namespace: dict[str, object] = {}
    exec(sample("Prometheus Integration", "python"), namespace)  # noqa: S102 - the contract's own words
    declared = {
        value.describe()[0].name: value.describe()[0].type
        for value in namespace.values()
        if hasattr(value, "describe") and not isinstance(value, type)
    }
    assert len(declared) == 4
    assert declared.items() <= types.items()


def test_what_is_scraped_follows_what_happens(service: Service) -> None:
    with serving(service) as server:
        first = service.back_up()
        assert scrape(server)["backup_success_total"] == 1
        service.clock.forward()
        second = service.back_up(incremental=True)
        service.verify("latest")
        service.restore("latest")
        assert scrape(server)["backup_drill_seconds"] == 0
        drill(service.installation(), "latest", ignore)
        service.clock.forward()
        with pytest.raises(SourceMissing):
            fail(service)
        found = scrape(server)
    assert found["backup_success_total"] == 2
    assert found["backup_failure_total"] == found["backup_consecutive_failures"] == 1
    assert found["backup_size_bytes"] == second.size_bytes
    assert found["backup_stored_bytes_total"] == first.size_bytes + second.size_bytes
    assert found["backup_source_bytes_total"] == first.source_bytes + second.source_bytes
    assert found["backup_duration_seconds_count"] == 2
    assert found["backup_last_success_timestamp_seconds"] == second.moment.timestamp()
    assert found["backup_newest_timestamp_seconds"] == second.moment.timestamp()
    assert found["backup_good_backups"] == 2
    assert found["backup_restores_total{result=success}"] == 1
    assert found["backup_restores_total{result=failed}"] == 0
    assert found["backup_verifications_total{result=success}"] == 1
    assert found["backup_drills_total{result=success}"] == 1
    assert found["backup_drills_total{result=failed}"] == 0
    assert found["backup_drill_seconds"] > 0


def fail(service: Service) -> None:
    for path in (service.root / "logs").iterdir():
        path.unlink()
    (service.root / "logs").rmdir()
    backup(service.installation(), ignore, components=["logs"])


def test_an_interrupted_run_is_no_failure(service: Service) -> None:
    def interrupt(event: Event) -> None:
        raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        backup(service.installation(), interrupt)
    found = parse(metrics_of(service).text().decode())
    assert found["backup_failure_total"] == found["backup_consecutive_failures"] == 0


def test_an_interrupted_verification_counts_neither_way(service: Service) -> None:
    from holdfast.jobs.verify import verify

    service.back_up()
    for kind in (Interrupted, KeyboardInterrupt):

        def interrupt(event: Event, kind: type[BaseException] = kind) -> None:
            if type(event).__name__ == "StageStarted":
                raise kind("interrupted")

        with pytest.raises(kind):
            verify(service.installation(), "latest", interrupt)
    found = parse(metrics_of(service).text().decode())
    assert found["backup_verifications_total{result=success}"] == 0
    assert found["backup_verifications_total{result=failed}"] == 0


def test_counts_survive_a_restart_and_the_expiry_of_backups(service: Service) -> None:
    for _ in range(3):
        service.back_up()
    service.clock.forward(40 * 24 * 3600)
    late = service.back_up()
    before = parse(metrics_of(service).text().decode())
    assert before["backup_retention_compliance_ratio"] == 0.25
    expire(service.installation(), ignore)
    after = parse(metrics_of(service).text().decode())
    assert after["backup_good_backups"] == 1
    assert after["backup_retention_compliance_ratio"] == 1
    for name in ("backup_success_total", "backup_duration_seconds_count", "backup_stored_bytes_total"):
        assert after[name] == before[name] > 0
    assert after["backup_last_success_timestamp_seconds"] == late.moment.timestamp()


def test_the_alarm_is_one_while_good_backups_are_missing(service: Service) -> None:
    assert "backup_alarm" not in parse(metrics_of(service).text().decode())
    service.environ["BACKUP_ALARM_HOURS"] = "24"
    assert parse(metrics_of(service).text().decode())["backup_alarm"] == 1
    service.back_up()
    found = parse(metrics_of(service).text().decode())
    assert (found["backup_alarm"], found["backup_alarm_seconds"]) == (0, 86400)
    service.clock.forward(24 * 3600)
    assert parse(metrics_of(service).text().decode())["backup_alarm"] == 1


def test_backups_that_cannot_be_listed_are_an_alarm_and_not_a_gap(service: Service) -> None:
    def unreadable() -> list[object]:
        raise StorageError("stale")

    service.environ["BACKUP_ALARM_HOURS"] = "24"
    service.back_up()
    installation = service.installation()
    metrics = Metrics(installation.settings, installation.state, unreadable, installation.clock)  # type: ignore[arg-type]
    found = parse(metrics.text().decode())
    assert found["backup_alarm"] == 1
    assert found["backup_success_total"] == 1
    assert "backup_good_backups" not in found


def test_schedules_are_counted_with_their_failures(service: Service) -> None:
    installation = service.installation()
    installation.settings.backup_dir.mkdir()
    schedule = make_schedule(
        {"schedule_type": "daily"}, installation.settings, schedule_id="nightly", now=installation.clock()
    )
    for _ in range(3):
        schedule = schedule.begun(installation.clock()).failed()
    with ScheduleFile(installation.settings.backup_dir).changing() as schedules:
        schedules[schedule.schedule_id] = schedule
    found = parse(metrics_of(service).text().decode())
    assert found["backup_schedules"] == found["backup_schedules_disabled"] == 1
    assert found[f"backup_schedule_consecutive_failures{{schedule_id={schedule.schedule_id}}}"] == 3


def test_a_broken_schedules_file_takes_nothing_else_away(service: Service) -> None:
    service.back_up()
    (service.backups / "schedules.json").write_text("{")
    found = parse(metrics_of(service).text().decode())
    assert found["backup_success_total"] == 1
    assert found["backup_retention_compliance_ratio"] == 1


def test_a_port_that_is_taken_is_refused_and_named(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = MetricsServer(metrics_of(service), "127.0.0.1", port)
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: Address already in use") as caught:
            server.start()
        assert "BACKUP_METRICS_PORT" in caught.value.hint
        server.stop()


def test_an_address_of_nobody_here_is_refused(service: Service) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        MetricsServer(metrics_of(service), "192.0.2.1", 0).start()
    with pytest.raises(ConfigError, match=r"no\.such\.host\.invalid"):
        MetricsServer(metrics_of(service), "no.such.host.invalid", 0).start()


def test_a_stopped_server_has_freed_its_port(service: Service) -> None:
    with serving(service) as server:
        port = server.port
    again = MetricsServer(metrics_of(service), "127.0.0.1", port)
    again.start()
    again.stop()
    again.stop()


def test_many_scrapes_at_once_agree(service: Service) -> None:
    for _ in range(3):
        service.back_up()
    counts = []
    with serving(service) as server:
        threads = [
            threading.Thread(target=lambda: counts.append(scrape(server)["backup_success_total"]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert counts == [3] * 8


def test_the_textfile_is_written_after_a_run_whole_and_readable_for_all(
    service: Service, tmp_path: Path
) -> None:
    directory = tmp_path / "node"
    directory.mkdir()
    file = directory / "holdfast.prom"
    events: list[Event] = []

    def run() -> None:
        now = service.installation()
        after_run(now.settings, now.state, now.repository.backups, now.clock, events.append)

    run()
    assert list(directory.iterdir()) == []
    service.environ["BACKUP_METRICS_TEXTFILE"] = str(file)
    for count in (1, 2):
        service.back_up()
        run()
        assert parse(file.read_text())["backup_success_total"] == count
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(directory.iterdir()) == [file]
    assert events == []


def test_a_textfile_that_cannot_be_written_is_a_warning(service: Service, tmp_path: Path) -> None:
    service.environ["BACKUP_METRICS_TEXTFILE"] = str(tmp_path / "missing" / "holdfast.prom")
    events: list[Event] = []
    now = service.installation()
    after_run(now.settings, now.state, now.repository.backups, now.clock, events.append)
    [event] = events
    assert isinstance(event, Warned)
    assert "holdfast.prom" in event.message
    (tmp_path / "taken.prom").mkdir()
    service.environ["BACKUP_METRICS_TEXTFILE"] = str(tmp_path / "taken.prom")
    now = service.installation()
    with untouched(tmp_path):
        after_run(now.settings, now.state, now.repository.backups, now.clock, events.append)
    assert len(events) == 2


def test_nothing_secret_and_no_path_is_exported(service: Service) -> None:
    service.environ |= {
        "BACKUP_PING_URL": "https://example.com/hidden",
        "SMTP_PASSWORD": "hidden",
        "BACKUP_ALARM_HOURS": "5",
    }
    service.back_up()
    text = metrics_of(service).text().decode()
    assert "hidden" not in text
    assert str(service.root) not in text


def test_every_metric_is_in_the_reference_with_its_type(service: Service) -> None:
    service.environ["BACKUP_ALARM_HOURS"] = "24"
    service.back_up()
    families = text_string_to_metric_families(metrics_of(service).text().decode())
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): family.type for family in families
    }
    page = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
    described = dict(re.findall(r"^\| `(backup_\w+)` \| (\w+) \|", page.read_text(), re.MULTILINE))
    assert described == exported
