"""The restore transaction: several swaps that happen all or not at all, and can be taken back.

Nothing here knows of files or databases; a `Swap` does. The road of every restore, and of every undo:

1. *staging*: private places beside the targets are filled and checked. Each is in the journal before it exists.
2. *applying*: the journal lists every swap; then each is applied.
3. *committed*: one write of the journal. From here on the new state counts, before it the old one.
4. *kept*: left-overs are freed; the previous state stays, for `undo`, until it is discarded.
5. *discarding*: what nothing needs any more is deleted.

What is relied upon: a rename is atomic; a rename or a file that was fsynced is there after a crash; the order
of what was not fsynced is unknown. A process may die between any two system calls, in `recover` too. So every
step can be repeated, and the journal moves to the next phase only once the step before it is durable. An error
inside a running transaction is handled as a crash is: by what the journal on disk says.
"""

from __future__ import annotations

from holdfast.transaction._engine import (
    KEEP_FOR,
    REHEARSAL,
    Kept,
    Kinds,
    Recovery,
    SwapKind,
    Transaction,
    discard,
    kept,
    recover,
    undo,
)
from holdfast.transaction._places import is_place_name, list_some, open_place, remove_place, restoring
from holdfast.transaction._protocol import Swap

__all__ = [
    "KEEP_FOR",
    "REHEARSAL",
    "Kept",
    "Kinds",
    "Recovery",
    "Swap",
    "SwapKind",
    "Transaction",
    "discard",
    "is_place_name",
    "kept",
    "list_some",
    "open_place",
    "recover",
    "remove_place",
    "restoring",
    "undo",
]
