"""A hash table from ids to row numbers, for tens of millions of ids: numpy, open addressing, linear probing.

A dict of as many takes three times the memory. Ids are looked up and added in batches; one at a time works too.
"""

from __future__ import annotations

import secrets
import struct

import numpy as np
import numpy.typing as npt

from holdfast.repository.dedup._column import Column

_WORD = 1 << 64
_FIRST_BITS = 10
_BATCH = 1 << 18
"""Ids that are handled at once: bounds the memory that a batch takes for itself, to some 50 MB."""


class IdTable:
    """Rows are numbered from 0 in the order in which ids come."""

    def __init__(self, width: int) -> None:
        """`width`: bytes of an id, a multiple of 8."""
        self.width = width
        self._words = width // 8
        self._keys = Column(np.uint64, self._words)
        self._slots: npt.NDArray[np.uint32] = np.zeros(1 << _FIRST_BITS, np.uint32)  # row + 1; 0: free
        self._shift = np.uint64(64 - _FIRST_BITS)
        # Drawn at random, so that nobody can choose ids that all fall into one place.
        self._odds = [secrets.randbits(64) | 1 for _ in range(self._words)]
        self._struct = struct.Struct(f"={self._words}Q")

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def ids(self) -> npt.NDArray[np.uint8]:
        """All ids, by row. Valid until the next `add`."""
        return self._keys.rows.view(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._keys.nbytes + self._slots.nbytes

    def row(self, key: bytes) -> int:
        """The row of one id; -1 when it is not there."""
        if not len(self._keys):
            return -1
        words = self._struct.unpack(key)
        slot = sum(word * odd for word, odd in zip(words, self._odds, strict=True)) % _WORD >> int(
            self._shift
        )
        mask = len(self._slots) - 1
        keys = self._keys.rows
        while entry := int(self._slots[slot]):
            if keys[entry - 1].tobytes() == key:
                return entry - 1
            slot = (slot + 1) & mask
        return -1

    def rows(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """The rows of ids, given as rows of bytes; -1 for those that are not there."""
        keys = self._as_words(ids)
        if len(keys) <= _BATCH:
            return self._find(keys)
        return np.concatenate(
            [self._find(keys[start : start + _BATCH]) for start in range(0, len(keys), _BATCH)]
        )

    def add(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Adds those that are not there yet, and returns the rows of all. New ones are at the end, in order."""
        keys = self._as_words(ids)
        rows = np.empty(len(keys), np.int64)
        for start in range(0, len(keys), _BATCH):
            rows[start : start + _BATCH] = self._add(keys[start : start + _BATCH])
        return rows

    def _as_words(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
        if ids.shape[1:] != (self.width,):
            raise ValueError(f"ids of {self.width} bytes are needed, not {ids.shape}")
        return np.ascontiguousarray(ids).view(np.uint64)

    def _hashes(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        total = keys[:, 0] * np.uint64(self._odds[0])
        for word in range(1, self._words):
            total += keys[:, word] * np.uint64(self._odds[word])
        return (total >> self._shift).astype(np.int64)

    def _find(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        found = np.full(len(keys), -1, np.int64)
        mask = len(self._slots) - 1
        pending = np.arange(len(keys))
        slots = self._hashes(keys)
        while len(pending):
            entries = self._slots[slots].astype(np.int64)
            taken = entries > 0
            pending, slots, entries = pending[taken], slots[taken], entries[taken] - 1
            same = (self._keys.rows[entries] == keys[pending]).all(axis=1)
            found[pending[same]] = entries[same]
            other = ~same
            pending, slots = pending[other], (slots[other] + 1) & mask
        return found

    def _add(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        rows = self._find(keys)
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return rows
        new = keys[missing]
        first, which = _first_of_each(new)
        before = len(self._keys)
        self._keys.append(new[first])
        self._make_room(before)
        numbers = np.arange(before, len(self._keys))
        self._place(numbers)
        rows[missing] = numbers[which]
        return rows

    def _make_room(self, placed: int) -> None:
        """Makes slots for all keys, of which some have one: at most two thirds are taken."""
        count = len(self._keys)
        if count >= 1 << 31:
            raise ValueError("a table has room for 2**31 ids")
        if count * 3 <= len(self._slots) * 2:
            return
        bits = (count * 3 // 2).bit_length()
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, np.uint32)
        for start in range(0, placed, _BATCH):
            self._place(np.arange(start, min(start + _BATCH, placed)))

    def _place(self, rows: npt.NDArray[np.int64]) -> None:
        """Gives slots to rows whose ids have none."""
        mask = len(self._slots) - 1
        slots = self._hashes(self._keys.rows[rows])
        while len(rows):
            free = np.flatnonzero(self._slots[slots] == 0)
            # Of several that want one slot, the last written has it.
            self._slots[slots[free]] = rows[free] + 1
            left = self._slots[slots] != rows + 1
            rows, slots = rows[left], (slots[left] + 1) & mask


def _first_of_each(
    keys: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each different key comes first, in order, and for every key which of these it is."""
    if len(np.unique(keys[:, 0])) == len(keys):  # the usual case, and quicker to tell than to sort whole ids
        every = np.arange(len(keys))
        return every, every
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[which.reshape(-1)]
