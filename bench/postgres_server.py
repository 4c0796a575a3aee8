"""A PostgreSQL server of the benchmark's own, from the programs that are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import RunFailed

_INSTALLED = Path("/usr/lib/postgresql")
_WANTED = ("initdb", "pg_ctl", "postgres", "psql", "pgbench", "createdb", "dropdb", "pg_dump", "pg_restore")
_USER = "bench"
_PORT = "5432"  # only the name of a socket, in a directory of its own
# Durable as a server is that keeps something; but what it does by itself at any time would be measured with whatever
# runs then.
_OPTIONS = "-c listen_addresses= -c autovacuum=off -c max_wal_size=4GB -c checkpoint_timeout=1h"


def installed() -> Path | None:
    """Where the programs of the newest server are."""
    found = [Path(path).resolve().parent for path in [shutil.which("postgres")] if path]
    packaged = sorted(_INSTALLED.glob("*/bin"), key=lambda path: path.parent.name.zfill(3), reverse=True)
    return next(
        (path for path in (*found, *packaged) if all((path / name).exists() for name in _WANTED)), None
    )


class PostgresServer:
    """A server that runs. Its owner may do everything, from this machine only."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.programs = programs
        self.directory = directory
        self.environment = {"PGHOST": str(directory), "PGPORT": _PORT, "PGUSER": _USER}
        """For PostgreSQL's own programs."""

    def url(self, database: str) -> str:
        return f"postgresql://{_USER}@/{database}?host={self.directory}&port={_PORT}"

    def program(self, name: str, *arguments: str) -> list[str]:
        return [str(self.programs / name), *arguments]

    def call(self, name: str, *arguments: str) -> str:
        """Runs one of its programs unmeasured, and returns what it prints. Raises RunFailed."""
        return _call(self.program(name, *arguments), self.environment)

    def ask(self, database: str, statement: str) -> str:
        return self.call("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, database).strip()

    def settle(self) -> None:
        """Writes what earlier work has left to write."""
        self.ask("postgres", "CHECKPOINT")


@contextmanager
def running(programs: Path) -> Iterator[PostgresServer]:
    """Starts one in a temporary directory, and ends it. Raises RunFailed."""
    user = _unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    try:
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
        data = str(directory / "data")
        identity = (user.pw_uid, user.pw_gid) if user is not None else None
        initdb = [
            str(programs / "initdb"),
            "-D",
            data,
            "-U",
            _USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        _call(initdb, {}, identity)
        control = [str(programs / "pg_ctl"), "-D", data, "-w", "-s"]
        options = f"{_OPTIONS} -p {_PORT} -c unix_socket_directories={directory}"
        _call([*control, "-l", str(directory / "log"), "-o", options, "start"], {}, identity)
        try:
            yield PostgresServer(programs, directory)
        finally:
            _call([*control, "-m", "immediate", "stop"], {}, identity)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run it as: it refuses to be run by root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RunFailed("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")


def _call(argv: list[str], environ: dict[str, str], identity: tuple[int, int] | None = None) -> str:
    with tempfile.TemporaryFile() as output:
        # A file, not a pipe: a server that is started keeps it open.
        done = subprocess.run(
            argv,
            cwd="/",
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            user=identity[0] if identity else None,
            group=identity[1] if identity else None,
            extra_groups=[] if identity else None,
        )
        output.seek(0)
        told = output.read().decode(errors="replace")
    if done.returncode:
        raise RunFailed(f"{' '.join(argv)} exited with {done.returncode}:\n{told[-2000:]}")
    return told
