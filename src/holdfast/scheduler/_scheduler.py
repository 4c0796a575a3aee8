"""`BackupScheduler`: the contract's Python API of schedules, and the loop."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from logging import INFO, getLevelName
from pathlib import Path
from typing import Any
from uuid import uuid4

from holdfast.clock import Clock, parse_timestamp, system_clock, timestamp
from holdfast.config import BackupConfig, Settings
from holdfast.errors import ConfigError, HoldfastError, Interrupted, UsageError
from holdfast.eventlog import describe, log
from holdfast.events import Emit, Event, Noted, RunFailed, Warned
from holdfast.installation import Installation
from holdfast.manager import encryption
from holdfast.metrics import Metrics, MetricsServer, after_run
from holdfast.notify import Notifier
from holdfast.scheduler._run import Drill, Outcome, Runner
from holdfast.schedules import Schedule, ScheduleFile, make_schedule

CHECK_EVERY = 300.0
"""Seconds. Checks are at these minutes of the hour: 0, 5, 10…"""

_TAIL = 20
_TOLERANCE = timedelta(minutes=1)

Wait = Callable[[float], bool]
"""Waits for so many seconds, or until the scheduler is to stop; returns whether it is."""


def _never() -> None:
    """For who is never interrupted."""


class BackupScheduler:
    """The schedules of the service in a directory, by default the current one at the time of each call.

    Nothing is read before it is asked for; settings and schedules are read at each call. Several schedulers, and
    whoever changes schedules, may work on one backup directory at once. Failures raise; the error's ``hint`` says
    what to do.
    """

    def __init__(
        self,
        config: BackupConfig | None = None,
        *,
        root: Path | None = None,
        emit: Emit = log,
        clock: Clock = system_clock,
        subscribers: Sequence[Emit] = (),
        check: Callable[[], None] = _never,
        drill: Drill | None = None,
    ) -> None:
        """`config`, where given, wins over the environment and ``holdfast.toml``. `emit` is told what happens, by
        default the logger ``holdfast``; then the channels of notification that are configured; then `subscribers`.
        `check` is called all the while, and raises Interrupted to stop a run. `drill` rehearses a restore."""
        self._config = config
        self._root = root
        self._emit = emit
        self._clock = clock
        self._subscribers = tuple(subscribers)
        self._check = check
        self._drill = drill
        self._stopped = threading.Event()
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._notifier: tuple[Settings, Notifier] | None = None
        self._warned: set[object] = set()

    @property
    def schedules(self) -> dict[str, dict[str, Any]]:
        """All schedules by id, in the contract's format, as they are now: changing these copies changes nothing."""
        return {schedule_id: schedule.to_json() for schedule_id, schedule in self._file().read().items()}

    def schedule_backup(self, schedule_config: Mapping[str, Any]) -> str:
        """Makes a schedule, and returns its id.

        Keys, all optional: ``schedule_type`` (``hourly``, ``daily``, ``weekly``, ``monthly`` or a cron line; by
        default that of the settings), ``components`` (by default what the ``include_…`` say), ``retention_days``,
        ``include_models``, ``include_config``, ``include_logs``, ``notification_email``, ``backup_type`` (``full``,
        ``incremental``), ``timezone``, ``drill`` (``none``, ``daily``, ``weekly``, ``monthly``). Raises ConfigError
        for anything else, and for a ``schedules.json`` that is broken.
        """
        installation = self._installation()
        schedule = make_schedule(
            schedule_config, installation.settings, schedule_id=str(uuid4()), now=self._clock()
        )
        if schedule.drill != "none" and self._drill is None:
            raise ConfigError(
                f"drill is {schedule.drill!r}, and this scheduler has no drill to run",
                hint="Make the scheduler with drill=holdfast.jobs.drill.rehearse; or leave it out, and run "
                "`holdfast drill` by hand.",
            )
        with self._file(installation).changing() as schedules:
            schedules[schedule.schedule_id] = schedule
        return schedule.schedule_id

    def remove_schedule(self, schedule_id: str) -> bool:
        """Removes a schedule; False where there is none of that id. Its backups stay, and are kept from now on as
        those that were made by hand."""
        with self._file().changing() as schedules:
            return schedules.pop(schedule_id, None) is not None

    def enable_schedule(self, schedule_id: str) -> None:
        """Lets a schedule run again that failures have disabled: next when it is due from now on, not at once.

        Raises UsageError where there is none of that id.
        """
        installation = self._installation()
        with self._file(installation).changing() as schedules:
            if schedule_id not in schedules:
                raise UsageError(
                    f"there is no schedule {schedule_id}", hint="`holdfast schedule list` shows them."
                )
            schedules[schedule_id] = schedules[schedule_id].enabled(self._clock())
        installation.state.record(
            {
                "time": timestamp(self._clock()),
                "verb": "schedule",
                "schedule_id": schedule_id,
                "status": "enabled",
            }
        )

    def get_due_schedules(self) -> list[dict[str, Any]]:
        """The schedules that are due now, the one that has waited longest first."""
        return [schedule.to_json() for schedule in _due(self._file().read(), self._clock())]

    def execute_scheduled_backup(self, schedule: Mapping[str, Any] | str) -> bool:
        """Makes a schedule's backup, and returns whether that went well. What went wrong is recorded with the
        schedule, and told to whom it concerns.

        A schedule as `get_due_schedules` or `schedules` gave it runs once for its ``next_run``, whoever asks: False
        where another scheduler was first, or is at work. An id runs now, due or not. Raises UsageError for one that
        is not there, or disabled.
        """
        installation = self._installation()
        if isinstance(schedule, str):
            schedule_id, expected = schedule, None
        else:
            schedule_id, expected = _reference(schedule)
        return self._runner(installation).run(schedule_id, expected=expected).kind == "success"

    def run_due(self) -> list[Outcome]:
        """One check: runs what is due, tries again to deliver what could not be, and returns what came of it."""
        installation = self._installation()
        file = self._file(installation)
        runner = self._runner(installation)
        outcomes = []
        schedules = file.read()
        self._look_for_trouble(file, schedules.values())
        for schedule in _due(schedules, self._clock()):
            self._interrupt()
            outcomes.append(runner.run(schedule.schedule_id, expected=schedule.next_run))
        notifier = self._notifier_of(installation)
        notifier.retry()
        notifier.watch(installation.repository.backups)
        # Also of what changes without a run: the age of the newest backup, schedules that were removed.
        after_run(
            installation.settings,
            installation.state,
            installation.repository.backups,
            self._clock,
            self._tell,
        )
        return outcomes

    def run_scheduler(self, *, wait: Wait | None = None) -> None:
        """Checks every 5 minutes, until `stop` is called, or `wait` returns True; by default it waits in real time.

        Raises HoldfastError for what is wrong at the first check, such as a ``schedules.json`` that is broken. What
        is wrong later is told, and looked at again at each check. Raises Interrupted where a run was.
        """
        wait = self._stopped.wait if wait is None else wait
        with self._serving_metrics(self._installation()) as installation:
            directory = installation.settings.backup_dir
            self._tell(Noted(f"the scheduler is at work for {directory}, and checks every 5 minutes"))
            self.run_due()
            while not wait(self._pause()):
                try:
                    self.run_due()
                except Interrupted:
                    raise
                except HoldfastError as error:
                    self._tell(RunFailed("scheduler", "check", f"{error}. {error.hint}".strip()))

    def stop(self) -> None:
        """Ends `run_scheduler`, from another thread: a run at work is abandoned at its next step."""
        self._stopped.set()

    @contextmanager
    def _serving_metrics(self, installation: Installation) -> Iterator[Installation]:
        """Over HTTP, where BACKUP_METRICS_PORT says so. Raises ConfigError where that cannot be."""
        settings = installation.settings
        if settings.metrics_port is None:
            yield installation
            return
        metrics = Metrics(settings, installation.state, installation.repository.backups, self._clock)
        server = MetricsServer(metrics, settings.metrics_address, settings.metrics_port)
        server.start()
        self._tell(Noted(f"metrics are served at http://{settings.metrics_address}:{server.port}/metrics"))
        try:
            yield installation
        finally:
            server.stop()

    def _pause(self) -> float:
        """Seconds until the next of the minutes at which schedules are looked at."""
        return CHECK_EVERY - self._clock().timestamp() % CHECK_EVERY

    def _look_for_trouble(self, file: ScheduleFile, schedules: Collection[Schedule]) -> None:
        """What keeps backups from being made without being an error is told, once."""
        now = self._clock()
        if not schedules:
            self._warn_once("none", f"{file.path} holds no schedule: nothing is backed up by itself")
        else:
            self._warned.discard("none")
        for schedule in schedules:
            if schedule.last_run is not None and schedule.last_run > now + _TOLERANCE:
                self._warn_once(
                    (schedule.schedule_id, schedule.last_run),
                    f"schedule {schedule.schedule_id} last ran at {timestamp(schedule.last_run)}, which is to come: "
                    f"the clock was set back. It runs at {timestamp(schedule.next_run)}; to have it run by the clock "
                    f"as it is now: holdfast schedule enable {schedule.schedule_id}",
                )

    def _warn_once(self, key: object, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            self._tell(Warned(message))

    def _installation(self) -> Installation:
        return Installation.load(
            self._root or Path.cwd(),
            os.environ,
            self._config,
            clock=self._clock,
            manual_key=lambda: encryption.key,
        )

    def _file(self, installation: Installation | None = None) -> ScheduleFile:
        return ScheduleFile((installation or self._installation()).settings.backup_dir)

    def _runner(self, installation: Installation) -> Runner:
        notifier = self._notifier_of(installation)

        def tell(event: Event) -> None:
            self._tell(event)
            notifier(event)
            for subscriber in self._subscribers:
                subscriber(event)

        def emit(event: Event) -> None:
            self._interrupt()
            tell(event)

        return Runner(
            installation,
            self._file(installation),
            emit,
            tell,
            self._interrupt,
            lambda: tuple(self._tail),
            self._drill,
        )

    def _notifier_of(self, installation: Installation) -> Notifier:
        """The one there is, unless the settings have changed: it remembers what it has told."""
        if self._notifier is None or self._notifier[0] != installation.settings:
            made = Notifier(
                installation.settings,
                installation.state,
                self._clock,
                emit=self._tell,
                check=self._interrupt,
            )
            self._notifier = (installation.settings, made)
        return self._notifier[1]

    def _interrupt(self) -> None:
        self._check()
        if self._stopped.is_set():
            raise Interrupted("the scheduler is stopped")

    def _tell(self, event: Event) -> None:
        told = describe(event)
        if told is not None and told[0] >= INFO:
            self._tail.append(f"{timestamp(self._clock())} {getLevelName(told[0])} {told[1]}")
        self._emit(event)


def _due(schedules: Mapping[str, Schedule], now: datetime) -> list[Schedule]:
    """The one that has waited longest first."""
    due = [schedule for schedule in schedules.values() if schedule.is_due(now)]
    return sorted(due, key=lambda schedule: (schedule.next_run, schedule.schedule_id))


def _reference(schedule: Mapping[str, Any]) -> tuple[str, datetime]:
    try:
        return str(schedule["schedule_id"]), parse_timestamp(schedule["next_run"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            "this is no schedule: it has no schedule_id, or no next_run",
            hint="Give a schedule as get_due_schedules() returned it, or an id.",
        ) from None
