from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.errors import CorruptBackup, HostileBackup
from holdfast.model import ENTRY_KINDS, Entry, SourceRecord, order_key
from holdfast.repository import _manifest as manifest
from holdfast.repository._manifest import ChunkRef, Header, Part, Row
from holdfast.repository._rows import Lines, Rows

PARSERS = {
    "header": manifest.parse_header,
    "end": manifest.parse_end,
    "source": manifest.source_of,
    "blocks": manifest.parse_blocks,
    "entry": manifest.parse_entry,
    "part": manifest.parse_part,
}
GOOD = {
    "header": manifest.header_line(
        Header("incr_20240101_020000", "incremental", "2024-01-01T02:00:00", "h", "t", ("models",),
               "full_20240101_010000", "0" * 64, ("tag",))
    ),
    "end": manifest.end_line(
        2, 3, [SourceRecord("models", "models", "files", ("files/models",), {"rows": {"a": 1}}, 2, 3)]
    ),
    "source": manifest.source_line(("models", "models"), whole=True),
    "blocks": b"".join(manifest.blocks_lines([(100, 512), (5, 1)])),
    "entry": manifest.entry_line(
        Entry("files/models/a", "file", 7, 0o644, 1, 2, 3, 4, 5, "0" * 64, "", {"user.a": b"1"}, True, "wal", True),
        512, 1,
    ),
    "part": manifest.part_line(Part(False, 512, 7, [(7, "0" * 64)])),
}  # fmt: skip

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**59)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["files/../x", "/etc", "files/models", "\0", "0" * 64, "\ud800", 10**400, -1, 1e999, 2**64]
    )
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def refuse_or_take(name: str, line: bytes) -> None:
    """Whatever it is, it is taken, or refused in our own words."""
    with suppress(CorruptBackup):
        PARSERS[name](line)


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(PARSERS)), line=st.binary(max_size=60))
def test_noise_is_refused(name: str, line: bytes) -> None:
    refuse_or_take(name, line)
    start = GOOD[name][: GOOD[name].index(b":") + 1]
    refuse_or_take(name, start + line)


@settings(max_examples=500)
@given(name=st.sampled_from(sorted(PARSERS)), data=st.data())
def test_a_line_with_any_value_in_any_place_is_refused_or_taken(name: str, data: st.DataObject) -> None:
    line = json.loads(GOOD[name])
    place: Any = line
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[key] = data.draw(JSON)
    else:
        del place[key]
    refuse_or_take(name, json.dumps(line, separators=(",", ":")).encode() + b"\n")


@pytest.mark.parametrize("name", sorted(PARSERS))
@pytest.mark.parametrize(
    "garbage",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b"-",
        b"1e999999",
        b"NaN",
        b'"' * 99,
        b"\\u0000",
        b"\xff\xfe",
    ],
    ids=lambda garbage: garbage[:8].decode("latin-1"),
)
def test_garbage_is_refused(name: str, garbage: bytes) -> None:
    start = GOOD[name][: GOOD[name].index(b":") + 1]
    for line in (start + garbage + b"}\n", start + garbage + b"\n", garbage + b"\n"):
        if name in ("source", "blocks") and not line.startswith(start):
            assert PARSERS[name](line) is None
            continue
        with pytest.raises(CorruptBackup):
            PARSERS[name](line)


HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NAME = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=300
).filter(lambda name: name not in (".", "..")) | st.binary(min_size=1, max_size=20).filter(
    lambda name: not {0, 47} & set(name) and name not in (b".", b"..")
).map(lambda name: name.decode("utf-8", "surrogateescape"))
PATH = st.tuples(
    st.sampled_from(["files", "absolute", "database"]), st.lists(NAME, min_size=1, max_size=4)
).map(lambda parts: "/".join([parts[0], *parts[1]]))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from([kind for kind in ENTRY_KINDS if kind != "deleted"]))
    target = {"symlink": TEXT.filter(bool), "hardlink": PATH}.get(kind, st.just(""))
    return Entry(
        path=draw(PATH),
        kind=kind,
        size=draw(st.integers(0, 2**60 - 1)) if kind == "file" else 0,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 2)),
        gid=draw(st.integers(0, 2**32 - 2)),
        mtime_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        ctime_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        inode=draw(st.integers(0, 2**64 - 1)),
        digest=draw(HEX) if kind == "file" else "",
        target=draw(target),
        xattrs=draw(st.none() | st.dictionaries(TEXT.filter(bool), st.binary(max_size=20), min_size=1)),
        sparse=draw(st.booleans()),
        token=draw(TEXT),
        racy=draw(st.booleans()),
    )


