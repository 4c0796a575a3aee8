from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from holdfast.crypto import (
    KeyRing,
    PassphraseIdentity,
    PassphraseRecipient,
    X25519Identity,
    read_key_file,
    write_key_file,
)
from holdfast.errors import CredentialError, KeyMissing, KeyWrong

ONE, TWO, THREE = (X25519Identity(bytes([number]) * 32) for number in (1, 2, 3))
CREATED = datetime(2024, 1, 1, 2, 0, tzinfo=UTC)


def test_one_identity_encrypts_and_decrypts() -> None:
    for text in (ONE.reveal(), f"  {ONE.reveal()}\n", ONE.reveal().encode()):
        assert KeyRing.parse(text) == KeyRing((ONE.recipient,), (ONE,))


def test_of_several_identities_the_first_encrypts_and_all_decrypt() -> None:
    text = f"# created: today\n{ONE.reveal()}\r\n\n# an older key\n{TWO.reveal()}\n{ONE.reveal()}\n"
    assert KeyRing.parse(text) == KeyRing((ONE.recipient,), (ONE, TWO))


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\n", "\r\n# the safe\n", "\t"])
def test_recipients_alone_write_and_do_not_read(separator: str) -> None:
    ring = KeyRing.parse(f"{ONE.recipient}{separator}{TWO.recipient}")
    assert ring == KeyRing((ONE.recipient, TWO.recipient), ())
    assert ring.can_encrypt
    assert not ring.can_decrypt


def test_recipients_beside_identities_all_encrypt() -> None:
    ring = KeyRing.parse(f"{THREE.recipient}\n{ONE.reveal()}\n{TWO.reveal()}\n{THREE.recipient}\n")
    assert ring == KeyRing((THREE.recipient, ONE.recipient), (ONE, TWO))
    assert ring.can_encrypt
    assert ring.can_decrypt


@pytest.mark.parametrize(
    "text",
    [
        "correct horse, battery staple",
        " spaces count ",
        "#1 password",
        "age",
        "AGE",
        "manage1st",
        "Age1999",
        "ünï",
    ],
)
def test_any_other_line_is_a_passphrase(text: str) -> None:
    for spelling in (text, f"{text}\n", f"{text}\r\n", text.encode()):
        ring = KeyRing.parse(spelling)
        assert ring == KeyRing((PassphraseRecipient(text),), (PassphraseIdentity(text),))
        assert ring.can_encrypt
        assert ring.can_decrypt


def test_a_passphrase_in_another_encoding_keeps_its_bytes() -> None:
    (recipient,) = KeyRing.parse(b"caf\xe9\n").recipients
    assert isinstance(recipient, PassphraseRecipient)
    assert recipient.encode() == b"caf\xe9"


@pytest.mark.parametrize("text", ["", "  ", "\n\n", b""])
def test_an_empty_key_is_a_missing_key(text: str | bytes) -> None:
    with pytest.raises(KeyMissing) as caught:
        KeyRing.parse(text)
    assert "ENCRYPTION_KEY" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        ONE.reveal()[:-1] + "X",
        ONE.reveal().lower(),
        f'"{ONE.reveal()}"',
        f"key={ONE.reveal()}",
        f"{TWO.reveal()}\n{ONE.reveal()[:-1]}X",
        f"{TWO.reveal()} and more",
        "AGE-SECRET-KEY-PQ-1HZLGZUPT4ETPKDEV8HSGFDCYZ4E522W0A7PU2LHT8EH9W6YLNC3SW78XKG",
        "AGE-PLUGIN-YUBIKEY-1HZLGZUP",
        str(ONE.recipient)[:-1],
        str(ONE.recipient).upper(),
        f"'{ONE.recipient}'",
        f"{ONE.recipient} hunter2",
        "age1yubikey1qfakefake",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFake me@host",
        "hunter2\nhunter3",
        f"# public key: {ONE.recipient}\n# nothing else\n",
    ],
)
def test_what_looks_like_a_key_and_is_none_is_never_a_passphrase(text: str) -> None:
    with pytest.raises(KeyWrong) as caught:
        KeyRing.parse(text)
    said = str(caught.value) + caught.value.hint
    for word in text.replace('"', " ").replace("'", " ").replace("=", " ").split():
        assert len(word) < 7 or word not in said


def test_the_error_names_the_malformed_word() -> None:
    with pytest.raises(KeyWrong, match=r"identity .* malformed: its checksum is wrong\. It is word 2"):
        KeyRing.parse(f"{TWO.reveal()}\n{ONE.reveal()[:-1]}X")


def test_a_key_ring_shows_no_secret() -> None:
    for ring in (KeyRing.parse(ONE.reveal()), KeyRing.parse("hunter2")):
        assert ONE.reveal() not in repr(ring) + str(ring)
        assert "hunter2" not in repr(ring) + str(ring)


def test_a_key_file_has_the_layout_of_age_keygen(tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    write_key_file(path, ONE, CREATED.astimezone(timezone(timedelta(hours=5))))
    assert path.read_text() == (
        f"# created: 2024-01-01T02:00:00Z\n# public key: {ONE.recipient}\n{ONE.reveal()}\n"
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path) == KeyRing((ONE.recipient,), (ONE,))


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    write_key_file(path, ONE, CREATED)
    with pytest.raises(CredentialError, match="not replaced"):
        write_key_file(path, TWO, CREATED)
    assert read_key_file(path).identities == (ONE,)
    assert os.listdir(tmp_path) == ["key.txt"]


def test_a_key_file_may_hold_a_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    path.touch(0o600)
    path.write_text("correct horse\n")
    assert read_key_file(path) == KeyRing.parse("correct horse")
