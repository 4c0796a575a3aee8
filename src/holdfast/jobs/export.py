"""Turn any backup into one ordinary tar.gz."""

from __future__ import annotations

from pathlib import Path

from holdfast.durable import explained
from holdfast.errors import RestoreError
from holdfast.events import Emit, RunFinished, RunStarted
from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.jobs._progress import Progress
from holdfast.storage.local import LocalUpload


def export(installation: Installation, reference: str, output: Path | None, emit: Emit) -> Path:
    """Writes a backup, with all it rests on, as one full, unencrypted archive, 0600; by default to
    ``<id>.tar.gz`` in the current directory.

    Raises RestoreError when `output` exists, and what reading raises.
    """
    repository, metadata = locate(installation, reference)
    output = output or Path(f"{metadata.backup_id}.tar.gz")
    if output.exists():
        raise RestoreError(f"{output} already exists", hint="Choose another name with --output.")
    emit(RunStarted("export", metadata.backup_id))
    progress = Progress(emit)
    with repository.lent(), repository.open(metadata) as stored:
        with explained(f"cannot write {output}"):
            upload = LocalUpload(output.with_name(f".{output.name}.partial"), output.absolute())
        installation.repository.export(stored, upload, progress)
    progress.flush()
    emit(RunFinished("export", metadata.backup_id))
    return output
