"""restore(backup(x)) == x, for any x: a full backup and incrementals on it, against a dict."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.ground import ignore_progress
from conformance.trees import Node, Tree, Trees, assert_holds, noise, store
from forks import scratch
from holdfast.model import Component, Entry
from repository.archive.archives import ArchiveGround

# Few names, so that edits meet; some that sort around the slash, and some that no careless program likes.
NAMES = st.sampled_from(
    ["a", "b", "b.txt", "b-", "b0", "é", "\udcff", " ", "a\nb", "-rf", "b.00001", "changed"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "files/models/" + "/".join(names))
# Large contents are cuts of one long stretch, so that they have chunks in common.
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.integers(0, 400_000), st.integers(250_000, 600_000), st.binary(max_size=5)),
)
STRETCH = noise(1_000_000, 1)
NUMBERS = st.sampled_from([0, 1, 1000, 2**21, 2**31])
ATTRIBUTES = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": NUMBERS,
        "gid": NUMBERS,
        "mtime_ns": st.integers(-(2**62), 2**62),
        "inode": st.integers(0, 2**64 - 1),
        "racy": st.booleans(),
        "token": st.sampled_from(["", "wal 1 2"]),
        "xattrs": st.none()
        | st.dictionaries(st.sampled_from(["user.a", "user.é"]), st.binary(max_size=9), min_size=1),
    }
)
TARGETS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
NODES = st.one_of(
    st.tuples(st.just("file"), CONTENTS, ATTRIBUTES, st.booleans()),
    st.tuples(st.just("directory"), st.none(), ATTRIBUTES, st.just(True)),
    st.tuples(st.just("symlink"), TARGETS, ATTRIBUTES, st.just(True)),
)
EDITS = st.lists(st.tuples(PATHS, NODES | st.none()), max_size=8)


def apply(nodes: Tree, edits: list[tuple[str, tuple[object, ...] | None]], stamp: int) -> Tree:
    """Puts each node where it is to be, with the directories above it; None takes away all that is there.

    Whatever is new has a ctime of its own, as a file system gives it.
    """
    after = dict(nodes)
    for path, made in edits:
        if made is not None and made[0] == "file" and not made[3]:
            path += ".dump"  # Its pieces have names of their own, which no file beside it may have.
        for other in list(after):
            if other == path or other.startswith(path + "/"):
                del after[other]
        if made is None:
            continue
        parts = path.split("/")
        for depth in range(2, len(parts)):
            above = "/".join(parts[:depth])
            if above not in after or after[above].entry.kind != "directory":
                after[above] = Node(Entry(above, "directory", mode=0o755, ctime_ns=stamp))
        after[path] = node(path, made, stamp)
    return after


def node(path: str, made: tuple[object, ...], stamp: int) -> Node:
    kind, what, attributes, sized = made
    assert isinstance(attributes, dict)
    fields = attributes | {"ctime_ns": stamp}
    if kind == "file":
        if isinstance(what, tuple):
            start, size, end = what
            what = STRETCH[start : start + size] + end
        assert isinstance(what, bytes)
        # A dump is as long as it turns out to be; only a database server gives one.
        return Node(Entry(path, "file", len(what) if sized else 0, **fields), what, bool(sized))
    if kind == "symlink":
        return Node(Entry(path, "symlink", target=str(what), **fields))
    return Node(Entry(path, "directory", **fields))


ROOT = {"files/models": Node(Entry("files/models", "directory", mode=0o755))}


def rounds(encrypt: bool, first: list[object], later: list[tuple[bool, list[object]]]) -> None:
    """A full backup, and an incremental for each of `later`: on the one before it, or on the full one."""
    with scratch() as top:
        ground = ArchiveGround(Path(tempfile.mkdtemp(dir=top)), encrypt=encrypt)
        key: tuple[Component, str] = ("models", "main")
        trees: Trees = {key: apply(ROOT, first, 1)}  # type: ignore[arg-type]
        made = [(store(ground.repository(), trees), trees)]
        for stamp, (on_the_last, edits) in enumerate(later, 2):
            ground.clock.forward()
            parent, _ = made[-1 if on_the_last else 0]
            trees = {key: apply(made[-1][1][key], edits, stamp)}  # type: ignore[arg-type]
            made.append((store(ground.repository(), trees, parent=parent), trees))
        for metadata, held in made:
            assert_holds(ground.repository(), metadata, held)
            ground.repository().verify(metadata, deep=True, progress=ignore_progress)
        assert ground.strays() == []


ROUNDS = given(
    encrypt=st.booleans(),
    first=EDITS,
    later=st.lists(st.tuples(st.booleans(), EDITS), min_size=3, max_size=3),
)


@settings(max_examples=25)
@ROUNDS
def test_what_was_backed_up_comes_back(
    encrypt: bool, first: list[object], later: list[tuple[bool, list[object]]]
) -> None:
    rounds(encrypt, first, later)


@pytest.mark.torture
@settings(max_examples=1000)
@ROUNDS
def test_what_was_backed_up_comes_back_every_time(
    encrypt: bool, first: list[object], later: list[tuple[bool, list[object]]]
) -> None:
    rounds(encrypt, first, later)
