"""The numbers in Prometheus' format, over HTTP and as a textfile of node-exporter.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://github.com/prometheus/node_exporter#textfile-collector
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from holdfast.absence import absence, last_good
from holdfast.clock import Clock
from holdfast.config import Settings
from holdfast.durable import explained
from holdfast.errors import ConfigError, HoldfastError, Interrupted
from holdfast.events import Emit, Warned
from holdfast.metrics._derive import BUCKETS, RESULTS, History, Numbers
from holdfast.model import BackupMetadata
from holdfast.retention import Policy, decide
from holdfast.schedules import Schedule, ScheduleFile
from holdfast.state import LocalState

Backups = Callable[[], Sequence[BackupMetadata]]
"""The backups that there are: `Repository.backups`."""

_READABLE = 0o644
"""Everybody may read the textfile, because node-exporter runs as a user of its own. No secret is in it."""


class Metrics(Collector):
    """Collects the numbers afresh each time; several threads may."""

    def __init__(self, settings: Settings, state: LocalState, backups: Backups, clock: Clock) -> None:
        self._settings = settings
        self._backups = backups
        self._clock = clock
        self._history = History(state.history_file)
        self._lock = threading.Lock()
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing: the names are known when they are collected."""
        return []

    def collect(self) -> list[Metric]:
        """All families. Raises StorageError when the history cannot be read; what depends on backups that cannot be
        listed is left out, and is an alarm where there is one."""
        with self._lock:
            families = list(_of_history(self._history.read()))
            schedules = self._schedules()
            families += _of_schedules(schedules or {})
            families += self._of_backups(schedules)
        return families

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)

    def _schedules(self) -> Mapping[str, Schedule] | None:
        try:
            return ScheduleFile(self._settings.backup_dir).read()
        except Interrupted:
            raise
        except HoldfastError:
            return None  # It is broken, which the scheduler tells.

    def _of_backups(self, schedules: Mapping[str, Schedule] | None) -> Iterator[Metric]:
        alarm_hours, now = self._settings.alarm_hours, self._clock()
        try:
            backups: Sequence[BackupMetadata] | None = self._backups()
        except Interrupted:
            raise
        except HoldfastError:
            backups = None
        if alarm_hours is not None:
            missing = backups is None or absence(backups, now, alarm_hours) is not None
            yield GaugeMetricFamily(
                "backup_alarm", "1 when there is no good backup younger than BACKUP_ALARM_HOURS", int(missing)
            )
            yield GaugeMetricFamily(
                "backup_alarm_seconds", "BACKUP_ALARM_HOURS, in seconds", alarm_hours * 3600
            )
        if backups is None:
            return
        good = [backup for backup in backups if backup.is_good]
        last = last_good(good, now)
        yield GaugeMetricFamily("backup_good_backups", "Good backups in the repository", len(good))
        yield GaugeMetricFamily(
            "backup_newest_timestamp_seconds",
            "When the newest good full or incremental backup in the repository began; 0 for none",
            last.moment.timestamp() if last else 0,
        )
        days = (
            None if schedules is None else {name: known.retention_days for name, known in schedules.items()}
        )
        policy = Policy(self._settings.retention_days, self._settings.keep, days)
        verdicts = [verdict for verdict in decide(backups, policy, now=now) if verdict.backup.is_good]
        kept = sum(verdict.keep for verdict in verdicts)
        yield GaugeMetricFamily(
            "backup_retention_compliance_ratio",
            "Share of the good backups in the repository that the retention keeps; the others are to be expired",
            kept / len(verdicts) if verdicts else 1,
        )


