"""Rehearse a restore: everything that one does but the swap, on scratch, with evidence."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.errors import HoldfastError, Interrupted, LockHeld, UsageError
from holdfast.events import DrillFailed, DrillFinished, Emit, RunFinished, RunStarted, StageStarted
from holdfast.installation import Installation
from holdfast.jobs._drill_command import run_command
from holdfast.jobs._drill_ground import Checks, Ground
from holdfast.jobs._locate import locate
from holdfast.jobs._reading import chosen
from holdfast.jobs._restore_log import RestoreLog, restore_log
from holdfast.jobs._trust import Confirm, check_signature
from holdfast.jobs.recover import recover
from holdfast.jobs.restore import nobody
from holdfast.model import BackupMetadata, SourceRecord
from holdfast.transaction import REHEARSAL, Transaction

VERB = REHEARSAL
"""``drill``: in the history, in the journal, in events."""


@dataclass(frozen=True, slots=True)
class Drilled:
    """What a drill has shown."""

    metadata: BackupMetadata
    sources: tuple[str, ...]
    checks: Checks
    content_bytes: int
    stages: dict[str, float]
    """Seconds: ``open``, ``extract``, ``load``, ``check``, ``command``."""
    restore_seconds: float | None
    """Estimated for a restore of the same; None where not everything could be tried."""
    duration_seconds: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    log: Path


def drill(
    installation: Installation,
    reference: str,
    emit: Emit,
    *,
    components: Sequence[str] | None = None,
    vouch: Confirm = nobody,
    trust: bool = False,
) -> Drilled:
    """Restores a backup's components, by default all of them, into scratch, checks them, and removes them again.

    Runs the command of the settings on what was restored. Live data is neither
    read nor written. What came of it is recorded in the history, and told as DrillFinished or DrillFailed. Raises
    HoldfastError of every kind when the backup could not be restored here.
    """
    started = time.monotonic()
    facts: dict[str, object] = {}
    try:
        with restore_log(installation, reference, emit, VERB) as log:
            facts = log.facts
            work = _Work(installation, log)
            work.run(reference, components, vouch, trust=trust)
            done = work.result(time.monotonic() - started)
    except (Interrupted, LockHeld, UsageError):
        raise
    except HoldfastError as error:
        emit(DrillFailed(str(facts.get("backup_id", reference)), str(error), error.hint))
        raise
    emit(
        DrillFinished(
            done.metadata.backup_id,
            done.duration_seconds,
            done.restore_seconds,
            done.content_bytes,
            len(done.warnings),
        )
    )
    return done


def rehearse(installation: Installation, metadata: BackupMetadata, emit: Emit) -> None:
    """What a scheduler does with a backup that it has just made: a `holdfast.scheduler.Drill`."""
    drill(installation, metadata.backup_id, emit)


@dataclass(slots=True)
class _Work:
    installation: Installation
    log: RestoreLog
    metadata: BackupMetadata = field(init=False)
    sources: tuple[str, ...] = ()
    ground: Ground = field(init=False)

    def run(self, reference: str, components: Sequence[str] | None, vouch: Confirm, *, trust: bool) -> None:
        installation, log = self.installation, self.log
        repository, metadata = locate(installation, reference)
        self.metadata = metadata
        log.facts["backup_id"] = metadata.backup_id
        wanted = chosen(metadata, components)
        log.emit(RunStarted(VERB, metadata.backup_id))
        check_signature(installation, repository, metadata, trust=trust, vouch=vouch)
        with ExitStack() as lent:
            lent.enter_context(repository.lent())
            opening = time.monotonic()
            stored = lent.enter_context(repository.open(metadata))
            records = [record for record in stored.sources() if record.component in wanted]
            self.sources = tuple(f"{record.component} {record.name}" for record in records)
            with self._scratch(records) as ground:
                ground.seconds["open"] = time.monotonic() - opening
                ground.fill(stored)
                lent.close()  # Others may expire backups while the rest is done.
                ground.check()
                self._command(ground)
        with suppress(LockHeld):  # Whoever holds it removes what could not be removed.
            recover(installation, log.emit)
        if self.ground.restore_seconds is not None:
            log.facts["restore_seconds"] = round(self.ground.restore_seconds, 3)
        for fact in ("checks", "stages", "restore_seconds"):
            log.write(f"{fact}: {json.dumps(log.facts.get(fact))}")
        log.emit(RunFinished(VERB, metadata.backup_id))

    @contextmanager
    def _scratch(self, records: Sequence[SourceRecord]) -> Iterator[Ground]:
        """Taken away at the end, whatever happens; what was found good until then goes into the history."""
        installation, log = self.installation, self.log
        with Transaction.begin(
            installation.state.service,
            installation.swaps,
            verb=VERB,
            subject=self.metadata.backup_id,
            clock=installation.clock,
        ) as transaction:
            self.ground = Ground(installation, records, transaction, log.emit)
            try:
                yield self.ground
            finally:
                log.facts |= self.ground.facts()

    def result(self, seconds: float) -> Drilled:
        ground = self.ground
        return Drilled(
            metadata=self.metadata,
            sources=self.sources,
            checks=ground.checks,
            content_bytes=ground.bytes,
            stages=dict(ground.seconds),
            restore_seconds=ground.restore_seconds,
            duration_seconds=seconds,
            warnings=tuple(self.log.warnings),
            notes=tuple(self.log.notes),
            log=self.log.path,
        )

    def _command(self, ground: Ground) -> None:
        command = self.installation.settings.drill_command
        if command is None:
            return
        self.log.emit(StageStarted("command", command[0]))
        with ground.timed_command():
            run_command(
                command,
                ground.directory,
                ground.variables(),
                self.log.emit,
                timeout=self.installation.settings.drill_timeout,
            )
