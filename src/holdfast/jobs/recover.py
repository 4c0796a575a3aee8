"""Finish or take back what a crashed restore has left."""

from __future__ import annotations

from holdfast.events import Emit, Noted, Warned
from holdfast.installation import Installation
from holdfast.transaction import recover as recover_transaction


def recover(installation: Installation, emit: Emit) -> bool:
    """Every command calls this first. Returns whether there was anything to do. Raises JournalRefused."""
    service = installation.state.service
    if not service.exists():
        return False
    recovery = recover_transaction(service, installation.swaps, installation.clock())
    if recovery is None:
        return False
    if recovery.message:
        emit(Noted(recovery.message))
    for warning in recovery.warnings:
        emit(Warned(warning))
    return bool(recovery.message)
