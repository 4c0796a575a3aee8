"""Where a restore stages, as a transaction gives it, without the transaction."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from holdfast.transaction import Swap, remove_place


class Places:
    """Implements `holdfast.sources.base.Staging`, and remembers what it was asked for."""

    def __init__(self, run: str = "") -> None:
        self.run = run or secrets.token_hex(8)
        self.made: list[Path] = []
        self.registered: list[Swap] = []

    def place(self, beside: Path) -> Path:
        path = Path(os.path.realpath(beside)) / f".holdfast-{self.run}-{len(self.made)}"
        path.mkdir(mode=0o700)
        self.made.append(path)
        return path

    def register(self, swap: Swap) -> None:
        self.registered.append(swap)

    def remove(self) -> None:
        """Removes the places, as the end of a transaction does."""
        for path in self.made:
            remove_place(path)
