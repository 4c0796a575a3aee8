"""Commands that make backups and look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli._context import command
from holdfast.cli._terminal import human_size, human_time, print_json, print_table, say, watching
from holdfast.errors import EXIT_FAILED, EXIT_WARNINGS
from holdfast.text import harmless

if TYPE_CHECKING:
    from holdfast.repository.base import Tensor

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Id = Annotated[
    str, typer.Argument(metavar="ID", help="latest, an id, the start of one, or the path of an archive.")
]
Components = Annotated[
    list[str] | None,
    typer.Option(
        "--component", metavar="NAME", help="database, models, config or logs. Repeat it for several."
    ),
]


def backup(
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what has changed since the last full backup.")
    ] = False,
    component: Components = None,
    since: Annotated[
        str | None, typer.Option(metavar="ID", help="What an incremental backup is compared with.")
    ] = None,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read also what looks unchanged.")] = False,
    as_json: Json = False,
) -> None:
    """Make a backup."""
    with command(as_json=as_json, measured=True) as installation:
        from holdfast.jobs.backup import backup as run

        with watching(quiet=as_json) as emit:
            report = run(
                installation,
                emit,
                components=component or None,
                incremental=incremental,
                since=since,
                rehash=rehash,
            )
        metadata = report.metadata
        if as_json:
            print_json(metadata.to_json() | {"warning_messages": report.warnings, "notes": report.notes})
        else:
            ratio = metadata.size_bytes / max(metadata.source_bytes, 1)
            rows = [
                ("backup", metadata.backup_id),
                ("components", ", ".join(metadata.components)),
                ("entries", f"{metadata.entries:,}"),
                (
                    "content",
                    f"{human_size(metadata.source_bytes)}, {human_size(report.bytes_read)} of it read",
                ),
                (
                    "archive" if metadata.format == "archive" else "added",
                    f"{human_size(metadata.size_bytes)} ({ratio:.0%})",
                ),
                ("encrypted", "yes" if metadata.encrypted else "NO"),
                ("took", human_time(metadata.duration_seconds)),
            ]
            if metadata.parent:
                rows.insert(1, ("rests on", metadata.parent))
            if report.skipped:
                rows.append(("passed over", f"{report.skipped} sockets, fifos or devices"))
            if metadata.warnings:
                rows.append(("warnings", str(metadata.warnings)))
            print_table(("", ""), rows)
        if metadata.warnings:
            raise typer.Exit(EXIT_WARNINGS)


def list_(
    type_: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="full, incremental, config or models.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also backups that failed.")] = False,
    as_json: Json = False,
) -> None:
    """List backups, newest first."""
    with command(as_json=as_json, looking=True) as installation:
        from holdfast.errors import UsageError
        from holdfast.model import BACKUP_TYPES

        kind = next((known for known in BACKUP_TYPES if known == type_), None)
        if type_ is not None and kind is None:
            raise UsageError(
                f"unknown backup type {type_!r}", hint=f"The types are {', '.join(BACKUP_TYPES)}."
            )
        found = [known for known in installation.repository.backups(kind) if all_ or known.is_good]
        if as_json:
            print_json([metadata.to_json() for metadata in found])
            return
        if not found:
            # An empty directory may be the mount point of a disk that is not there.
            kind_of = "backup yet" if kind is None else f"{kind} backup"
            say(f"There is no {kind_of} in {installation.settings.backup_dir}.")
            return
        print_table(
            ("ID", "TIME (UTC)", "COMPONENTS", "CONTENT", "STORED", ""),
            [
                (
                    metadata.backup_id,
                    metadata.timestamp.replace("T", " "),
                    ", ".join(metadata.components),
                    human_size(metadata.source_bytes),
                    human_size(metadata.size_bytes),
                    ("pinned" if metadata.pinned else "")
                    if metadata.is_good
                    else f"{metadata.status}: {metadata.error_message or ''}",
                )
                for metadata in found
            ],
            right=("CONTENT", "STORED"),
        )


def show(backup_id: Id, as_json: Json = False) -> None:
    """Show what is known of a backup."""
    with command(as_json=as_json, looking=True) as installation:
        from holdfast.crypto import fingerprint
        from holdfast.jobs._locate import locate

        repository, metadata = locate(installation, backup_id)
        if as_json:
            print_json(metadata.to_json())
            return
        rows = [(name.replace("_", " "), _shown(value)) for name, value in metadata.to_json().items()]
        rows = [row for row in rows if row[0] not in ("manifest", "signature")]
        rows.append(("signed by", fingerprint(metadata.signature.key) if metadata.signature else "nobody"))
        if metadata.parent:
            rows.append(("chain", " → ".join(level.backup_id for level in repository.chain(metadata))))
        print_table(("", ""), rows)


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, (tuple, list)) else str(value)


def ls(
    backup_id: Id,
    component: Components = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List what a backup holds."""
    with command(as_json=as_json, looking=True) as installation:
        import json

        from holdfast.jobs.ls import ls as run

        for entry in run(installation, backup_id, components=component or None):
            if as_json:
                fields = {
                    "path": entry.path,
                    "kind": entry.kind,
                    "size": entry.size,
                    "mode": f"{entry.mode:04o}",
                    "mtime_ns": entry.mtime_ns,
                    "sha256": entry.digest,
                    "target": entry.target,
                }
                print(json.dumps({name: value for name, value in fields.items() if value != ""}))
                continue
            told = f" -> {entry.target}" if entry.target else ""
            print(harmless(f"{entry.kind[0]} {entry.mode:04o} {entry.size:>14,} {entry.path}{told}"))


