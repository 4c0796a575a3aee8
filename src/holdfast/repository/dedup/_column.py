"""A numpy array that grows at its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Column:
    """Rows of one type. Growing moves nothing and holds nothing twice: the system moves the pages (mremap(2))."""

    def __init__(self, dtype: npt.DTypeLike, width: int = 0) -> None:
        """`width`: values in a row; 0 for plain values."""
        self._width = (width,) if width else ()
        self._all: npt.NDArray[Any] = np.zeros((0, *self._width), dtype)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> npt.NDArray[Any]:
        """What there is; it may be written to. Not to be kept beyond the next change of length."""
        return self._all[: self._count]

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._all.nbytes

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Adds rows at the end."""
        start = self._count
        self.extend(start + len(rows))
        self._all[start : self._count] = rows

    def extend(self, count: int) -> None:
        """Makes it `count` rows long; new rows hold zeros."""
        if count > len(self._all):
            room = max(count, len(self._all) * 9 // 8, 1024)
            # No reference is counted: nobody keeps `rows`.
            self._all.resize((room, *self._width), refcheck=False)
        self._count = count
