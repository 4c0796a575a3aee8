"""Commands for schedules, and the scheduler."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli._context import command, verbosity
from holdfast.cli._interruption import interruption
from holdfast.cli._terminal import print_json, print_table, say
from holdfast.cli.backups import Components, Json
from holdfast.errors import EXIT_FAILED, Interrupted, LockHeld, UsageError
from holdfast.events import Noted

if TYPE_CHECKING:
    from holdfast.scheduler import BackupScheduler

app = typer.Typer(help="Schedules of backups.", no_args_is_help=True)

ScheduleId = Annotated[
    str, typer.Argument(metavar="ID", help="The id of a schedule, or the start of exactly one.")
]

_PATIENCE = 4.0
"""Seconds that a run has, after SIGTERM, to come to its next step. Then it is interrupted where it is."""
_END = 8.0
"""Seconds after SIGTERM at which the process ends whatever it does: service managers kill after ten."""


@app.command()
def add(
    type_: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="hourly, daily, weekly, monthly, or a cron line."),
    ] = None,
    component: Components = None,
    retention_days: Annotated[
        int | None, typer.Option("--retention-days", metavar="N", help="How long its backups are kept.")
    ] = None,
    models: Annotated[
        bool | None, typer.Option("--models/--no-models", help="Include models, where no component is named.")
    ] = None,
    config: Annotated[
        bool | None,
        typer.Option("--config/--no-config", help="Include configuration, where no component is named."),
    ] = None,
    logs: Annotated[
        bool | None, typer.Option("--logs/--no-logs", help="Include logs, where no component is named.")
    ] = None,
    email: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Who is told what becomes of its backups.")
    ] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what has changed since the last full backup.")
    ] = False,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="The clock that it goes by: Europe/Berlin. Else UTC.")
    ] = None,
    drill: Annotated[
        str | None,
        typer.Option(metavar="PERIOD", help="Rehearse a restore of its backups: daily, weekly or monthly."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a schedule."""
    with command(as_json=as_json, looking=True):
        said: dict[str, Any] = {
            "schedule_type": type_,
            "components": component or None,
            "retention_days": retention_days,
            "include_models": models,
            "include_config": config,
            "include_logs": logs,
            "notification_email": email,
            "backup_type": "incremental" if incremental else None,
            "timezone": timezone,
            "drill": drill,
        }
        scheduler = _scheduler()
        schedule_id = scheduler.schedule_backup(
            {key: value for key, value in said.items() if value is not None}
        )
        schedule = scheduler.schedules[schedule_id]
        if as_json:
            print_json(schedule)
            return
        print(schedule_id)
        say(f"It runs at {schedule['next_run']} UTC, where a scheduler is at work: `holdfast scheduler`.")
        if _outruns_the_checks(schedule):
            say("A scheduler looks every 5 minutes: more often than that it does not run.")


