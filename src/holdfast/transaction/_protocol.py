"""The protocol of a swap."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol


class Swap(Protocol):
    """One reversible replacement of live data by staged data, a step of a restore transaction.

    The transaction calls, in this order and for all steps before the next phase begins: `stage` (fills and
    checks the private place), then writes its journal, then `apply`. When anything fails, or after a crash,
    it calls `revert`; when all went well, `settle`. `apply` publishes nothing half-done and leaves the
    previous state in `kept`. `revert` may be called whatever became of `apply`, several times over, in a
    process that knows nothing but the journal.
    """

    kind: ClassVar[str]
    """Its name in a journal."""

    @property
    def note(self) -> str:
        """What a person should know about how it was applied; mostly empty."""
        ...

    def to_journal(self) -> dict[str, Any]:
        """All that `from_journal` needs in a process to come. JSON, no secrets."""
        ...

    def apply(self) -> None:
        """Puts the staged state in place of the live one, and the live one into the kept place."""
        ...

    def revert(self) -> None:
        """Puts the kept state back. Idempotent; does nothing where nothing was applied."""
        ...

    def reversed(self) -> Swap:
        """The swap that takes this one back, keeping what it replaces: undo is the same road backwards."""
        ...

    def settle(self) -> None:
        """Frees what is no longer needed once the whole transaction is committed. Keeps the kept state."""
        ...

    def discard(self) -> None:
        """Deletes the kept state and the private place."""
        ...
