"""Take the last restore back."""

from __future__ import annotations

from holdfast.clock import timestamp
from holdfast.errors import ConfirmationRequired
from holdfast.events import Emit, Noted, Warned
from holdfast.installation import Installation
from holdfast.jobs._trust import Confirm
from holdfast.transaction import Kept, discard, kept
from holdfast.transaction import undo as undo_transaction


def undo(installation: Installation, emit: Emit, *, confirm: Confirm) -> Kept:
    """Puts back what the last restore replaced, and keeps what it replaces: undoing twice is redoing.

    Raises NothingToUndo, ConfirmationRequired.
    """
    state = installation.state
    state.make()
    known = kept(state.service)
    if known is not None and not confirm(f"Take back the restore of {known.subject}?"):
        raise ConfirmationRequired(
            f"undoing the restore of {known.subject} replaces the data of now",
            hint="Add --confirm. What it replaces is kept in turn.",
        )
    undone = undo_transaction(state.service, installation.swaps, installation.clock)
    if undone.verb == "undo":
        emit(Noted(f"the undo is undone: the data is again as {undone.subject} has it"))
    else:
        emit(Noted(f"the data is again as before the restore of {undone.subject}"))
    state.record(
        {
            "time": timestamp(installation.clock()),
            "verb": "undo",
            "backup_id": undone.subject,
            "status": "success",
        }
    )
    return undone


def discard_kept(installation: Installation, emit: Emit) -> None:
    """Frees what is kept for `undo`. Raises NothingToUndo."""
    told = discard(installation.state.service, installation.swaps)
    for warning in told.warnings:
        emit(Warned(warning))
    emit(Noted("the state before the last restore is gone for good"))
