"""Commands for the first day."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli._context import command
from holdfast.cli._terminal import print_json, say
from holdfast.cli.backups import Json


def init(as_json: Json = False) -> None:
    """Write a holdfast.toml that explains itself, and make a key."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.init import init as run

        made = run(installation)
        if as_json:
            print_json(
                {"config": str(made.config), "key": str(made.key) if made.key else None, "found": made.found}
            )
            return
        print(f"Settings: {made.config}")
        for line in made.found:
            print(f"  {line}")
        if made.key is None:
            print("Key: as configured")
        else:
            print(f"Key: {made.key}")
            say(
                "Without this key nobody can read the backups, you included. Keep a copy elsewhere, or on paper:"
            )
            say("`holdfast key sheet`. Next: `holdfast backup`.")


def demo(
    service: Annotated[
        Path, typer.Option(metavar="DIR", help="The example service, as it lies in Holdfast's sources.")
    ] = Path("backend/ml-service"),
    database: Annotated[
        str, typer.Option(metavar="KIND", help="sqlite, or postgres: on a server that is started for it.")
    ] = "sqlite",
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the demonstration's directory for a look.")
    ] = False,
) -> None:
    """Show a backup, a disaster and a restore on a small real service."""
    with command(recovering=False):
        from holdfast.cli.demo import run

        run(service, database=database, keep=keep)
