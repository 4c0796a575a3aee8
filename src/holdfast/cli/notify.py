"""Commands about notifications."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli._context import command
from holdfast.cli._interruption import interruption
from holdfast.cli._terminal import print_json, say
from holdfast.cli.backups import Json
from holdfast.errors import EXIT_FAILED, UsageError

app = typer.Typer(help="Tell people what the scheduler did.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Without a callback, typer takes the only command of a group for the group itself."""


@app.command("test")
def send(
    email: Annotated[
        str | None, typer.Option("--email", metavar="ADDRESS", help="Instead of NOTIFICATION_EMAIL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send a test message by every channel that is configured."""
    with command(as_json=as_json, looking=True) as installation:
        from holdfast.config import is_email_address
        from holdfast.notify import send_test

        if email is not None and not is_email_address(email):
            raise UsageError(f"{email!r} is not an e-mail address", hint="It reads admin@example.com.")
        with interruption.deferred():
            results = send_test(
                installation.settings, installation.clock, email=email, check=interruption.check
            )
        if as_json:
            print_json(
                [
                    {"channel": result.channel, "error": result.error, "hint": result.hint}
                    for result in results
                ]
            )
        for result in results if not as_json else ():
            if result.error:
                print(f"FAILED  {result.channel}: {result.error}")
                if result.hint:
                    say(f"Hint: {result.hint}")
            else:
                print(f"sent    {result.channel}")
        if any(result.error for result in results):
            raise typer.Exit(EXIT_FAILED)
