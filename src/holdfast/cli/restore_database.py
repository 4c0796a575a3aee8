"""The contract's restore script: ``restore_database.py ARCHIVE [--confirm] [--create-db]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.restores import Confirm
from holdfast.cli.restores import restore as restore_command


def restore_database(
    archive: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="The backup's tar.gz or tar.gz.enc file.")
    ],
    confirm: Confirm = False,
    create_db: Annotated[
        bool, typer.Option("--create-db", help="Make the database, and the directories above it, if missing.")
    ] = False,
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="NAME", help="Restore this as well. Repeat it for several."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Accept a backup that is unsigned, or signed by an unknown key.")
    ] = False,
) -> None:
    """Restore the database from a backup file."""
    restore_command(
        backup_id=str(archive.absolute()),
        component=["database", *(component or ())],
        target=None,
        confirm=confirm,
        create_db=create_db,
        trust=trust,
        as_json=False,
    )


def main() -> None:
    """The entry point."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(restore_database)
    app()
