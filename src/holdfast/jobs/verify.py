"""Prove that stored backups are good."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.clock import timestamp
from holdfast.errors import HoldfastError
from holdfast.events import Emit, RunStarted, StageStarted
from holdfast.installation import Installation
from holdfast.jobs._locate import locate
from holdfast.jobs._progress import Progress
from holdfast.jobs._trust import check_signature
from holdfast.model import BackupMetadata
from holdfast.repository.base import Repository


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one backup."""

    metadata: BackupMetadata
    error: str = ""
    """Empty when it is good."""


def verify(installation: Installation, reference: str, emit: Emit, *, deep: bool = False) -> BackupMetadata:
    """Compares sizes and checksums of a backup and all it rests on with their metadata; `deep` also opens every
    entry and checks every signature.

    Raises CorruptBackup for the first thing that is wrong, ParentMissing, UntrustedSignature.
    """
    repository, metadata = locate(installation, reference)
    emit(RunStarted("verify", metadata.backup_id))
    _verify(installation, repository, metadata, emit, deep=deep)
    return metadata


def verify_all(installation: Installation, emit: Emit, *, deep: bool = False) -> list[Verdict]:
    """A verdict on every backup, newest first."""
    verdicts = []
    for metadata in installation.repository.backups():
        if metadata.status == "damaged":
            verdicts.append(Verdict(metadata, metadata.error_message or "damaged"))
        if not metadata.is_good:
            continue
        emit(RunStarted("verify", metadata.backup_id))
        try:
            _verify(installation, installation.repository, metadata, emit, deep=deep)
        except HoldfastError as error:
            verdicts.append(Verdict(metadata, str(error)))
        else:
            verdicts.append(Verdict(metadata))
    return verdicts


def _verify(
    installation: Installation, repository: Repository, metadata: BackupMetadata, emit: Emit, *, deep: bool
) -> None:
    outcome = {"status": "success", "message": ""}
    try:
        progress = Progress(emit)
        with repository.lent():
            chain = repository.chain(metadata)
            for level in chain:
                emit(StageStarted("verify", level.backup_id, level.size_bytes))
                repository.verify(level, deep=deep and level is metadata, progress=progress)
        progress.flush()
        if deep:
            check_signature(installation, repository, metadata, trust=False, vouch=lambda question: False)
    except BaseException as error:
        outcome = {
            "status": "failed",
            "error": type(error).__name__,
            "message": str(error) if isinstance(error, HoldfastError) else "",
        }
        raise
    finally:
        installation.state.record(
            {
                "time": timestamp(installation.clock()),
                "verb": "verify",
                "backup_id": metadata.backup_id,
                "deep": deep,
            }
            | outcome
        )