def diff(
    backup_id: Id,
    other_id: Annotated[str, typer.Argument(metavar="OTHER", help="What it is compared with, likewise.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Show what has changed from one backup to another."""
    with command(as_json=as_json, looking=True) as installation:
        import json

        from holdfast.jobs.diff import RowDifference, TensorDifference
        from holdfast.jobs.diff import diff as run

        signs = {"added": "+", "removed": "-", "changed": "M", "attributes": "U"}
        for found in run(installation, backup_id, other_id):
            said: dict[str, Any]
            if isinstance(found, RowDifference):
                said = {
                    "database": found.database,
                    "table": found.table,
                    "before": found.before,
                    "after": found.after,
                }
                line = (
                    f"R {found.database}.{found.table}: {_count(found.before)} -> {_count(found.after)} rows"
                )
            elif isinstance(found, TensorDifference):
                said = {
                    "path": found.path,
                    "tensor": found.tensor,
                    "change": found.change,
                    "before": _form(found.before),
                    "after": _form(found.after),
                }
                forms = [_told(form) for form in (found.before, found.after)]
                told = f"{forms[0]}, other content" if found.change == "changed" else " -> ".join(forms)
                line = f"T {found.path} {found.tensor}: {told}"
            else:
                sizes = [entry.size if entry is not None else None for entry in (found.before, found.after)]
                said = {"path": found.path, "change": found.change, "before": sizes[0], "after": sizes[1]}
                told = (
                    f" ({_count(sizes[0])} -> {_count(sizes[1])} bytes)" if found.change == "changed" else ""
                )
                line = f"{signs[found.change]} {found.path}{told}"
            print(json.dumps(said) if as_json else harmless(line))


def _form(tensor: Tensor | None) -> dict[str, str] | None:
    return None if tensor is None else {"dtype": tensor.dtype, "shape": tensor.shape}


def _told(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {tensor.shape}".strip() or "tensor"


def _count(number: int | None) -> str:
    return "none" if number is None else f"{number:,}"


def verify(
    backup_id: Annotated[
        str,
        typer.Argument(metavar="[ID]", help="latest, an id, the start of one, or the path of an archive."),
    ] = "latest",
    all_: Annotated[bool, typer.Option("--all", help="Every backup there is.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also open every entry, and check the signature.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove that a backup is good."""
    with command(as_json=as_json, looking=True, measured=True) as installation:
        from holdfast.jobs.verify import Verdict, verify_all
        from holdfast.jobs.verify import verify as verify_one

        with watching(quiet=as_json) as emit:
            verdicts = (
                verify_all(installation, emit, deep=deep)
                if all_
                else [Verdict(verify_one(installation, backup_id, emit, deep=deep))]
            )
        if as_json:
            print_json(
                [
                    {
                        "backup_id": verdict.metadata.backup_id,
                        "good": not verdict.error,
                        "error": verdict.error,
                    }
                    for verdict in verdicts
                ]
            )
        else:
            for verdict in verdicts:
                print(harmless(f"{verdict.metadata.backup_id}  {verdict.error or 'good'}"))
        if any(verdict.error for verdict in verdicts):
            raise typer.Exit(EXIT_FAILED)


def pin(backup_id: Id) -> None:
    """Keep a backup for ever."""
    _pin(backup_id, pinned=True)


def unpin(backup_id: Id) -> None:
    """Let a backup expire again."""
    _pin(backup_id, pinned=False)


def _pin(backup_id: str, *, pinned: bool) -> None:
    with command() as installation:
        from holdfast.jobs.pin import pin as run

        metadata = run(installation, backup_id, pinned=pinned)
        print(f"{metadata.backup_id} is {'pinned: it never expires' if pinned else 'no longer pinned'}")
