"""Archives that lie: each is refused in a sentence, and nothing that lives is touched.

The archives are forged with a key that is trusted here, so that nothing is wrong with them but what a test is about.
`test_bad_provenance` has archives that are foreign, stolen or unreadable, `test_bad_surroundings` what can be wrong
around them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge import Forge, honest, member, told, xattr
from holdfast.crypto import X25519Identity
from holdfast.errors import CorruptBackup, HostileBackup, RestoreError
from installed import Service, refused, untouched

FORGED = "full_20240101_050000"
LATER = "incr_20240101_060000"

Lie = Callable[[Forge], object]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service.make(tmp_path)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """One service for all that is refused, since that changes nothing."""
    return Service.make(tmp_path_factory.mktemp("standing"))


def save(service: Service, forge: Forge, **how: Any) -> Path:
    return forge.save(service.backups, service.installation().sign, **how)


def test_an_honest_forgery_restores(service: Service) -> None:
    """Were it not so, the refusals below would prove nothing."""
    second_source()(forge := honest(FORGED))
    save(service, forge)
    service.verify(FORGED)
    service.restore(FORGED)
    assert (service.root / "models/a.bin").read_bytes() == b"restored"
    assert (service.root / ".env").read_bytes() == b"content"
    service.restore(FORGED, target=service.root.parent / "elsewhere")
    assert (service.root.parent / "elsewhere/models/d/x").read_bytes() == bytes(range(256)) * 8


def test_an_honest_forged_chain_restores(service: Service) -> None:
    full = honest(FORGED)
    save(service, full)
    digest = hashlib.sha256(full.manifest()).hexdigest()
    later = Forge(LATER, parent=FORGED, parent_manifest=digest).source(whole=False)
    later.line({"path": "files/models/link", "kind": "deleted"})
    later.file("files/models/z", b"later").count(4, full.bytes)
    save(service, later)
    service.verify(LATER)
    service.restore(LATER)
    assert sorted(os.listdir(service.root / "models")) == ["a.bin", "d", "z"]


def at(path: Any, kind: str = "file", **says: Any) -> Lie:
    """One more entry."""
    return lambda forge: forge.entry("files/models/z", kind, **{"path": path, **says})


def entry(**says: Any) -> Lie:
    """One more file, of which the line says something else than is so."""
    return at("files/models/z", data=b"content", **says)


def lines(*more: dict[str, Any] | bytes) -> Lie:
    return lambda forge: [forge.line(line) for line in more]


def in_parts(size: int, *parts: dict[str, Any], **says: Any) -> Lie:
    """One more file, said to be made of parts."""

    def lie(forge: Forge) -> None:
        forge.entry("files/models/z", "file", data=bytes(size), offset=None, parts=len(parts), **says)
        for part in parts:
            forge.line(part)

    return lie


def second_source(**says: Any) -> Lie:
    def lie(forge: Forge) -> None:
        forge.holds("models", "config").source(
            **{"component": "config", "name": "config", "roots": ["files/.env"], **says}
        )
        forge.file("files/.env")

    return lie


CHUNK = [100, "0" * 64]

# What leads outside of a target, or into what others own: no honest program writes it.
LEADING_OUT: dict[str, Lie] = {
    "an absolute path": at("/etc/passwd"),
    "a path without an area": at("etc/passwd"),
    "an unknown area": at("home/models/z"),
    "an area alone": at("files"),
    "an empty path": at(""),
    "two dots": at("files/models/../../../etc/passwd"),
    "two dots at the end": at("files/models/.."),
    "a dot": at("files/models/./z"),
    "an empty component": at("files/models//z"),
    "a slash at the end": at("files/models/z/"),
    "a NUL": at("files/models/z\0"),
    "a number": at(5),
    "a list": at(["files/models/z"]),
    "an absurdly long path": at("files/models/" + "z" * 70_000),
    "beside its roots": at("files/other"),
    "beside its roots, by its first letters": at("files/models2"),
    "in another area than its roots": at("absolute/etc/cron.d/z"),
    "beneath a link": at("files/models/link/z"),
    "beneath a file": lambda forge: forge.file("files/models/z").file("files/models/z/y"),
    "beneath a hard link": lambda forge: forge.entry(
        "files/models/z", "hardlink", target="files/models/a.bin"
    ).file("files/models/z/y"),
    "beneath nothing": at("files/models/nothing/z"),
    "twice": lambda forge: forge.file("files/models/z").file("files/models/z"),
    "out of order": lambda forge: forge.file("files/models/z").file("files/models/y"),
    "a hard link out by an absolute path": at("files/models/z", "hardlink", target="/etc/passwd"),
    "a hard link out by two dots": at("files/models/z", "hardlink", target="files/../../etc/passwd"),
    "a hard link to what the backup lacks": at("files/models/z", "hardlink", target="files/models/nothing"),
    "a hard link to what is live": at("files/models/z", "hardlink", target="files/.env"),
    "a hard link through a link": at("files/models/z", "hardlink", target="files/models/link/a.bin"),
    "a hard link to a link": at("files/models/z", "hardlink", target="files/models/link"),
    "a hard link to a directory": at("files/models/z", "hardlink", target="files/models/d"),
    "a hard link to itself": at("files/models/z", "hardlink", target="files/models/z"),
    "a hard link to what comes later": lambda forge: forge.entry(
        "files/models/y", "hardlink", target="files/models/z"
    ).file("files/models/z"),
    "a hard link without target": at("files/models/z", "hardlink"),
    "roots outside": lambda forge: forge.sources[-1].update(roots=["/etc"]),
    "roots with two dots": lambda forge: forge.sources[-1].update(roots=["files/models", "files/../x"]),
}

LIES: dict[str, Lie] = {
    "no path": at(None),
    "a kind nobody knows": at("files/models/z", "device"),
    "a kind that is a number": lines({"path": "files/models/z", "kind": 7}),
    "a deletion in a full backup": lines({"path": "files/models/z", "kind": "deleted"}),
    "a link without target": at("files/models/z", "symlink", target=""),
    "a link with a NUL": lines({"path": "files/models/z", "kind": "symlink", "size": 0, "mode": "0777", "uid": 0,
                                "gid": 0, "mtime_ns": 0, "ctime_ns": 0, "inode": 1, "target": "a\0b"}),
    "a file with a target": entry(target="a.bin"),
    "a directory with a digest": at("files/models/z", "directory", sha256="0" * 64),
    "a larger size": entry(size=8),
    "a smaller size": entry(size=6),
    "an absurd size": entry(size=1 << 62),
    "a size beyond all": entry(size=10**400),
    "a negative size": entry(size=-7),
    "a broken size": entry(size=7.0),
    "a true size": entry(size=True),
    "a size in words": entry(size="7"),
    "another digest": entry(sha256="0" * 64),
    "a short digest": entry(sha256="0" * 63),
    "a digest in capitals": entry(sha256="A" * 64),
    "a digest that is no string": entry(sha256=[1]),
    "no digest": entry(sha256=None),
    "an offset beyond the end": entry(offset=1 << 40),
    "an offset at the end": entry(offset=1 << 59),
    "an offset a little off": entry(offset=513),
    "a negative offset": entry(offset=-1),
    "a broken offset": entry(offset=0.5),
    "a mode that is a number": entry(mode=420),
    "a mode that is not octal": entry(mode="0999"),
    "an owner in words": entry(uid="root"),
    "a negative owner": entry(gid=-1),
    "an absurd owner": entry(uid=1 << 40),
    "a time in words": entry(mtime_ns="now"),
    "an endless time": lines(b'{"path":"files/models/z","kind":"directory","size":0,"mode":"0755","uid":0,"gid":0,'
                             b'"mtime_ns":1e999,"ctime_ns":0,"inode":1}\n'),
    "a time that no file can have": at("files/models/z", "directory", mtime_ns=1 << 100),
    "attributes that are a list": entry(xattrs=["user.a"]),
    "attributes that are not base64": entry(xattrs={"user.a": "!"}),
    "attributes that are numbers": entry(xattrs={"user.a": 5}),
    "an attribute with a NUL": entry(xattrs={"user.\0a": xattr(b"1")}),
    "parts that are not there": entry(offset=None, parts=3),
    "a number of parts beyond all": entry(offset=None, parts=1 << 70),
    "fewer parts than it says": in_parts(200, {"data": 512, "chunks": [CHUNK]}),
    "more parts than it says": in_parts(100, {"data": 512, "chunks": [CHUNK]}, {"data": 512, "chunks": [CHUNK]}),
    "a copy from nothing": in_parts(100, {"copy": 0, "length": 100}),
    "a part beyond the end": in_parts(100, {"data": 1 << 50, "chunks": [CHUNK]}),
    "a negative part": in_parts(100, {"data": -100, "chunks": [CHUNK]}),
    "a part of a negative length": in_parts(100, {"data": 512, "chunks": [[200, "0" * 64], [-100, "0" * 64]]}),
    "a part that is a string": in_parts(100, {"data": "512", "chunks": [CHUNK]}),
    "a part without chunks": in_parts(100, {"data": 512}),
    "other content in its parts": in_parts(100, {"data": 512, "chunks": [CHUNK]}),
    "a source twice": lambda forge: forge.source("models", "models", roots=["files/models2"]),
    "a source that the end does not list": lambda forge: (forge.source("models", "more"), forge.sources.pop()),
    "a source that only the end lists": lambda forge: forge.sources.append(forge.sources[0] | {"name": "more"}),
    "a component that the header does not list": lambda forge: forge.source("config", "config", roots=["files/.env"]),
    "an unknown component": second_source(component="weights"),
    "a component that is a number": second_source(component=5),
    "a source with a hostile name": second_source(name="../../config"),
    "a source with an endless name": second_source(name="n" * 100),
    "a source that is not whole, on nothing": second_source(whole=False),
    "counts that are too low": lambda forge: forge.sources[-1].update(entries=1, bytes=1),
    "counts that are too high": lambda forge: forge.sources[-1].update(entries=100),
    "counts that are negative": lambda forge: forge.sources[-1].update(bytes=-1),
    "counts in words": lambda forge: forge.sources[-1].update(entries="five"),
    "a moment that is a number": lambda forge: forge.sources[-1].update(moment=5),
    "roots that are a string": lambda forge: forge.sources[-1].update(roots="files/models"),
    "a line that is not JSON": lines(b"{nonsense\n"),
    "a line that is not an object": lines(b"[1]\n"),
    "a line that is not text": lines(b"\xff\xfe\n"),
    "an empty line": lines(b"\n"),
    "a line nested beyond all": lines(b'{"path":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
    "a number of a million digits": lines(b'{"path":"files/models/z","kind":"file","size":' + b"9" * 10**6 + b"}\n"),
    "a version of the future": lambda forge: forge.header.update(holdfast=2),
    "no version": lambda forge: forge.header.pop("holdfast"),
    "an id that is none": lambda forge: forge.header.update(id="../../full_20240101_050000"),
    "the id of another backup": lambda forge: forge.header.update(id="full_20240101_040000"),
    "a type that is none": lambda forge: forge.header.update(type="differential"),
    "another type": lambda forge: forge.header.update(type="models"),
    "a parent of a full backup": lambda forge: forge.header.update(parent="full_20240101_020000"),
    "a parent that is no id": lambda forge: forge.header.update(parent="../x"),
    "another time than its metadata": lambda forge: forge.header.update(time="2030-01-01T00:00:00"),
    "a host that is a list": lambda forge: forge.header.update(host=["a"]),
    "tags that are a number": lambda forge: forge.header.update(tags=5),
    "components that are a string": lambda forge: forge.header.update(components="models"),
    "components that are unknown": lambda forge: forge.header.update(components=["weights"]),
    "no component": lambda forge: forge.header.update(components=[]),
    "no header": lambda forge: forge.header.clear(),
}  # fmt: skip


@pytest.mark.parametrize("lie", LEADING_OUT.values(), ids=LEADING_OUT.keys())
def test_an_archive_that_leads_outside_is_refused(standing: Service, lie: Lie) -> None:
    refuse_everywhere(standing, lie, HostileBackup)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_an_archive_that_lies_is_refused(standing: Service, lie: Lie) -> None:
    refuse_everywhere(standing, lie, CorruptBackup)


def refuse_everywhere(service: Service, lie: Lie, *errors: type[Exception]) -> None:
    """By a restore over what lives, by one to elsewhere, and by verifying."""
    forge = honest(FORGED)
    lie(forge)
    save(service, forge)
    with refused(service, *errors):
        service.restore(FORGED)
    with (
        untouched(service.root),
        tempfile.TemporaryDirectory(dir=service.root.parent) as target,
        pytest.raises(errors),
    ):
        service.restore(FORGED, target=Path(target))
    with refused(service, CorruptBackup):
        service.verify(FORGED)


@pytest.mark.parametrize(
    "root",
    [
        "absolute/etc",
        "absolute/root/.ssh",
        "files/backups",
        "files/backups/full",
        "files/holdfast.toml",
        "files/holdfast.key",
        "files/.holdfast-0123456789abcdef-0",
        "database/main.db",
    ],
)
def test_a_backup_is_not_believed_about_places(service: Service, root: str) -> None:
    (service.root / "holdfast.toml").write_text("")
    service.installation().signing_key()
    key = service.root / "holdfast.key"
    key.write_text(X25519Identity.generate().reveal())
    key.chmod(0o600)
    forge = Forge(FORGED).source(roots=[root]).entry(root).file(f"{root}/z")
    save(service, forge)
    with refused(service, RestoreError, HostileBackup):
        service.restore(FORGED)


def hidden_block(forge: Forge) -> None:
    """A member that the index does not list, before the manifest."""
    forge.write(member("files/models/hidden", b"boo"))
    forge.blocks.pop()


TAR_LIES: dict[str, Lie] = {
    "a device": lambda forge: forge.write(member("dev/sda", kind="4", devmajor=8)),
    "a fifo": lambda forge: forge.write(member("files/models/fifo", kind="6")),
    "a file that the manifest does not list": lambda forge: forge.write(member("files/models/z", b"boo")),
    "an absolute path": lambda forge: forge.write(member("/etc/cron.d/z", b"boo")),
    "two dots": lambda forge: forge.write(member("../../etc/cron.d/z", b"boo")),
    "another file where the manifest says one is": lambda forge: (
        forge.write(member("files/models/y", b"content")),
        forge.line(told("files/models/z", offset=forge.raw - 512)),
    ),
    "no file where the manifest says one is": lambda forge: forge.line(
        told("files/models/z", size=8, offset=1024, sha256=hashlib.sha256(b"restored").hexdigest())
    ),
    "a link to elsewhere": lambda forge: (
        forge.write(member("files/models/z", kind="symlink", target="/etc")),
        forge.line(told("files/models/z", kind="symlink", size=0, target="a.bin", sha256=None)),
    ),
    "set-uid, where the manifest says plain": lambda forge: (
        forge.write(member("files/models/z", b"content", mode=0o4755)),
        forge.line(told("files/models/z", offset=forge.raw - 512)),
    ),
    "another owner": lambda forge: (
        forge.write(member("files/models/z", b"content", uid=1000)),
        forge.line(told("files/models/z", offset=forge.raw - 512)),
    ),
    "a member that the index does not list": hidden_block,
    "something that is no tar": lambda forge: forge.write(b"boo" * 1024),
}


@pytest.mark.parametrize("lie", TAR_LIES.values(), ids=TAR_LIES.keys())
def test_a_tar_that_is_not_what_its_manifest_says_is_found(standing: Service, lie: Lie) -> None:
    """A restore reads what the manifest says and nothing else. Whoever uses tar relies on `verify --deep`."""
    lie(forge := honest(FORGED))
    save(standing, forge)
    with refused(standing, CorruptBackup):
        standing.verify(FORGED)


@pytest.mark.parametrize(
    "after",
    [
        member("files/models/z", b"boo"),
        member("/etc/passwd", b"boo"),
        bytes(1024) + member("files/models/z", b"boo"),
    ],
    ids=["a member", "an absolute path", "behind the end"],
)
def test_what_follows_the_manifest_is_found(standing: Service, after: bytes) -> None:
    save(standing, honest(FORGED), after=after)
    with refused(standing, CorruptBackup):
        standing.verify(FORGED)


def test_a_second_gzip_member_is_found(standing: Service) -> None:
    """`tar` reads on where `tar -i` is asked to; other programs do so by themselves."""
    path = save(standing, honest(FORGED))
    more = gzip.compress(member("files/models/z", b"boo") + bytes(1024))
    path.write_bytes(path.read_bytes() + more)
    tell(path, checksum=digest_of(path), size_bytes=path.stat().st_size)
    with refused(standing, CorruptBackup):
        standing.verify(FORGED)


def test_a_wrong_trailer_is_found(standing: Service) -> None:
    """`gzip -t` would refuse it, and so would tar."""
    path = save(standing, honest(FORGED))
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    tell(path, checksum=digest_of(path))
    with refused(standing, CorruptBackup):
        standing.verify(FORGED)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tell(archive: Path, **says: Any) -> None:
    """Changes what the metadata beside an archive says."""
    path = archive.parent / f"{archive.name.partition('.')[0]}.metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | says))


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [(10, 512)],
        [(1 << 40, 512)],
        [(1 << 70, 512)],
        [(100, 1 << 50)],
        [(100, 1 << 70)],
        [(0, 512)],
        [(-1, 512)],
        [(100, 0)],
        [(100, -1)],
        [(100.5, 512)],
        [("100", "512")],
        [(None, None)],
        [(100,)],
        [(100, 512, 5)],
    ],
    ids=str,
)
def test_an_index_that_lies_is_refused(standing: Service, blocks: list[Any]) -> None:
    forge = honest(FORGED)
    save(standing, forge, manifest=forge.manifest(blocks=blocks))
    with refused(standing, CorruptBackup):
        standing.restore(FORGED)
    with refused(standing, CorruptBackup):
        standing.verify(FORGED)


def test_blocks_that_hold_more_than_they_declare_are_refused(service: Service) -> None:
    forge = honest(FORGED)
    forge.write(bytes(1 << 20))
    blocks = [*forge.blocks[:-1], (forge.blocks[-1][0], 512)]
    forge.line(told("files/models/z", size=512, offset=forge.raw - (1 << 20),
                    sha256=hashlib.sha256(bytes(512)).hexdigest()))  # fmt: skip
    save(service, forge, manifest=forge.manifest(blocks=blocks))
    with refused(service, CorruptBackup):
        service.restore(FORGED)
