"""Both ways against the ``age`` program: what it writes we read, and what we write it reads."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast.crypto import (
    Identity,
    KeyRing,
    PassphraseIdentity,
    X25519Identity,
    is_age_file,
    read_key_file,
    write_key_file,
)

AGE = shutil.which("age")
KEYGEN = shutil.which("age-keygen")
pytestmark = pytest.mark.skipif(not (AGE and KEYGEN), reason="the age program is not installed")

Seal = Callable[..., bytes]
Unseal = Callable[[bytes, Sequence[Identity]], bytes]

CONTENT = random.Random(1).randbytes(200_000)
SIZES = [0, 1, 65536, 131072, 200_000]


def run(*arguments: str | Path | None, data: bytes = b"") -> bytes:
    command = [str(argument) for argument in arguments]
    return subprocess.run(command, input=data, check=True, capture_output=True, timeout=60).stdout


def run_at_terminal(passphrase: str, *arguments: str | Path | None) -> None:
    driver = Path(__file__).with_name("age_at_terminal.py")
    run(sys.executable, driver, *arguments, data=passphrase.encode() + b"\n")


def age_identity(path: Path) -> X25519Identity:
    run(KEYGEN, "-o", path)
    (identity,) = read_key_file(path).identities
    assert isinstance(identity, X25519Identity)
    return identity


@pytest.mark.parametrize("size", SIZES)
def test_age_reads_what_we_write_to_its_recipient(tmp_path: Path, seal: Seal, size: int) -> None:
    identity = age_identity(tmp_path / "key.txt")
    sealed = seal(CONTENT[:size], X25519Identity.generate().recipient, identity.recipient)
    assert run(AGE, "-d", "-i", tmp_path / "key.txt", data=sealed) == CONTENT[:size]


@pytest.mark.parametrize("size", SIZES)
def test_we_read_what_age_writes_to_our_recipient(unseal: Unseal, size: int) -> None:
    identity, other = X25519Identity.generate(), X25519Identity.generate()
    recipients = ("-r", str(other.recipient), "-r", str(identity.recipient))
    sealed = run(AGE, *recipients, data=CONTENT[:size])
    assert is_age_file(sealed)
    assert unseal(sealed, [identity]) == CONTENT[:size]


def test_age_uses_a_key_file_that_we_write(tmp_path: Path, seal: Seal) -> None:
    identity, path = X25519Identity.generate(), tmp_path / "key.txt"
    write_key_file(path, identity, datetime(2024, 1, 1, 2, 0, tzinfo=UTC))
    assert run(KEYGEN, "-y", path).decode().strip() == str(identity.recipient)
    assert run(AGE, "-d", "-i", path, data=seal(CONTENT, identity.recipient)) == CONTENT


def test_a_key_file_of_age_keygen_has_the_layout_of_ours(tmp_path: Path) -> None:
    identity = age_identity(tmp_path / "theirs.txt")
    write_key_file(tmp_path / "ours.txt", identity, datetime(2024, 1, 1, 2, 0, tzinfo=UTC))
    theirs, ours = ((tmp_path / name).read_text().splitlines() for name in ("theirs.txt", "ours.txt"))
    assert theirs[1:] == ours[1:]
    assert theirs[0].startswith("# created: 20")
    assert KeyRing.parse("\n".join(theirs)) == KeyRing((identity.recipient,), (identity,))


def test_age_reads_what_we_write_with_a_passphrase(tmp_path: Path, seal: Seal) -> None:
    identity = PassphraseIdentity("correct horse ünï")
    (tmp_path / "sealed").write_bytes(seal(CONTENT, identity.recipient, work_factor=10))
    run_at_terminal(identity.passphrase, AGE, "-d", "-o", tmp_path / "plain", tmp_path / "sealed")
    assert (tmp_path / "plain").read_bytes() == CONTENT


def test_we_read_what_age_writes_with_a_passphrase(tmp_path: Path, unseal: Unseal) -> None:
    (tmp_path / "plain").write_bytes(CONTENT)
    run_at_terminal("correct horse ünï", AGE, "-p", "-o", tmp_path / "sealed", tmp_path / "plain")
    identity = PassphraseIdentity("correct horse ünï")
    assert unseal((tmp_path / "sealed").read_bytes(), [identity]) == CONTENT
