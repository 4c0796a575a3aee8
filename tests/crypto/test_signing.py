from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast.crypto import SigningKey, X25519Identity, fingerprint, verify
from holdfast.errors import CredentialError, KeyMissing, KeyWrong, UntrustedSignature

# RFC 8032, section 7.1, test 2.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_signatures_are_those_of_rfc_8032() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET))
    assert base64.b64decode(key.public) == PUBLIC
    assert base64.b64decode(key.sign(b"\x72")) == SIGNATURE
    assert verify(key.public, key.sign(b"\x72"), b"\x72")


def test_another_statement_key_or_signature_does_not_verify() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"statement")
    assert verify(key.public, signature, b"statement")
    assert not verify(key.public, signature, b"Statement")
    assert not verify(other.public, signature, b"statement")
    assert not verify(key.public, other.sign(b"statement"), b"statement")


@pytest.mark.parametrize("text", ["", "A", "not base64!", "é", "AAAA", base64.b64encode(bytes(65)).decode()])
def test_malformed_text_does_not_verify(text: str) -> None:
    key = SigningKey.generate()
    assert not verify(text, key.sign(b"statement"), b"statement")
    assert not verify(key.public, text, b"statement")


def test_base64_has_one_spelling() -> None:
    key = SigningKey.generate()
    signature = key.sign(b"statement")
    for stray in ("\n", " ", "!"):
        assert not verify(key.public + stray, signature, b"statement")
        assert not verify(key.public, stray + signature, b"statement")
        with pytest.raises(UntrustedSignature):
            fingerprint(stray + key.public)


def test_a_saved_key_is_private_and_loads_again(tmp_path: Path) -> None:
    key, path = SigningKey.generate(), tmp_path / "signing.pem"
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).public == key.public
    with pytest.raises(CredentialError, match="not replaced"):
        SigningKey.generate().save(path)
    path.chmod(0o640)
    with pytest.raises(CredentialError, match="open to other users"):
        SigningKey.load(path)


def test_a_missing_key_is_told_from_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    with pytest.raises(KeyMissing):
        SigningKey.load(path)
    path.touch(0o600)
    for content in (b"", b"garbage", X25519Identity.generate().reveal().encode()):
        path.write_bytes(content)
        with pytest.raises(KeyWrong, match="does not hold an Ed25519 private key") as caught:
            SigningKey.load(path)
        assert not content or content.decode() not in str(caught.value)


def test_a_signing_key_shows_its_fingerprint_alone() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET))
    assert repr(key) == str(key) == f"SigningKey({fingerprint(key.public)})"


def test_a_fingerprint_is_short_and_belongs_to_one_key() -> None:
    first, second = SigningKey.generate().public, SigningKey.generate().public
    assert re.fullmatch(r"SHA256:([0-9A-F]{4}-){7}[0-9A-F]{4}", fingerprint(first))
    assert fingerprint(first) == fingerprint(first) != fingerprint(second)
    assert (
        fingerprint(base64.b64encode(bytes(32)).decode()) == "SHA256:6668-7AAD-F862-BD77-6C8F-C18B-8E9F-8E20"
    )


@pytest.mark.parametrize("text", ["", "AAAA", "é", "????"])
def test_what_is_no_public_key_has_no_fingerprint(text: str) -> None:
    with pytest.raises(UntrustedSignature, match="malformed"):
        fingerprint(text)