@settings(max_examples=150)
@given(entry=entries(), offset=st.none() | st.integers(0, 2**60 - 1), parts=st.integers(0, 2**60 - 1))
def test_an_entry_comes_back_from_its_line(entry: Entry, offset: int | None, parts: int) -> None:
    line = manifest.entry_line(entry, offset, parts)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert manifest.parse_entry(line) == (entry, offset, parts, line, None)


@given(
    st.lists(st.tuples(st.integers(1, 2**20), HEX), min_size=1, max_size=5),
    st.integers(0, 2**50),
    st.integers(1, 2**50),
)
def test_a_part_comes_back_from_its_line(chunks: list[tuple[int, str]], offset: int, length: int) -> None:
    data = Part(False, offset, sum(size for size, _ in chunks), chunks)
    assert manifest.parse_part(manifest.part_line(data)) == data
    copy = Part(True, offset, length, [])
    assert manifest.parse_part(manifest.part_line(copy)) == copy


@given(st.lists(st.tuples(st.integers(0, 2**50), st.integers(0, 2**50)), max_size=9000))
@settings(max_examples=5)
def test_blocks_come_back_from_their_lines(blocks: list[tuple[int, int]]) -> None:
    lines = list(manifest.blocks_lines(blocks))
    assert all(len(line) <= manifest.LINE_LIMIT for line in lines)
    assert [block for line in lines for block in manifest.parse_blocks(line) or ()] == blocks


def test_header_source_and_end_come_back_from_their_lines() -> None:
    header = manifest.parse_header(GOOD["header"])
    assert manifest.header_line(header) == GOOD["header"]
    assert manifest.source_of(GOOD["source"]) == (("models", "models"), True)
    record = SourceRecord("models", "models", "files", ("files/models",), {"rows": {"a": 1}}, 2, 3)
    assert manifest.parse_end(GOOD["end"]) == (2, 3, [record], None)
    assert manifest.source_of(GOOD["entry"]) is None
    assert manifest.parse_blocks(GOOD["entry"]) is None


@given(
    st.text(max_size=30) | PATH.map(lambda path: path.replace("a", "/")) | PATH.map(lambda path: path + "/..")
)
@example("files/a\n")
@example("files/..\n")
@example("files/.\n/x")
def test_a_path_that_is_taken_stays_in_its_area(path: str) -> None:
    line = json.dumps({"path": path, "kind": "deleted"}).encode()
    try:
        taken = manifest.parse_entry(line).entry.path
    except HostileBackup:
        return
    parts = taken.split("/")
    assert parts[0] in ("files", "absolute", "database")
    assert len(parts) > 1
    assert not {"", ".", ".."} & set(parts)
    assert "\0" not in taken


# Rows


def rows_of(*entries: Entry, parts: int = 0) -> list[str]:
    content = b"".join(manifest.entry_line(entry, None, parts) for entry in entries)
    rows = Rows(Lines(io.BytesIO(content)))
    found = []
    while rows.row is not None:
        found.append(rows.row.entry.path)
        rows.advance()
    return found


@settings(max_examples=100)
@given(st.lists(PATH, unique=True, min_size=1, max_size=8))
def test_rows_come_in_order_or_not_at_all(paths: list[str]) -> None:
    ordered = sorted(paths, key=order_key)
    assert rows_of(*(Entry(path, "directory") for path in ordered)) == ordered
    if paths != ordered:
        with pytest.raises(HostileBackup, match="out of order"):
            rows_of(*(Entry(path, "directory") for path in paths))


@pytest.mark.parametrize("kind", ["file", "symlink", "hardlink"])
def test_nothing_lies_beneath_what_is_no_directory(kind: Any) -> None:
    leaf = Entry(
        "files/a", kind, digest="0" * 64 if kind == "file" else "", target="files/z" if kind != "file" else ""
    )
    beside = Entry("files/a.txt", "directory")
    assert rows_of(leaf, beside) == ["files/a", "files/a.txt"]
    with pytest.raises(HostileBackup, match="beneath"):
        rows_of(leaf, Entry("files/a/b/c", "directory"))


def test_parts_are_read_or_passed_over() -> None:
    one = Entry("files/a", "file", 14, digest="0" * 64)
    lines = [manifest.entry_line(one, None, 2), GOOD["part"], GOOD["part"], GOOD["entry"], GOOD["part"]]
    rows = Rows(Lines(io.BytesIO(b"".join(lines))))
    assert list(rows.parts()) == [GOOD["part"]] * 2
    assert list(rows.parts()) == []
    rows.advance()
    assert rows.row is not None
    assert rows.row.entry.path == "files/models/a"
    passing = Rows(Lines(io.BytesIO(b"".join(lines))))
    passing.advance()
    assert passing.row == rows.row
    with pytest.raises(CorruptBackup, match="parts"):
        Rows(Lines(io.BytesIO(b"".join(lines[:2])))).advance()


