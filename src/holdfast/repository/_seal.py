"""How an installation encrypts and signs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.crypto import KeyRing
from holdfast.model import Signature


@dataclass(frozen=True, slots=True)
class Seal:
    """How this installation encrypts and signs what it writes."""

    encrypt: bool
    keys: Callable[[], KeyRing]
    """Asked when a key is needed. Raises KeyMissing when none is configured."""
    sign: Callable[[bytes], Signature]
    believes: Callable[[Signature | None, bytes], bool]
    """Whether a signature is a good one of a statement, by a host that is trusted here."""
