"""Commands that put data back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli._context import command
from holdfast.cli._terminal import ask, human_size, human_time, print_json, print_table, say, watching
from holdfast.cli.backups import Components, Id, Json
from holdfast.errors import EXIT_WARNINGS

Paths = Annotated[
    list[str] | None,
    typer.Option(
        "--path",
        metavar="PATH",
        help="Only this file, directory or database, as `holdfast ls` prints it, or relative to the service "
        "root. Repeat it for several.",
    ),
]
Confirm = Annotated[bool, typer.Option("--confirm", help="Replace live data without asking.")]


def restore(
    backup_id: Id,
    component: Components = None,
    path: Paths = None,
    target: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Restore below this directory, and touch nothing else.")
    ] = None,
    confirm: Confirm = False,
    create_db: Annotated[
        bool, typer.Option("--create-db", help="Make the database, and the directories above it, if missing.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Accept a backup that is unsigned, or signed by an unknown key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a backup back, whole or not at all."""
    with command(as_json=as_json, measured=True) as installation:
        from holdfast.jobs.restore import restore as run

        with watching(quiet=as_json) as emit:
            done = run(
                installation,
                backup_id,
                emit,
                components=component or None,
                paths=path or None,
                target=target,
                confirm=lambda question: confirm or ask(question),
                vouch=ask,
                create_db=create_db,
                trust=trust,
            )
        if as_json:
            print_json(
                {
                    "backup_id": done.metadata.backup_id,
                    "sources": done.sources,
                    "entries": done.entries,
                    "bytes": done.bytes_restored,
                    "duration_seconds": round(done.duration_seconds, 3),
                    "warnings": done.warnings,
                    "notes": done.notes,
                    "target": str(done.target) if done.target else None,
                    "log": str(done.log),
                }
            )
        else:
            print_table(
                ("", ""),
                [
                    ("restored", f"{done.metadata.backup_id} of {done.metadata.timestamp} UTC"),
                    ("to", str(done.target or installation.settings.root)),
                    ("sources", ", ".join(done.sources)),
                    ("entries", f"{done.entries:,}"),
                    ("content", human_size(done.bytes_restored)),
                    ("took", human_time(done.duration_seconds)),
                    ("log", str(done.log)),
                ],
            )
            if done.target is None:
                say("What was there before is kept for seven days: `holdfast undo` puts it back.")
        if done.warnings:
            raise typer.Exit(EXIT_WARNINGS)


def undo(
    confirm: Confirm = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Free what is kept for undo, instead of putting it back.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take the last restore back."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.undo import discard_kept
        from holdfast.jobs.undo import undo as run

        with watching(quiet=as_json) as emit:
            if discard:
                discard_kept(installation, emit)
                undone = ""
            else:
                undone = run(installation, emit, confirm=lambda question: confirm or ask(question)).subject
        if as_json:
            print_json({"undone": undone or None, "discarded": discard})


def recover(as_json: Json = False) -> None:
    """Finish or take back what a crashed restore has left. For the service's start."""
    with command(as_json=as_json, recovering=False) as installation:
        from holdfast.jobs.recover import recover as run

        with watching(quiet=as_json) as emit:
            found = run(installation, emit)
        if as_json:
            print_json({"recovered": found})
        elif not found:
            say("There is nothing to recover.")
