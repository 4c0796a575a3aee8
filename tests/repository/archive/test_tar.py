from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup
from holdfast.model import Entry
from holdfast.repository.archive import _tar as tar
from holdfast.repository.archive._tarstream import TarStream

NAMES = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.binary(min_size=1, max_size=60)
    .filter(lambda name: not {0, 47} & set(name))
    .map(lambda name: name.decode("utf-8", "surrogateescape")),
    st.sampled_from(["n" * 99, "n" * 100, "n" * 101, "n" * 155, "n" * 200, "é" * 50, "x"]),
)
PATHS = st.lists(NAMES, min_size=1, max_size=6).map(lambda names: "/".join(["files", *names]))
ENTRIES = st.builds(
    Entry,
    path=PATHS,
    kind=st.sampled_from(["file", "directory", "symlink", "hardlink"]),
    size=st.sampled_from([0, 1, 511, 512, 8**11 - 1, 8**11, 2**50]) | st.integers(0, 2**59),
    mode=st.integers(0, 0o7777),
    uid=st.sampled_from([0, 2**21 - 1, 2**21, 2**32 - 2]),
    gid=st.sampled_from([0, 2**21 - 1, 2**21, 2**32 - 2]),
    mtime_ns=st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([0, -1, -(10**9), 8**11 * 10**9, 8**11 * 10**9 - 1]),
    target=PATHS,
    xattrs=st.none()
    | st.dictionaries(
        st.text("abcé.", min_size=1, max_size=20), st.binary(max_size=300), min_size=1, max_size=2
    ),
)


def of_kind(entry: Entry) -> Entry:
    """Without what its kind does not have."""
    linked = entry.kind in ("symlink", "hardlink")
    return entry._replace(
        size=entry.size if entry.kind == "file" else 0, target=entry.target if linked else ""
    )


@settings(max_examples=300)
@given(ENTRIES.map(of_kind))
@example(Entry("files/" + "d" * 148 + "/" + "n" * 100, "file"))
@example(Entry("files/" + "d" * 149 + "/" + "n" * 100, "file"))
@example(Entry("files/" + "d" * 150 + "/" + "n" * 100, "file"))
@example(Entry("files/" + "d/" * 124, "directory"))
@example(Entry("files/" + "n" * 94, "directory"))
@example(Entry("files/" + "n" * 93, "directory"))
@example(Entry("files/a", "symlink", target="t" * 100))
@example(Entry("files/a", "symlink", target="t" * 101))
def test_a_header_says_the_same_to_us_and_to_tarfile(entry: Entry) -> None:
    header = tar.header(entry)
    assert len(header) % tar.BLOCK == 0
    member = tar.parse(header)
    assert member is not None
    path = entry.path.rstrip("/")
    assert (member.path, member.kind, member.size, member.target) == (
        path,
        entry.kind,
        entry.size,
        entry.target,
    )
    assert member.length == len(header)
    info = tarfile.TarInfo.fromtarfile(opened(header))
    assert info.name == path
    assert info.linkname == entry.target
    assert info.size == entry.size
    assert (info.mode, info.uid, info.gid) == (entry.mode, entry.uid, entry.gid)
    assert info.mtime == entry.mtime_ns // 10**9
    assert kind_of(info) == entry.kind
    found = {
        name.removeprefix("SCHILY.xattr.").encode("utf-8", "surrogateescape"): value.encode(
            "utf-8", "surrogateescape"
        )
        for name, value in info.pax_headers.items()
        if name.startswith("SCHILY.xattr.")
    }
    assert found == {name.encode(): value for name, value in (entry.xattrs or {}).items()}


def opened(header: bytes) -> tarfile.TarFile:
    """A tar file that stands before a header. Nothing behind it is asked for."""
    archive = tarfile.TarFile(
        fileobj=io.BytesIO(tar.END), encoding="utf-8", errors="surrogateescape", ignore_zeros=False
    )
    archive.fileobj = io.BytesIO(header)
    archive.offset = 0
    return archive


def kind_of(info: tarfile.TarInfo) -> str:
    kinds = {
        "file": info.isreg(),
        "directory": info.isdir(),
        "symlink": info.issym(),
        "hardlink": info.islnk(),
    }
    return next(kind for kind, is_it in kinds.items() if is_it)


LISTED: list[dict[str, Any]] = [
    {"path": "files/plain"},
    {"path": "files/é\U0001f40d"},
    {"path": "files/" + "d" * 120 + "/" + "n" * 90},
    {"path": "files/" + "n" * 250},
    {"path": "files/not \udcff\udcfe utf-8"},
    {"path": "files/many ids", "uid": 2**21 + 1, "gid": 2**31 + 5},
    {"path": "files/long ago", "mtime_ns": -86_400 * 10**9},
    {"path": "files/just before", "mtime_ns": -1},
    {"path": "files/far away", "mtime_ns": 20_000_000_000 * 10**9},
    {"path": "files/setuid", "mode": 0o4755},
    {"path": "files/dir", "kind": "directory", "mode": 0o1777},
    {"path": "files/link", "kind": "symlink", "target": "ü" * 60, "mode": 0o777},
    {"path": "files/hard", "kind": "hardlink", "target": "files/plain"},
    {"path": "files/" + "h" * 120, "kind": "hardlink", "target": "files/" + "n" * 250},
]


