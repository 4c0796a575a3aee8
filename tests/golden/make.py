"""Makes the golden backups: archives as this version writes them, for every later version to read.

    PYTHONPATH=src:tests python tests/golden/make.py

Run it only to add a case, and keep the archives that are there: it is their age that makes them worth keeping.
Names, contents and times are the same in each run; keys, inodes and change times are not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conformance.trees import Clock
from holdfast.crypto import KeyRing, X25519Identity
from holdfast.crypto.age import rewrap
from holdfast.events import ignore
from holdfast.installation import Installation
from holdfast.jobs.backup import backup
from holdfast.model import BackupMetadata
from holdfast.storage.local import LocalStorage

HERE = Path(__file__).parent
IDENTITY = X25519Identity(hashlib.sha256(b"golden").digest())
PASSPHRASE = "correct horse battery staple"
SECOND = 10**9
THEN = 1_700_000_000 * SECOND


def noise(size: int, seed: int) -> bytes:
    return hashlib.shake_256(b"%d" % seed).digest(size)


def lines(size: int) -> bytes:
    """Text that compresses to next to nothing, and is cut into several chunks all the same."""
    return b"".join(b"%06d\n" % (n // 40) for n in range(size // 7))


# The service


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def settle(root: Path) -> None:
    """Gives everything a time of its own, in nanoseconds, the deepest first."""
    found = sorted(root.rglob("*"), key=lambda path: (-len(path.parts), os.fsencode(path)))
    for number, path in enumerate(found):
        if "backups" not in path.relative_to(root).parts:
            moment = THEN + number * 60 * SECOND + number
            os.utime(path, ns=(moment, moment), follow_symlinks=False)


def plain_service(root: Path) -> None:
    write(root / "models/weights.bin", noise(3_000, 1))
    write(root / "models/empty", b"")
    write(root / "models/run.sh", b"#!/bin/sh\n", 0o755)
    write(root / ".env", b"SETTING=1\n", 0o600)
    write(root / "config/service.yaml", b"threshold: 0.5\n")
    write(root / "logs/service.log", b"started\n" * 100)
    with closing(sqlite3.connect(root / "service.db")) as connection:
        connection.execute("CREATE TABLE sample (id INTEGER PRIMARY KEY, value TEXT)")
        connection.executemany("INSERT INTO sample (value) VALUES (?)", [(f"value {n}",) for n in range(200)])
        connection.execute("PRAGMA user_version = 7")
        connection.commit()


def odd_service(root: Path) -> None:
    """What careless programs lose."""
    models = root / "models"
    write(models / "caf\u00e9 \U0001f40d.bin", b"not ASCII")
    write(models / os.fsdecode(b"not utf-8 \xff\xfe"), b"not UTF-8")
    write(models / 'line\nfeed and \\ and "quotes"', b"odd")
    write(models / ("d" * 120) / ("n" * 200), b"a long name")
    write(models / "  spaces  ", b"spaces", 0o4710)
    (models / "nothing in it").mkdir()
    (models / "nothing in it").chmod(0o1777)
    (models / "link").symlink_to("weights")
    (models / "link out").symlink_to("/nowhere/" + "x" * 150)
    write(models / "one name", b"shared")
    os.link(models / "one name", models / "other name")
    write(models / "attributes", b"attributes")
    os.setxattr(models / "attributes", "user.note", bytes(range(256)))
    os.setxattr(models / "attributes", "user.empty", b"")
    with (models / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(3_000_000)
        file.write(b"end")
    write(models / "large", lines(360_000))


def first_change(root: Path) -> None:
    content = (root / "models/large").read_bytes()
    write(root / "models/large", content[:180_000] + b"inserted" + content[180_000:])
    (root / "models/becomes a directory").unlink()
    write(root / "models/becomes a directory/inside", b"1")
    shutil.rmtree(root / "models/becomes a file")
    write(root / "models/becomes a file", b"2")
    (root / "models/goes").unlink()
    shutil.rmtree(root / "models/goes too")
    write(root / "models/comes", b"3")
    with closing(sqlite3.connect(root / "service.db")) as connection:
        connection.execute("UPDATE sample SET value = 'changed' WHERE id = 5")
        connection.commit()


def second_change(root: Path) -> None:
    content = (root / "models/large").read_bytes()
    write(root / "models/large", content[:50_000] + content[60_000:] + b"appended")
    write(root / "models/comes", b"3 and more")
    write(root / "models/goes", b"and comes again")


def chain_service(root: Path) -> None:
    plain_service(root)
    write(root / "models/large", lines(360_000))
    write(root / "models/becomes a directory", b"1")
    write(root / "models/becomes a file/inside/deeper", b"2")
    write(root / "models/goes", b"3")
    write(root / "models/goes too/inside", b"4")


# What it looks like


def listing(root: Path) -> dict[str, Any]:
    """All that a restore brings back, by path; what is not UTF-8 is escaped as Python does it."""
    found = {}
    first: dict[int, str] = {}
    for path in sorted(root.rglob("*"), key=os.fsencode):
        name = str(path.relative_to(root))
        if name.split("/")[0] == "backups":
            continue
        found[name] = told(path)
        if stat.S_ISREG(path.lstat().st_mode):
            same = first.setdefault(path.lstat().st_ino, name)
            if same != name:
                found[name]["same_as"] = same
    return found


def told(path: Path) -> dict[str, Any]:
    status = path.lstat()
    entry: dict[str, Any] = {"mode": f"{stat.S_IMODE(status.st_mode):04o}", "mtime_ns": status.st_mtime_ns}
    if stat.S_ISLNK(status.st_mode):
        return {"kind": "symlink", "target": os.readlink(path)} | entry
    if stat.S_ISDIR(status.st_mode):
        return {"kind": "directory"} | entry
    if path.suffix == ".db":
        return {"kind": "database", "sql_sha256": hashlib.sha256("\n".join(dump(path)).encode()).hexdigest()}
    content = path.read_bytes()
    entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if status.st_blocks * 512 < len(content) // 2:
        entry["sparse"] = True
    if names := [name for name in os.listxattr(path) if name.startswith("user.")]:
        entry["xattrs"] = {name: os.getxattr(path, name).hex() for name in sorted(names)}
    return {"kind": "file"} | entry


def dump(database: Path) -> Iterator[str]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        yield f"PRAGMA user_version = {connection.execute('PRAGMA user_version').fetchone()[0]}"
        yield from connection.iterdump()


# The backups


class Case:
    """One repository of golden backups in the making."""

    def __init__(self, name: str, top: Path, clock: Clock, **environ: str) -> None:
        self.place = HERE / name
        shutil.rmtree(self.place, ignore_errors=True)
        self.root = top / name
        self.root.mkdir()
        self._clock = clock
        self._environ = {
            "XDG_STATE_HOME": str(top / "state"),
            "HOME": str(top),
            "BACKUP_DIR": str(self.root / "backups"),
            "BACKUP_INCLUDE_LOGS": "true",
            "BACKUP_ENCRYPT": "true" if environ else "false",
        } | environ
        self.installation = self.load()

    def load(self) -> Installation:
        return Installation.load(self.root, self._environ, clock=self._clock)

    def back_up(self, **how: Any) -> BackupMetadata:
        settle(self.root)
        components = how.pop("components", ["database", "models", "config", "logs"])
        if how.get("incremental") or how.get("since"):
            components = None
        metadata = backup(self.load(), ignore, components=components, **how).metadata
        self._clock.forward()
        held = listing(self.root)
        if components == ["models"]:
            held = {name: entry for name, entry in held.items() if name.split("/")[0] == "models"}
        (self.root / "backups" / f"{metadata.backup_id}.tree.json").write_text(
            json.dumps(held, indent=1, ensure_ascii=True) + "\n"
        )
        return metadata

    def keep(self) -> None:
        """Copies the backups and what they are to become into the golden folder."""
        shutil.copytree(self.root / "backups", self.place, ignore=shutil.ignore_patterns("temp"))


def make(top: Path) -> None:
    clock = Clock(datetime(2024, 1, 1, 2, tzinfo=UTC))
    plain = Case("plain", top, clock)
    plain_service(plain.root)
    plain.back_up()
    plain.back_up(components=["models"])
    plain.keep()

    odd = Case("odd", top, clock)
    odd_service(odd.root)
    odd.back_up(components=["models"])
    odd.keep()

    chain = Case("chain", top, clock)
    chain_service(chain.root)
    full = chain.back_up()
    first_change(chain.root)
    between = chain.back_up(since=full.backup_id)
    second_change(chain.root)
    chain.back_up(since=between.backup_id)
    chain.keep()

    encrypted = Case("encrypted", top, clock, ENCRYPTION_KEY=IDENTITY.reveal())
    chain_service(encrypted.root)
    encrypted.back_up()
    first_change(encrypted.root)
    encrypted.back_up(incremental=True)
    encrypted.keep()

    passphrase = Case("passphrase", top, clock, ENCRYPTION_KEY=IDENTITY.reveal())
    plain_service(passphrase.root)
    with_passphrase(passphrase, passphrase.back_up())
    passphrase.keep()

    (HERE / "keys.json").write_text(
        json.dumps(
            {
                "identity": IDENTITY.reveal(),
                "passphrase": PASSPHRASE,
                "signed_by": plain.installation.signing_key().public,
            },
            indent=1,
        )
        + "\n"
    )


def with_passphrase(case: Case, metadata: BackupMetadata) -> None:
    """Gives an archive to a passphrase, with the least work that the format allows: reading it takes no time."""
    storage = LocalStorage(case.root / "backups")
    name = case.installation.repository.archive_name(metadata)
    upload = storage.create(name, replace=True)
    with storage.open(name) as file:
        rewrap(file, upload, (IDENTITY,), KeyRing.parse(PASSPHRASE).recipients, work_factor=1, name=name)
    checksum = upload.publish()
    changed = replace(metadata, checksum=checksum, size_bytes=upload.size)
    case.installation.repository.save_metadata(changed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        make(Path(name))