def in_other_words(line: bytes) -> bytes:
    """The same JSON, in a form that nobody writes."""
    return line.replace(b"{", b"{ ", 1)


def taken(parse: Callable[[bytes], Any], line: bytes) -> object:
    """What is made of a line, or that it is refused."""
    try:
        found = parse(line)
    except CorruptBackup as error:
        return type(error)
    return found._replace(line=b"") if isinstance(found, Row) else found


PLAIN = Entry("files/m/a b.json", "file", 2500, 0o644, 0, 1000, 1_700_000_000_123_456_789, -5, 9, "c" * 64)


@settings(max_examples=400)
@given(
    entry=st.sampled_from([PLAIN, PLAIN._replace(racy=True), PLAIN._replace(path="files/..", size=0)]),
    parts=st.integers(0, 2**60 - 1),
    pack=st.none() | st.integers(0, 2**60 - 1),
    digest=st.sampled_from([manifest.CONTENT_DIGEST, manifest.CHUNKS_DIGEST]),
    at=st.floats(0, 1),
    put=st.sampled_from([b"", *(bytes([byte]) for byte in b'09-a"\\}\n\0\xff'), b"0" * 19, b"99", b"/../"]),
)
def test_plain_lines_mean_what_their_json_means(
    entry: Entry, parts: int, pack: int | None, digest: str, at: float, put: bytes
) -> None:
    line = manifest.entry_line(entry, None, parts, digest=digest, pack=pack)
    assert taken(manifest.parse_entry, line) == taken(manifest.parse_entry, in_other_words(line))
    place = int(at * len(line))
    for wrong in (line[:place] + put + line[place:], line[:place] + put + line[place + 1 :]):
        if wrong.startswith(b"{"):
            assert taken(manifest.parse_entry, wrong) == taken(manifest.parse_entry, in_other_words(wrong))


@settings(max_examples=300)
@given(
    chunks=st.lists(
        st.builds(ChunkRef, st.integers(0, 2**61) | st.integers(0, 9), HEX, st.integers(0, 2**61)), max_size=3
    ),
    at=st.floats(0, 1),
    put=st.sampled_from([b"", b"0", b"-", b"a", b'"', b"\n", b"]", b",", b"],[", b"99"]),
)
def test_a_line_of_chunks_means_what_its_json_means(chunks: list[ChunkRef], at: float, put: bytes) -> None:
    line = manifest.chunks_line(chunks)
    assert json.loads(line) == {"chunks": [list(chunk) for chunk in chunks]}
    place = int(at * len(line))
    for given_line in (line, line[:place] + put + line[place:], line[:place] + put + line[place + 1 :]):
        if given_line.startswith(b"{"):
            told = taken(manifest.parse_chunks, given_line)
            assert told == taken(manifest.parse_chunks, in_other_words(given_line))


def test_an_entry_may_name_the_pack_of_its_only_chunk() -> None:
    line = manifest.entry_line(PLAIN, digest=manifest.CHUNKS_DIGEST, pack=7)
    rows = Rows(Lines(io.BytesIO(line)))
    assert rows.row == (PLAIN, None, 0, line, 7)
    assert list(rows.parts()) == [manifest.chunks_line([ChunkRef(2500, "c" * 64, 7)])]
    assert list(rows.parts()) == []
    odd = PLAIN._replace(path="files/é")
    assert manifest.parse_entry(manifest.entry_line(odd, digest=manifest.CHUNKS_DIGEST, pack=7)).pack == 7


@pytest.mark.parametrize(
    "line",
    [
        manifest.entry_line(PLAIN, digest=manifest.CONTENT_DIGEST, pack=7),
        manifest.entry_line(PLAIN, parts=1, digest=manifest.CHUNKS_DIGEST, pack=7),
        manifest.entry_line(Entry("files/d", "directory"), pack=7),
        manifest.entry_line(PLAIN, digest=manifest.CHUNKS_DIGEST, pack=-1),
        manifest.entry_line(PLAIN, digest=manifest.CHUNKS_DIGEST, pack=2**60),
    ],
)
def test_a_pack_that_makes_no_sense_is_refused(line: bytes) -> None:
    with pytest.raises(CorruptBackup):
        manifest.parse_entry(line)


def test_a_line_that_is_too_long_is_not_read() -> None:
    file = io.BytesIO(b"x" * (20 << 20))
    with pytest.raises(CorruptBackup, match="long line"):
        Lines(file)
    assert file.tell() <= manifest.LINE_LIMIT + 1
