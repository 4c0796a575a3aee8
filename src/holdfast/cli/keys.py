"""Commands about keys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli._context import command
from holdfast.cli._terminal import print_json, say, watching
from holdfast.cli.backups import Json

_LINE_LIMIT = 1 << 16

app = typer.Typer(help="Make, change and print the key.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def new(
    path: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path("holdfast.key"),
    as_json: Json = False,
) -> None:
    """Make a key, and write it to a file that only you can read."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.keys import new_key

        recipient = new_key(installation, path)
        if as_json:
            print_json({"file": str(path.absolute()), "recipient": recipient})
            return
        print(recipient)
        say(
            f"The key is in {path.absolute()}. Losing it loses the backups: keep a copy elsewhere, or on paper"
        )
        say("(`holdfast key sheet`). The line above is its public part: a host that has only that, as its")
        say("ENCRYPTION_KEY, can make backups and cannot read them.")


@app.command()
def rotate(
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file with the new key: identity, recipients or passphrase. By default an identity is made.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Give every backup a new key, without encrypting it anew."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.keys import rotate_key

        with watching(quiet=as_json) as emit:
            rotated = rotate_key(installation, to, emit)
        if as_json:
            print_json({"rotated": rotated})
        else:
            archives = "1 archive has" if rotated == 1 else f"{rotated} archives have"
            say(f"{archives} the new key. What was copied elsewhere still has the old one.")


@app.command()
def writer(
    source: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="A file with the writer key of another host, or - for standard input: take it for this one.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what other hosts need to share chunks with this one, or take it from another. It is a secret."""
    with command(as_json=as_json) as installation:
        from holdfast.jobs.keys import adopt_writer_key, read_secret, writer_key

        if source is None:
            key = writer_key(installation)
            if as_json:
                print_json({"writer_key": key})
            else:
                print(key)
            return
        piped = str(source) == "-"
        content = sys.stdin.buffer.read(_LINE_LIMIT) if piped else read_secret(source)
        adopted = adopt_writer_key(installation, content.decode("utf-8", "replace"))
        if as_json:
            print_json({"adopted": adopted})
        elif adopted:
            say(
                "From now on this host names chunks as that one does. It takes nothing for stored that others wrote,"
            )
            say("unless `trust_writers` names them: `holdfast check` shows a host's fingerprint.")
        else:
            say("This host has that key already.")


@app.command()
def sheet() -> None:
    """Print the key, and how to restore with it, for a safe."""
    with command() as installation:
        from holdfast.jobs.keys import key_sheet

        print(key_sheet(installation))