def test_gnu_tar_lists_the_same(tmp_path: Path) -> None:
    if b"GNU" not in subprocess.run(["tar", "--version"], capture_output=True, check=True).stdout:
        pytest.skip("tar is not GNU tar")
    entries = [Entry(**{"kind": "file", "mode": 0o644, "size": 0, **fields}) for fields in LISTED]
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"".join(map(tar.header, entries)) + tar.END)
    command = [
        "tar",
        "-tvvf",
        archive,
        "--numeric-owner",
        "--full-time",
        "--utc",
        "--quoting-style=literal",
        "--verbatim-files-from",
    ]
    listed = subprocess.run(
        command, capture_output=True, check=True, env={"LC_ALL": "C", "PATH": os.environ["PATH"]}
    )
    lines = [line for line in listed.stdout.split(b"\n") if line]
    assert len(lines) == len(entries)
    for line, entry in zip(lines, entries, strict=True):
        mode, owner, size, day, time, rest = line.split(None, 5)
        seconds = entry.mtime_ns // 10**9
        assert owner == b"%d/%d" % (entry.uid, entry.gid)
        assert int(size) == entry.size
        when = subprocess.run(
            ["date", "-u", "-d", f"@{seconds}", "+%Y-%m-%d %H:%M:%S"], capture_output=True, check=True
        )
        assert day + b" " + time == when.stdout.strip()
        name = os.fsencode(entry.path) + (b"/" if entry.kind == "directory" else b"")
        arrow = {"symlink": b" -> ", "hardlink": b" link to "}.get(entry.kind, b"")
        assert rest == name + arrow + (os.fsencode(entry.target) if arrow else b"")
        assert mode[:1] == {"file": b"-", "directory": b"d", "symlink": b"l", "hardlink": b"h"}[entry.kind]


def test_gnu_tar_passes_over_a_member_of_nine_gigabytes(tmp_path: Path) -> None:
    """More than ustar's eleven octal digits can say."""
    size = 9 << 30
    archive = tmp_path / "a.tar"
    with archive.open("wb") as file:
        file.write(tar.header(Entry("files/large", "file", size, 0o644)))
        file.seek(size, os.SEEK_CUR)
        file.write(tar.header(Entry("files/after", "file", 0, 0o644)) + tar.END)
    listed = subprocess.run(["tar", "-tvf", archive], capture_output=True, text=True, check=True).stdout
    assert f" {size} " in listed
    assert "files/after" in listed


@settings(max_examples=300)
@given(st.binary(max_size=2000), st.integers(0, 1500))
def test_noise_is_refused_and_never_read_without_end(noise: bytes, at: int) -> None:
    """Alone, and over a header that was good."""
    good = (
        tar.header(Entry("files/" + "é" * 60, "file", 5, xattrs={"user.a": b"1"})) + b"hello" + tar.padding(5)
    )
    for data in (noise, good[:at] + noise + good[at + len(noise) :]):
        stream = TarStream(iter([data[start : start + 700] for start in range(0, len(data), 700)]))
        try:
            while stream.advance() is not None:
                pass
        except CorruptBackup:
            continue


def pax(*records: bytes, size: int | None = None) -> bytes:
    """A member with a pax header of these records, whatever they say."""
    body = b"".join(records)
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(body) if size is None else size
    return (
        info.tobuf(tarfile.USTAR_FORMAT)
        + body
        + tar.padding(len(body))
        + tar.header(Entry("files/a", "file"))
    )


@pytest.mark.parametrize(
    "header",
    [
        pax(b"15 size=twelve\n"),
        pax(b"11 size=-5\n"),
        pax(b"12 size=1_0\n"),
        pax("11 size=\u0663\n".encode()),
        pax(b"10009 size=" + b"9" * 9997 + b"\n"),
        pax(b"99 path=x\n"),
        pax(b"0 path=x\n"),
        pax(b"-9 path=x\n"),
        pax(b"path=x\n"),
        pax(b" path=x\n"),
        pax(b"9 path=x\n", size=2 << 20),
        pax(b"9 path=x\n", size=5000),
        pax(b"9 path=x\n")[:1024] + pax(b"9 path=x\n"),
        pax(b"9 path=x\n")[:1024] + bytes(512),
        tar.header(Entry("files/a", "file"))[:511],
        tar.header(Entry("files/a", "file")).replace(b"ustar", b"fusta"),
        tar.header(Entry("files/a", "file")).replace(b"0000000\0", b"1000000\0", 1),
        tarfile.TarInfo("a" * 200).tobuf(tarfile.GNU_FORMAT),
    ],
)
def test_a_header_that_nobody_writes_is_refused(header: bytes) -> None:
    with pytest.raises(CorruptBackup):
        tar.parse(header)
    with pytest.raises(CorruptBackup):
        TarStream(iter([header])).advance()