def _outruns_the_checks(schedule: dict[str, Any]) -> bool:
    """Whether the next two times at which it is due are closer together than two checks."""
    from holdfast.clock import parse_timestamp
    from holdfast.scheduler import CHECK_EVERY
    from holdfast.schedules import next_due

    first = parse_timestamp(schedule["next_run"])
    second = next_due(schedule["schedule_type"], schedule["timezone"], first)
    return (second - first).total_seconds() < CHECK_EVERY


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List schedules, the next one to run first."""
    with command(as_json=as_json, looking=True):
        schedules = sorted(_scheduler().schedules.values(), key=lambda known: known["next_run"])
        if as_json:
            print_json(schedules)
            return
        if not schedules:
            say("There is no schedule yet: `holdfast schedule add`.")
            return
        print_table(
            ("ID", "TYPE", "BACKUP", "COMPONENTS", "DAYS", "NEXT RUN (UTC)", "LAST RUN (UTC)", ""),
            [
                (
                    known["schedule_id"],
                    known["schedule_type"] + ("" if known["timezone"] == "UTC" else f" {known['timezone']}"),
                    known["backup_type"],
                    ", ".join(known["components"]),
                    str(known["retention_days"]),
                    known["next_run"].replace("T", " ") if known["status"] == "active" else "never",
                    (known["last_run"] or "never").replace("T", " "),
                    _state(known),
                )
                for known in schedules
            ],
            right=("DAYS",),
        )


def _state(schedule: dict[str, Any]) -> str:
    if schedule["status"] == "disabled":
        return f"DISABLED after {schedule['consecutive_failures']} failures: `holdfast schedule enable`"
    if schedule["consecutive_failures"]:
        return f"failed {schedule['consecutive_failures']} in a row"
    if schedule["started_at"]:
        return f"at work since {schedule['started_at'].replace('T', ' ')}"
    return schedule["last_status"] or ""


@app.command()
def remove(schedule_id: ScheduleId, as_json: Json = False) -> None:
    """Remove a schedule. Its backups stay, and are kept as those made by hand."""
    with command(as_json=as_json, looking=True):
        scheduler = _scheduler()
        found = _find(scheduler, schedule_id)
        removed = scheduler.remove_schedule(found)
        if as_json:
            print_json({"schedule_id": found, "removed": removed})
        else:
            print(f"{found} is removed")


@app.command()
def enable(schedule_id: ScheduleId, as_json: Json = False) -> None:
    """Let a schedule run again that failures have disabled."""
    with command(as_json=as_json, looking=True):
        scheduler = _scheduler()
        found = _find(scheduler, schedule_id)
        scheduler.enable_schedule(found)
        schedule = scheduler.schedules[found]
        if as_json:
            print_json(schedule)
        else:
            print(f"{found} is enabled, and runs at {schedule['next_run']} UTC")


def scheduler(
    once: Annotated[
        bool, typer.Option("--once", help="Make the backups that are due, and end: for cron, and timers.")
    ] = False,
) -> None:
    """Make the backups that are due, now and every 5 minutes."""
    with command(looking=True) as installation:
        from holdfast.eventlog import log
        from holdfast.logs import scheduler_log

        settings = installation.settings
        status = Interrupted.exit_code if once else 0
        level = verbosity["level"] or settings.log_level or "INFO"
        with scheduler_log(settings.root, level, settings.log_format), _ending_in_time(status) as ending:
            made = _scheduler()
            if once:
                with interruption.deferred():
                    outcomes = made.run_due()
                kinds = {outcome.kind for outcome in outcomes}
                if "failed" in kinds:
                    raise typer.Exit(EXIT_FAILED)
                if "put off" in kinds:
                    raise typer.Exit(LockHeld.exit_code)
                return
            try:
                with interruption.deferred():
                    made.run_scheduler(wait=_wait)
            except Interrupted:
                if not ending.asked:
                    raise
                log(Noted("the scheduler ends: it was asked to"))  # Also for who reads the file.


class _Ending:
    """What SIGTERM does to the scheduler: a service manager asks it to stop, which is no error."""

    def __init__(self) -> None:
        self.asked = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        interruption.handle(number, frame)


@contextmanager
def _ending_in_time(status: int) -> Iterator[_Ending]:
    """`status`: the exit code for when there is no more time."""
    ending = _Ending()
    # Python calls no handler while a library waits in C: for a locked database, or for the disk in an fsync. The
    # wakeup pipe is written to all the same.
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    watch = threading.Thread(target=_end_in_time, args=(heard, status), daemon=True, name="end-in-time")
    watch.start()
    signal.signal(signal.SIGTERM, ending.handle)
    signal.signal(signal.SIGALRM, interruption.handle)
    try:
        yield ending
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(-1)
        if not ending.asked:  # Else it watches on, until the interpreter has ended too.
            os.close(told)
            watch.join()
            os.close(heard)


def _end_in_time(heard: int, status: int) -> None:
    """Ends the process a while after SIGTERM, whatever it does. What that leaves is what a crash leaves."""
    deadline: float | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([heard], [], [], left)[0]:
            os._exit(status)
        numbers = os.read(heard, 64)
        if not numbers:
            return
        if deadline is None and signal.SIGTERM in numbers:
            deadline = time.monotonic() + _END


def _wait(seconds: float) -> bool:
    with interruption.immediate():
        interruption.check()
        threading.Event().wait(seconds)
    return False


def _scheduler() -> BackupScheduler:
    from holdfast.jobs.drill import rehearse
    from holdfast.scheduler import BackupScheduler

    return BackupScheduler(check=interruption.check, drill=rehearse)


def _find(scheduler: BackupScheduler, text: str) -> str:
    known = scheduler.schedules
    found = [schedule_id for schedule_id in known if schedule_id.startswith(text)]
    if text in known:
        return text
    if len(found) == 1 and text:
        return found[0]
    if found:
        raise UsageError(f"{text!r} begins {len(found)} ids of schedules", hint="Give more of the id.")
    raise UsageError(f"there is no schedule {text!r}", hint="`holdfast schedule list` shows them.")


def main() -> None:
    """The contract's ``backup_scheduler``."""
    program = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    program.command()(scheduler)
    program()
