"""Commands that look after the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli._context import command
from holdfast.cli._terminal import ask, human_size, print_json, print_table, say, watching
from holdfast.cli.backups import Id, Json
from holdfast.errors import EXIT_FAILED, EXIT_WARNINGS


def expire(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go, and why.")] = False,
    as_json: Json = False,
) -> None:
    """Drop backups that the retention releases."""
    with command(as_json=as_json) as installation:
        from holdfast.events import Event, Warned
        from holdfast.jobs.expire import expire as run

        warnings: list[str] = []
        with watching(quiet=True) as emit:

            def tell(event: Event) -> None:
                emit(event)
                if isinstance(event, Warned):
                    warnings.append(event.message)

            verdicts = run(installation, tell, dry_run=dry_run)
        for warning in warnings:
            say(f"warning: {warning}")
        if as_json:
            print_json(
                [
                    {"backup_id": verdict.backup.backup_id, "keep": verdict.keep, "reason": verdict.reason}
                    for verdict in verdicts
                ]
            )
            _end(warnings)
            return
        dropped = "would drop" if dry_run else "dropped"
        print_table(
            ("", "ID", "WHY"),
            [
                ("keep" if verdict.keep else dropped, verdict.backup.backup_id, verdict.reason)
                for verdict in verdicts
            ],
        )
        freed = sum(verdict.backup.size_bytes for verdict in verdicts if not verdict.keep)
        gone = sum(not verdict.keep for verdict in verdicts)
        say(f"{gone} {'backup' if gone == 1 else 'backups'} {dropped}, {human_size(freed)}.")
        _end(warnings)


def _end(warnings: list[str]) -> None:
    if warnings:
        raise typer.Exit(EXIT_WARNINGS)


def check(as_json: Json = False) -> None:
    """Prove that the set-up works: keys, sources, room, repository."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.check import check as run

        findings = run(installation)
        if as_json:
            print_json(
                [
                    {"subject": found.subject, "state": found.state, "detail": found.detail}
                    for found in findings
                ]
            )
        else:
            print_table(("", "", ""), [(found.state, found.subject, found.detail) for found in findings])
        states = {found.state for found in findings}
        if "FAILED" in states:
            raise typer.Exit(EXIT_FAILED)
        if "warning" in states:
            raise typer.Exit(EXIT_WARNINGS)


def export(
    backup_id: Id,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="By default <id>.tar.gz in this directory."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a backup, with all it rests on, as one ordinary, unencrypted tar.gz."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.export import export as run

        with watching(quiet=as_json) as emit:
            written = run(installation, backup_id, output, emit)
        if as_json:
            print_json({"output": str(written), "size_bytes": written.stat().st_size})
        else:
            say("It is not encrypted: whoever can read the file can read the backup.")
            print(written)


def copy(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The backup directory to copy to.")],
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID…]", help="latest, ids, starts of them, or paths of archives."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every backup there is.")] = False,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="archive or dedup, of the copies.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Copy also what is unsigned, or signed by an unknown key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy backups to another backup directory, perhaps in the other format."""
    with command(as_json=as_json) as installation:
        from holdfast.errors import UsageError
        from holdfast.jobs.copy import copy as run
        from holdfast.model import FORMATS

        wanted = next((known for known in FORMATS if known == format_), None)
        if format_ is not None and wanted is None:
            raise UsageError(f"unknown format {format_!r}", hint=f"The formats are {', '.join(FORMATS)}.")
        with watching(quiet=as_json) as emit:
            done = run(installation, ids or [], to, emit, all_=all_, format_=wanted, trust=trust, vouch=ask)
        if as_json:
            print_json(
                {
                    "copied": [one.copy.to_json() for one in done if one.copy is not None and one.made],
                    "present": [one.copy.backup_id for one in done if one.copy is not None and not one.made],
                    "failed": [
                        {
                            "backup_id": one.backup.backup_id,
                            "error": type(one.error).__name__,
                            "message": str(one.error),
                            "hint": one.error.hint,
                        }
                        for one in done
                        if one.error is not None
                    ],
                }
            )
        else:
            for one in done:
                if one.error is not None:
                    say(f"{one.backup.backup_id} was not copied: {one.error}")
                elif one.copy is not None and one.made:
                    print(f"{one.copy.backup_id}  {one.copy.format}, {human_size(one.copy.size_bytes)}")
            present = sum(one.copy is not None and not one.made for one in done)
            if present or not done:
                say(f"{present} {'was' if present == 1 else 'were'} there already.")
        if any(one.error is not None for one in done):
            raise typer.Exit(EXIT_FAILED)
        if any(one.warnings for one in done):
            raise typer.Exit(EXIT_WARNINGS)


def gc(as_json: Json = False) -> None:
    """Free what no backup needs, and what killed runs have left behind."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.gc import gc as run

        with watching(quiet=as_json) as emit:
            freed = run(installation, emit)
        if as_json:
            print_json(
                {
                    "freed": freed.names,
                    "freed_bytes": freed.bytes,
                    "rewritten_packs": freed.rewritten,
                    "written_bytes": freed.written_bytes,
                    "later_bytes": freed.later_bytes,
                }
            )
        elif not (freed.names or freed.rewritten or freed.later_bytes):
            say("There is nothing to free.")


def repair(as_json: Json = False) -> None:
    """Make metadata and local state again from the archives."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.repair import repair as run

        with watching(quiet=as_json) as emit:
            repaired = run(installation, emit)
        if as_json:
            print_json({"repaired": repaired})
        elif not repaired:
            say("There is nothing to repair.")
