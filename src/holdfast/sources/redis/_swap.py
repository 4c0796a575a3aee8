"""Putting a restored logical database in place of the live one, and taking that back.

The restored keys lie in a *spare* logical database of the same server, one that was empty. ``SWAPDB live spare``
exchanges the two numbers, atomically, and every connected client sees it with its next command. What was live is
then under the number of the spare, and stays there until it is discarded.

Which of the two is which shows a marker, a key in the spare and never in the live database:
``__holdfast_<run>_<generation>``. Each swap adds one to the generation, each revert takes one off, in the same step
as SWAPDB: so the marker always tells how many swaps were done.

The step is a script, which nobody sees the middle of. A transaction (MULTI) would be refused by a server that has
reached its maxmemory, which is when a swap must not fail to be taken back; RENAME, MOVE and SWAPDB need no memory.

A database without the marker is not ours: nothing is ever deleted there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import NothingToUndo, RestoreError
from holdfast.sources._server import Address, Urls
from holdfast.sources.redis._connection import (
    DIALECTS,
    RESTORE,
    Server,
    Session,
    database_number,
)

if TYPE_CHECKING:
    from sqlalchemy import URL

KIND = "redis"
MARKER = "__holdfast_"

# What a script has done is not taken back when it fails, so it takes that back itself: a right may be missing.
_EXCHANGE = """
local spare, old, new, live = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
redis.call('SELECT', spare)
if redis.call('EXISTS', old) == 0 then return 0 end
local function failed(step, answer)
  return redis.error_reply('ERR ' .. step .. ': ' .. (type(answer) == 'table' and answer.err or 'not done'))
end
local renamed = redis.pcall('RENAME', old, new)
if renamed.err then return failed('RENAME', renamed) end
local moved = redis.pcall('MOVE', new, live)
if moved ~= 1 then
  redis.call('RENAME', new, old)
  return failed('MOVE', moved)
end
local swapped = redis.pcall('SWAPDB', live, spare)
if swapped.err then
  redis.call('SELECT', live)
  redis.call('MOVE', new, spare)
  redis.call('SELECT', spare)
  redis.call('RENAME', new, old)
  return failed('SWAPDB', swapped)
end
return 1
"""
_EMPTY = """
redis.call('SELECT', ARGV[1])
if redis.call('EXISTS', ARGV[2]) == 0 then return 0 end
redis.call('FLUSHDB', 'ASYNC')
return 1
"""
_RUN = re.compile(r"[0-9a-f]{16}")
_DATABASE_LIMIT = 1 << 31
_GENERATION_LIMIT = 1 << 20


class RedisSwap:
    """The exchange of a live logical database and a spare one. Implements `holdfast.transaction.Swap`."""

    kind: ClassVar[str] = KIND

    def __init__(
        self,
        urls: Urls,
        address: Address,
        *,
        live: int,
        spare: int,
        run: str,
        timeout: float,
        generation: int = 0,
    ) -> None:
        """`generation`: how many swaps of this run there were before this one. `timeout` in seconds."""
        self._urls = urls
        self._address = address
        self.live = live
        self.spare = spare
        self._run = run
        self._generation = generation
        self._timeout = timeout

    @property
    def note(self) -> str:
        return ""

    @property
    def marker(self) -> str:
        """The key in the spare database, before it is applied."""
        return self._marker(self._generation)

    def to_journal(self) -> dict[str, Any]:
        return {
            "address": self._address.to_journal(),
            "live": self.live,
            "spare": self.spare,
            "run": self._run,
            "generation": self._generation,
        }

    def apply(self) -> None:
        """See `Swap.apply`. Raises RestoreError when what was staged is not there any more."""
        with self._session() as session:
            if not self._exchange(session, self._generation, self._generation + 1):
                error = RestoreError if self._generation == 0 else NothingToUndo
                raise error(
                    f"{RESTORE} failed: logical database {self.spare} of {self._address} does not hold any more what "
                    f"should take the place of database {self.live}",
                    hint="Was it flushed, or the server started from an older state?",
                )

    def revert(self) -> None:
        """See `Swap.revert`. Where the spare database has lost its marker there is nothing to put back."""
        with self._session() as session:
            self._exchange(session, self._generation + 1, self._generation)

    def reversed(self) -> RedisSwap:
        return RedisSwap(
            self._urls,
            self._address,
            live=self.live,
            spare=self.spare,
            run=self._run,
            timeout=self._timeout,
            generation=self._generation + 1,
        )

    def settle(self) -> None:
        """Nothing is left but what is kept."""

    def discard(self) -> None:
        """See `Swap.discard`: empties the spare database, if it is still ours."""
        with self._session() as session:
            for generation in (self._generation, self._generation + 1):
                session.command("EVAL", _EMPTY, 0, self.spare, self._marker(generation))

    def scratch_url(self) -> URL:
        """See `holdfast.sources._server.Rehearsable`. The marker is one key more there."""
        url = self._address.find(self._candidates)
        if url.get_backend_name() == "unix" or "db" in url.query:
            return url.update_query_dict({"db": str(self.spare)})
        return url.set(database=str(self.spare))

    def _exchange(self, session: Session, old: int, new: int) -> bool:
        """Returns whether the marker of the old generation was there, and so the step was done."""
        words = (self.spare, self._marker(old), self._marker(new), self.live)
        return bool(session.command("EVAL", _EXCHANGE, 0, *words) == 1)

    def _marker(self, generation: int) -> str:
        return f"{MARKER}{self._run}_{generation}"

    @contextmanager
    def _session(self) -> Iterator[Session]:
        url = self._address.find(self._candidates)
        server = Server(url, self._timeout)
        with server.explained(RESTORE, RestoreError), server.session() as session:
            yield session

    def _candidates(self) -> list[Any]:
        # Of a server behind a socket the address does not tell the logical database.
        return [
            url
            for url in self._urls()
            if url.get_backend_name() in DIALECTS
            and Address.of(url) == self._address
            and database_number(url) == self.live
        ]


class RedisSwaps:
    """The swaps of a journal, with the passwords that are configured now. A `holdfast.transaction.SwapKind`."""

    def __init__(self, urls: Urls, *, timeout: float) -> None:
        self._urls = urls
        self._timeout = timeout

    def from_journal(self, state: dict[str, Any]) -> RedisSwap:
        """The inverse of `RedisSwap.to_journal`. Raises KeyError, TypeError, ValueError. Connects to nothing."""
        live, spare, generation, run = state["live"], state["spare"], state["generation"], state["run"]
        if not isinstance(run, str) or not _RUN.fullmatch(run):
            raise ValueError("a swap has a run")
        for number, limit in (
            (live, _DATABASE_LIMIT),
            (spare, _DATABASE_LIMIT),
            (generation, _GENERATION_LIMIT),
        ):
            if type(number) is not int or not 0 <= number < limit:
                raise ValueError("a logical database and a generation are small numbers")
        if live == spare:
            raise ValueError("a swap is of two logical databases")
        return RedisSwap(
            self._urls,
            Address.from_journal(state["address"]),
            live=live,
            spare=spare,
            run=run,
            timeout=self._timeout,
            generation=generation,
        )
