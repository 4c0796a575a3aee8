"""Some of a backup, as a backup of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.trees import Clock
from holdfast.errors import HostileBackup, RestoreError
from holdfast.installation import Installation
from holdfast.jobs._selection import Selection
from holdfast.model import BackupMetadata, Entry, SourceRecord, order_key
from holdfast.repository.base import Pieces, Tensors

MODELS = SourceRecord("models", "models", "files", roots=("files/models",))


class Listed:
    """A backup whose files hold their own first names. Implements `StoredBackup`."""

    metadata = BackupMetadata("full_20240101_000000", "", "", "full", 0, "", ("models",), "success")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = sorted(entries, key=lambda entry: order_key(entry.path))

    def sources(self) -> Sequence[SourceRecord]:
        return [MODELS]

    def entries(self, source: SourceRecord) -> Iterator[Entry]:
        yield from self._entries

    def read(self, entry: Entry) -> Pieces:
        assert entry in self._entries
        yield entry.path.encode()

    def tensors(self, entry: Entry) -> Tensors | None:
        return None


def file(path: str) -> Entry:
    return Entry(path, "file", len(path))


def nothing_is_there(record: SourceRecord, path: str) -> bool:
    return False


names = st.lists(st.sampled_from(["a", "b", "a b", "a.", "\udcff"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(names, max_size=20), st.integers(0, 30))
def test_it_holds_what_was_chosen_what_is_in_it_and_the_directories_above(
    paths: list[str], choice: int
) -> None:
    files = {f"files/models/{path}" for path in paths}
    files = {path for path in files if not any(other.startswith(f"{path}/") for other in files)}
    directories = {path.rpartition("/")[0] for path in files} | {"files/models"}
    for path in list(directories):
        while path != "files/models":
            path = path.rpartition("/")[0]
            directories.add(path)
    everything = sorted(files | directories, key=order_key)
    chosen = everything[choice % len(everything)]
    listed = Listed([Entry(path, "file" if path in files else "directory") for path in everything])
    selection = Selection(listed, {MODELS.key: [chosen]}, nothing_is_there)
    (record,) = selection.sources()
    found = [entry.path for entry in selection.entries(record)]
    assert found == [
        path
        for path in everything
        if f"{path}/".startswith(f"{chosen}/") or f"{chosen}/".startswith(f"{path}/")
    ]
    assert record.entries == len(found)
    assert selection.tops(record) == ["files/models"]


def test_further_names_come_with_the_content_of_a_file_that_was_not_chosen() -> None:
    first = "files/models/a/first"
    links = [Entry(f"files/models/b/{n:03}", "hardlink", target=first) for n in range(300)]
    links.append(Entry("files/models/b/\ud800\udcff", "hardlink", target=first))
    directories = [Entry(f"files/models{end}", "directory") for end in ("", "/a", "/b")]
    listed = Listed([*directories, file(first), *links, file("files/models/b/own")])
    selection = Selection(listed, {MODELS.key: ["files/models/b"]}, nothing_is_there)
    (record,) = selection.sources()
    read = {
        entry.path: (
            entry.kind,
            entry.target,
            b"".join(selection.read(entry)) if entry.kind == "file" else b"",
        )
        for entry in selection.entries(record)
        if entry.kind != "directory"
    }
    assert read["files/models/b/000"] == ("file", "", first.encode())
    assert read["files/models/b/299"] == ("hardlink", "files/models/b/000", b"")
    assert read["files/models/b/\ud800\udcff"][0] == "hardlink"
    assert read["files/models/b/own"] == ("file", "", b"files/models/b/own")
    assert (len(read), record.bytes) == (302, len(first) + len("files/models/b/own"))


@pytest.mark.parametrize("target", ["files/models/gone", "files/models", "files/models/z"])
def test_another_name_of_what_is_no_file_of_the_backup_is_refused(target: str) -> None:
    link = Entry("files/models/x", "hardlink", target=target)
    listed = Listed(
        [Entry("files/models", "directory"), link, Entry("files/models/z", "symlink", target="x")]
    )
    with pytest.raises(HostileBackup):
        Selection(listed, {MODELS.key: ["files/models/x"]}, nothing_is_there)


def test_no_chosen_path_replaces_what_is_holdfasts_own(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    environ = {"XDG_STATE_HOME": str(tmp_path / "models/state"), "BACKUP_DIR": "models/backups"}
    installation = Installation.load(tmp_path, environ, clock=Clock())
    for path in (
        "backups/full/x",
        ".holdfast-0123456789abcdef-0/kept",
        "d/.holdfast-x",
        "state/holdfast/services/y",
    ):
        with pytest.raises(RestoreError, match="own, and no restore replaces it"):
            installation.place(MODELS, f"files/models/{path}")
    assert installation.place(MODELS, "files/models/d/x") == tmp_path / "models/d/x"
