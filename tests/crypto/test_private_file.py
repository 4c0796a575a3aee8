from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.crypto._private_file import read_private, write_private
from holdfast.errors import CredentialError, KeyMissing


def test_what_is_written_is_read_back_and_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    previous = os.umask(0)
    try:
        write_private(path, b"secret")
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_private(path) == b"secret"
    assert os.listdir(tmp_path) == ["key"]


def test_the_file_and_its_name_are_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", record)
    write_private(tmp_path / "key", b"secret")
    assert synced == [(tmp_path / "key").stat().st_ino, tmp_path.stat().st_ino]


def test_a_relative_path_is_relative_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_private("key", b"secret")
    assert read_private("key") == b"secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o644, 0o777])
def test_a_file_open_to_others_is_refused_and_the_remedy_named(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_private(path, b"secret")
    path.chmod(mode)
    with pytest.raises(CredentialError, match=f"mode 0{mode:o}") as caught:
        read_private(path)
    assert f"chmod 600 {path}" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_link_leads_to_the_file_whose_mode_counts(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    link = tmp_path / "link"
    link.symlink_to("key")
    assert read_private(link) == b"secret"
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(CredentialError, match="open to other users"):
        read_private(link)


@pytest.mark.parametrize("there", ["file", "dangling link"])
def test_what_exists_is_never_replaced(tmp_path: Path, there: str) -> None:
    path = tmp_path / "key"
    if there == "file":
        path.write_bytes(b"other")
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(CredentialError, match="not replaced"):
        write_private(path, b"secret")
    assert os.listdir(tmp_path) == ["key"]
    assert there != "file" or path.read_bytes() == b"other"


def test_no_file_is_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(KeyMissing, match="no key file"):
        read_private(tmp_path / "key")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    for name in ("fifo", "directory"):
        with pytest.raises(CredentialError, match=r"not a regular file|cannot be read"):
            read_private(tmp_path / name)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, b"")
    os.truncate(path, (1 << 20) + 1)
    with pytest.raises(CredentialError, match="too large"):
        read_private(path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="cannot be written: No such file"):
        write_private(tmp_path / "none" / "key", b"secret")
