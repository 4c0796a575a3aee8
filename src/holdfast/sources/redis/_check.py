"""What `holdfast check` says of a Redis database. Nothing is changed, and no dump is made."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.errors import DatabaseError
from holdfast.model import Finding
from holdfast.sources.redis._connection import BACKUP, Refused, Server, Session, version_of
from holdfast.sources.redis._dump import look
from holdfast.sources.redis._load import spares
from holdfast.sources.redis._swap import MARKER
from holdfast.text import harmless

_KEY = f"{MARKER}check"
# What a backup and a restore ask the server to do, each with arguments of the right number.
_REPLICATE = (("REPLCONF", "capa", "eof"), ("PSYNC", "?", "-1"))
_PAUSE = (
    ("CLIENT", "PAUSE", "1", "WRITE"),
    ("CLIENT", "UNPAUSE"),
    ("SCAN", "0"),
    ("DUMP", _KEY),
    ("PTTL", _KEY),
)
_RESTORE = (
    ("RESTORE", _KEY, "0", "value"),
    ("SET", _KEY, "value"),
    ("RENAME", _KEY, f"{_KEY}2"),
    ("MOVE", _KEY, "1"),
    ("SWAPDB", "0", "1"),
    ("FLUSHDB", "ASYNC"),
    ("EVAL", "return 1", "0"),
    ("EXISTS", _KEY),
    ("SELECT", "0"),
    ("MULTI",),
    ("EXEC",),
    ("DBSIZE",),
    ("TIME",),
)


def check(subject: str, server: Server) -> Iterator[Finding]:
    """See `Source.check`. Raises SourceMissing, DatabaseError."""
    with server.explained(BACKUP, DatabaseError), server.session() as session:
        keys = look(server, session)
        info = session.info("server")
        version = harmless(info.get("redis_version", "(version not shown)"))[:40]
        yield Finding(
            subject, "ok", f"Redis {version}, {keys:,} {'key' if keys == 1 else 'keys'} in {server}"
        )
        rights = _Rights(session)
        yield _way(subject, rights, version_of(info))
        lacking = rights.lacking(_RESTORE)
        if lacking:
            detail = f"the user may not {', '.join(lacking)}: no restore can be made with it"
            yield Finding(subject, "warning", detail)
        elif rights.are_known:
            yield Finding(subject, "ok", "the user may restore")
        else:
            detail = "the server does not tell what the user may do (ACL DRYRUN): a restore may be refused"
            yield Finding(subject, "warning", detail)
        spare = next(spares(session, server.database), None)
        if spare is None:
            yield Finding(subject, "warning", "no logical database is empty, and a restore needs one")
        else:
            yield Finding(subject, "ok", f"logical database {spare} is empty: a restore is made ready there")


def _way(subject: str, rights: _Rights, version: tuple[int, ...]) -> Finding:
    if not rights.lacking(_REPLICATE):
        said = "dumped as a replica, while writers go on"
        if not rights.are_known:
            said += ", if the user may (the server does not tell); else with writers paused"
        return Finding(subject, "ok", said)
    lacking = rights.lacking(_PAUSE)
    if version and version < (6, 2, 0):
        return Finding(
            subject, "FAILED", "the user may not replicate, and writers can be paused since Redis 6.2"
        )
    if lacking:
        return Finding(
            subject,
            "FAILED",
            f"the user may neither replicate nor read while writers wait: {', '.join(lacking)}",
        )
    return Finding(
        subject,
        "ok",
        "dumped key by key while writers wait, for database_timeout at most: the user may not replicate",
    )


class _Rights:
    """What the user of a session may do."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._user: bytes | None = None
        try:
            self._user = session.command("ACL", "WHOAMI")
            session.command("ACL", "DRYRUN", self._user, "PING")
        except Refused:
            self._user = None

    @property
    def are_known(self) -> bool:
        """Whether the server tells: since Redis 7.0, to users who may ask."""
        return self._user is not None

    def lacking(self, commands: tuple[tuple[str, ...], ...]) -> list[str]:
        """The commands that are refused for sure."""
        return [command[0] for command in commands if not self._may(command)]

    def _may(self, command: tuple[str, ...]) -> bool:
        try:
            if self._user is not None:
                return bool(self._session.command("ACL", "DRYRUN", self._user, *command) == b"OK")
            return bool(self._session.command("COMMAND", "INFO", command[0])[0])
        except Refused as error:
            # A command that the server does not have cannot be tried; anything else says nothing about it.
            return "not found" not in str(error)
