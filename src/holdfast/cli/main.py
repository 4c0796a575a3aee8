"""The program ``holdfast``."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from holdfast import __version__
from holdfast.cli import backups, drills, keys, maintenance, notify, restores, schedules, setup
from holdfast.cli._context import verbosity

app = typer.Typer(
    name="holdfast",
    help="Back up a machine-learning service as one thing, and bring it back as one thing.",
    no_args_is_help=True,
    rich_markup_mode=None,  # loading rich for a page of help takes longer than printing it
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every step to standard error.")
    ] = False,
) -> None:
    verbosity["level"] = "DEBUG" if verbose else ""


for verb in (
    setup.init,
    backups.backup,
    backups.list_,
    backups.show,
    backups.ls,
    backups.diff,
    backups.verify,
    restores.restore,
    restores.undo,
    restores.recover,
    drills.drill,
    backups.pin,
    backups.unpin,
    maintenance.expire,
    maintenance.check,
    maintenance.export,
    maintenance.copy,
    maintenance.gc,
    maintenance.repair,
    schedules.scheduler,
    setup.demo,
):
    app.command(name=verb.__name__.rstrip("_"))(verb)
app.add_typer(schedules.app, name="schedule")
app.add_typer(notify.app, name="notify")
app.add_typer(keys.app, name="key")


def main() -> None:
    """The entry point."""
    gc.disable()  # until all is loaded: what is loaded stays
    app()
