"""A dump of a PostgreSQL database as a private file, for pg_restore: written, looked through, loaded.

The format is pg_dump's own ("custom"); what it holds is asked of pg_restore alone
(https://www.postgresql.org/docs/current/app-pgrestore.html). Only where each table's data begins, which a dump
that was streamed does not say, is written into it by us: see `holdfast.sources.postgres._offsets`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path

from holdfast.errors import CorruptBackup, DatabaseError, HoldfastError, NoSpace, RestoreError
from holdfast.model import Entry
from holdfast.sources._program import Program
from holdfast.sources.base import Read
from holdfast.sources.postgres._connection import RESTORE, Client, Server, Session

MAGIC = b"PGDMP"
"""How a dump in the custom format begins."""
_LIST_BYTES = 1 << 28
_JOBS = 4
_NAMED = 10
_PASSES = (("pre-data", "data"), ("post-data",))
"""Sections that are loaded together. All in one go, a parallel pg_restore makes the triggers of a partitioned table
while rows of its partitions are still to come, and they fire."""
_OF_THE_DATABASE = re.compile(r"\d+; \d+ \d+ (?:DATABASE|(?:ACL|COMMENT|SECURITY LABEL) - DATABASE) ")
"""Lines of a list that are restored only by ``pg_restore --create``."""
_FULL = ("No space left on device", "Disk quota exceeded", "Check free disk space")
_DAMAGE = (
    "could not read from input file",
    "unexpected block ID",
    "end of file",
    "corrupt",
    "magic string",
    "the restored database has",
)


def write_archive(path: Path, entry: Entry, read: Read) -> None:
    """Makes a file (0600) of an entry's content. Raises CorruptBackup where it is no dump, OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    start = b""
    with open(descriptor, "wb", buffering=0) as file:
        for piece in read(entry):
            if len(start) < len(MAGIC):
                start += bytes(piece[: len(MAGIC)])
                if not MAGIC.startswith(start[: len(MAGIC)]):
                    break
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
    if start[: len(MAGIC)] != MAGIC:
        raise CorruptBackup(f"{entry.path} is not a dump in pg_dump's custom format")


def contents(client: Client, path: Path) -> Iterator[str]:
    """What pg_restore lists, line by line. Raises CorruptBackup."""
    try:
        rest, size = b"", 0
        with closing(Program([client.path, "--list", str(path)], RESTORE).output()) as pieces:
            for piece in pieces:
                size += len(piece)
                if size > _LIST_BYTES:
                    raise CorruptBackup("the dump lists too much")
                *lines, rest = (rest + piece).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
    except DatabaseError as error:
        raise CorruptBackup(f"the dump is damaged: {error}") from error


def missing_roles(lines: Iterator[str], known: Collection[str]) -> set[str]:
    """Roles that own something in the list and are not `known`.

    A line ends with the owner, and names may hold spaces: one is missing only where no known role ends the line.
    """
    missing: set[str] = set()
    suffixes = tuple(f" {role}" for role in known)
    for line in lines:
        if line.startswith(";") or not line.strip() or _OF_THE_DATABASE.match(line) or line.endswith(" "):
            continue
        owner = line.rpartition(" ")[2]
        if owner not in known and not line.endswith(suffixes):
            missing.add(owner)
    return missing


def check_roles(session: Session, lines: Iterator[str], used: Collection[str]) -> None:
    """Raises RestoreError where the dump needs a role that this server does not have; `used` are some of them."""
    known = {str(name) for (name,) in session.run("SELECT rolname FROM pg_roles")}
    missing = sorted(missing_roles(lines, known) | (set(used) - known))
    if missing:
        names = ", ".join(missing[:_NAMED]) + (" …" if len(missing) > _NAMED else "")
        raise RestoreError(
            f"{RESTORE}: roles own or may use what is in the backup, and do not exist on this server: {names}",
            hint="Create them first (CREATE ROLE, or `pg_dumpall --roles-only` where the backup was made).",
        )


def load(client: Client, path: Path, server: Server, session: Session, *, database: str, run: str) -> None:
    """Loads a dump into an empty database of the server that `session` has reached. Raises RestoreError, NoSpace,
    CorruptBackup."""
    for sections in _PASSES:
        wanted = [f"--section={section}" for section in sections]
        arguments = [client.path, "--exit-on-error", f"--jobs={jobs()}", *wanted, str(path)]
        program = server.program(arguments, RESTORE, session, database=database, run=run)
        try:
            program.run()
        except DatabaseError as error:
            raise load_failed(error) from error


def load_failed(error: DatabaseError) -> HoldfastError:
    """What a program said while it loaded a dump, as ours. It tells no SQLSTATE, so its words are looked at."""
    text = str(error)
    if any(sign in text for sign in _FULL):
        return NoSpace(text, hint="Free some space on the database server.")
    if any(sign in text for sign in _DAMAGE):
        return CorruptBackup(text)
    return RestoreError(
        text, hint="The database is as it was before. The server's own words say what it lacks."
    )


def jobs() -> int:
    """How many sessions load and look through a database at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _JOBS)