def _of_history(numbers: Numbers) -> Iterator[Metric]:
    yield CounterMetricFamily("backup_success", "Total successful backups", numbers.successes)
    yield CounterMetricFamily("backup_failure", "Total failed backups", numbers.failures)
    yield _duration(numbers)
    yield GaugeMetricFamily("backup_size_bytes", "Size of the last good backup", numbers.last_size or 0)
    yield GaugeMetricFamily(
        "backup_last_success_timestamp_seconds",
        "When the last good full or incremental backup was finished; 0 for never",
        numbers.last_success or 0,
    )
    yield GaugeMetricFamily(
        "backup_last_duration_seconds", "Duration of the last good backup", numbers.last_duration or 0
    )
    yield GaugeMetricFamily(
        "backup_consecutive_failures", "Failed backups in a row, up to the newest", numbers.failures_in_row
    )
    yield CounterMetricFamily(
        "backup_source_bytes", "Content that good backups stand for", numbers.source_bytes
    )
    yield CounterMetricFamily("backup_stored_bytes", "What good backups took as stored", numbers.stored_bytes)
    yield _by_result("backup_restores", "Restores", numbers.restores)
    yield _by_result("backup_verifications", "Verifications of backups", numbers.verifications)
    yield _by_result("backup_drills", "Rehearsed restores", numbers.drills)
    yield GaugeMetricFamily(
        "backup_drill_seconds",
        "Duration of the last good rehearsed restore",
        numbers.last_drill_duration or 0,
    )


def _duration(numbers: Numbers) -> Metric:
    count, buckets = 0, []
    for bound, found in zip([*map(float, BUCKETS), "+Inf"], numbers.durations, strict=True):
        count += found
        buckets.append((str(bound), count))
    return HistogramMetricFamily(
        "backup_duration_seconds", "Duration of good backups", buckets=buckets, sum_value=numbers.duration_sum
    )


def _by_result(name: str, help_: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, f"{help_}, by result", labels=["result"])
    for result in RESULTS:
        family.add_metric([result], counts[result])
    return family


def _of_schedules(schedules: Mapping[str, Schedule]) -> Iterator[Metric]:
    failures = GaugeMetricFamily(
        "backup_schedule_consecutive_failures", "Failures of a schedule in a row", labels=["schedule_id"]
    )
    for name, schedule in sorted(schedules.items()):
        failures.add_metric([name], schedule.consecutive_failures)
    yield failures
    yield GaugeMetricFamily("backup_schedules", "Schedules", len(schedules))
    yield GaugeMetricFamily(
        "backup_schedules_disabled",
        "Schedules that failed too often and do not run any more",
        sum(schedule.status != "active" for schedule in schedules.values()),
    )


class MetricsServer:
    """Answers Prometheus over HTTP, in a thread of its own."""

    def __init__(self, metrics: Metrics, address: str, port: int) -> None:
        """`port` 0: any that is free."""
        self._metrics = metrics
        self._address = address
        self._port = port
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The one that is listened on, once it has started."""
        return self._port if self._server is None else self._server.server_port

    def start(self) -> None:
        """Raises ConfigError when the port is taken, or the address is not one of this machine."""
        try:
            self._server, self._thread = start_http_server(self._port, self._address, self._metrics.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served at {self._address}:{self._port}: {error.strerror or error}",
                hint="Choose others with BACKUP_METRICS_PORT and BACKUP_METRICS_ADDRESS.",
            ) from error

    def stop(self) -> None:
        """Frees the port; does nothing where it was not started."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        self._server = self._thread = None


def write_textfile(path: Path, metrics: Metrics) -> None:
    """Writes the numbers for node-exporter's textfile collector, which reads ``*.prom``: atomically, so that it never
    sees half of them, and 0644. Raises StorageError."""
    data = metrics.text()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with explained(f"cannot write {path}"):
        fd = os.open(temporary, flags, _READABLE)
        try:
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, _READABLE)  # The umask may have taken from it.
                file.write(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def after_run(settings: Settings, state: LocalState, backups: Backups, clock: Clock, emit: Emit) -> None:
    """Writes BACKUP_METRICS_TEXTFILE, where it is set. For the end of every backup, verification and restore, good or
    not. What is wrong with it is a Warned: no run fails for it."""
    if settings.metrics_textfile is None:
        return
    try:
        write_textfile(settings.metrics_textfile, Metrics(settings, state, backups, clock))
    except Interrupted:
        raise
    except HoldfastError as error:
        emit(Warned(f"metrics: {error}"))
