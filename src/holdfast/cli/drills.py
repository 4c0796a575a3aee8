"""The command that rehearses a restore."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli._context import command
from holdfast.cli._interruption import interruption
from holdfast.cli._terminal import ask, human_size, human_time, print_json, print_table, watching
from holdfast.cli.backups import Components, Json
from holdfast.errors import EXIT_WARNINGS

if TYPE_CHECKING:
    from holdfast.events import Emit, Event
    from holdfast.installation import Installation
    from holdfast.jobs.drill import Drilled


def drill(
    backup_id: Annotated[
        str,
        typer.Argument(metavar="[ID]", help="latest, an id or the start of one, or the path of an archive."),
    ] = "latest",
    component: Components = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Accept a backup that is unsigned, or signed by an unknown key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rehearse a restore: into scratch, checked, measured, removed. Nothing live is touched."""
    with command(as_json=as_json, measured=True) as installation:
        from holdfast.jobs.drill import drill as run

        with watching(quiet=as_json) as emit:
            done = run(
                installation,
                backup_id,
                _telling(installation, emit),
                components=component or None,
                vouch=ask,
                trust=trust,
            )
        if as_json:
            print_json(
                {
                    "backup_id": done.metadata.backup_id,
                    "sources": done.sources,
                    "checks": asdict(done.checks),
                    "bytes": done.content_bytes,
                    "stages": {stage: round(seconds, 3) for stage, seconds in done.stages.items()},
                    "restore_seconds": _rounded(done.restore_seconds),
                    "duration_seconds": _rounded(done.duration_seconds),
                    "warnings": done.warnings,
                    "notes": done.notes,
                    "log": str(done.log),
                }
            )
        else:
            _print(done)
        if done.warnings:
            raise typer.Exit(EXIT_WARNINGS)


def _telling(installation: Installation, emit: Emit) -> Emit:
    """Tells the channels that are configured what came of it, like the scheduler."""
    from holdfast.notify import Notifier

    notifier = Notifier(
        installation.settings, installation.state, installation.clock, emit=emit, check=interruption.check
    )

    def tell(event: Event) -> None:
        emit(event)
        notifier(event)

    return tell


def _print(done: Drilled) -> None:
    checks = done.checks
    unknown = "unknown: not everything could be tried"
    estimate = unknown if done.restore_seconds is None else human_time(done.restore_seconds)
    print_table(
        ("", ""),
        [
            ("rehearsed", f"{done.metadata.backup_id} of {done.metadata.timestamp} UTC"),
            ("sources", ", ".join(done.sources)),
            ("entries", f"{checks.entries:,}"),
            ("content", human_size(done.content_bytes)),
            ("databases", f"{checks.databases:,} sound, {checks.tables:,} tables with the rows recorded"),
            ("models", f"{checks.models:,} headers good"),
            ("command", "satisfied" if checks.command else "none"),
            ("stages", ", ".join(f"{stage} {human_time(took)}" for stage, took in done.stages.items())),
            ("a restore", estimate),
            ("took", human_time(done.duration_seconds)),
            ("log", str(done.log)),
        ],
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
