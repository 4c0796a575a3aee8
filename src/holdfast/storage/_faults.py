"""What goes wrong in a `MemoryStorage`, when a test says so."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from holdfast.errors import StorageError

Verb = Literal[
    "create",
    "write",
    "publish",
    "put",
    "open",
    "read_at",
    "get",
    "exists",
    "names",
    "delete",
    "free_bytes",
    "lock",
    "sweep",
]
DataVerb = Literal["write", "put", "read_at", "get"]
"""The verbs that data passes through."""


class Crashed(BaseException):
    """The process is gone. Nothing that handles errors may stop it, as nothing stops a kill."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """One thing that goes wrong at the calls `first` to `last` of a verb (None: of any verb; for ever)."""

    verb: Verb | None
    first: int
    last: int | None
    error: type[Exception] | None = None
    crash: bool = False
    done: bool = False
    loses_uploads: bool = False
    distort: Callable[[bytes], bytes] | None = None

    def is_due(self, verb: Verb, call: int, total: int) -> bool:
        if self.verb not in (None, verb):
            return False
        number = total if self.verb is None else call
        return self.first <= number and (self.last is None or number <= self.last)


class Due:
    """All that goes wrong at one call."""

    def __init__(self, faults: list[_Fault]) -> None:
        self._faults = faults

    @property
    def loses_uploads(self) -> bool:
        return any(fault.loses_uploads for fault in self._faults)

    def crashes(self, *, done: bool) -> bool:
        return any(fault.crash and fault.done == done for fault in self._faults)

    def error(self, *, done: bool) -> type[Exception] | None:
        return next((fault.error for fault in self._faults if fault.error and fault.done == done), None)

    def distorted(self, data: bytes) -> bytes:
        """The data as it comes out of the call."""
        for fault in self._faults:
            if fault.distort is not None:
                data = fault.distort(data)
        return data


class Faults:
    """What shall go wrong, and at which call. Several faults may strike at one.

    `at` counts calls from now: 1 is the next one. `times` is how many calls in a row are struck; None means all from
    there on. A call that was struck is counted like any other, so a test can run once without faults, read `calls`
    or `total`, and then crash at each of them in turn.
    """

    def __init__(self) -> None:
        self.calls: Counter[Verb] = Counter()
        """Calls so far, of each verb."""
        self.listing_delay = 0
        """How many calls of `names` do not show yet that a name was given or deleted. For changes from now on."""
        self._faults: list[_Fault] = []
        self._mutex = threading.Lock()

    @property
    def total(self) -> int:
        """Calls so far, of all verbs."""
        return self.calls.total()

    def fail(
        self,
        verb: Verb,
        error: type[Exception] = StorageError,
        *,
        at: int = 1,
        times: int | None = 1,
        done: bool = False,
    ) -> None:
        """The call raises `error`: nothing was done; or, with `done`, all was, and only the answer is lost."""
        self._plan(verb, at, times, lambda first, last: _Fault(verb, first, last, error=error, done=done))

    def crash(self, verb: Verb | None = None, *, at: int = 1, done: bool = False) -> None:
        """The process dies at the call (None: of any verb), before anything is done, or after all is.

        The call, and every later one of the same instance, raises Crashed.
        """
        self._plan(verb, at, 1, lambda first, last: _Fault(verb, first, last, crash=True, done=done))

    def lose_uploads(self, verb: Verb | None = None, *, at: int = 1) -> None:
        """When the call (None: of any verb) comes, all that was written and not published is gone."""
        self._plan(verb, at, 1, lambda first, last: _Fault(verb, first, last, loses_uploads=True))

    def truncate(self, verb: DataVerb, *, to: int, at: int = 1, times: int | None = 1) -> None:
        """No more than the first `to` bytes come through: out of a read, or into what is written."""
        if to < 0:
            raise ValueError(f"data cannot be truncated to {to} bytes")
        self._plan(verb, at, times, lambda first, last: _Fault(verb, first, last, distort=lambda d: d[:to]))

    def flip(self, verb: DataVerb, *, bit: int = 0, at: int = 1, times: int | None = 1) -> None:
        """One bit comes through the other way round: number `bit`, modulo the bits that there are."""

        def flipped(data: bytes) -> bytes:
            if not data:
                return data
            damaged = bytearray(data)
            damaged[bit // 8 % len(data)] ^= 1 << bit % 8
            return bytes(damaged)

        self._plan(verb, at, times, lambda first, last: _Fault(verb, first, last, distort=flipped))

    def clear(self) -> None:
        """Nothing goes wrong any more. What was counted stays."""
        with self._mutex:
            self._faults.clear()
            self.listing_delay = 0

    def due(self, verb: Verb) -> Due:
        """Counts a call, and says what goes wrong at it."""
        with self._mutex:
            self.calls[verb] += 1
            call, total = self.calls[verb], self.total
            return Due([fault for fault in self._faults if fault.is_due(verb, call, total)])

    def _plan(
        self, verb: Verb | None, at: int, times: int | None, fault: Callable[[int, int | None], _Fault]
    ) -> None:
        if at < 1 or (times is not None and times < 1):
            raise ValueError("calls are counted from 1")
        with self._mutex:
            first = at + (self.total if verb is None else self.calls[verb])
            self._faults.append(fault(first, None if times is None else first + times - 1))
