from __future__ import annotations

import pytest

from holdfast.crypto import PassphraseIdentity, PassphraseRecipient, X25519Identity, X25519Recipient, _bech32
from holdfast.errors import KeyMissing, KeyWrong

SECRET = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
PUBLIC = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"


def test_the_published_identity_has_the_published_recipient() -> None:
    identity = X25519Identity.parse(SECRET)
    assert str(identity.recipient) == PUBLIC
    assert identity.reveal() == SECRET
    assert X25519Recipient.parse(PUBLIC) == identity.recipient


def test_each_generated_identity_is_new() -> None:
    first, second = X25519Identity.generate(), X25519Identity.generate()
    assert first != second
    assert X25519Identity.parse(first.reveal()) == first


def test_no_key_shows_its_secret() -> None:
    identity = X25519Identity.parse(SECRET)
    for key in (identity, (identity,), {"key": identity}):
        for text in (str(key), repr(key), f"{key}"):
            assert SECRET not in text
            assert "GFPYYSJZ" not in text.upper()
            assert repr(identity.secret_key) not in text
    for passphrase in (PassphraseIdentity("hunter2"), PassphraseIdentity("hunter2").recipient):
        assert "hunter2" not in str(passphrase) + repr(passphrase)


@pytest.mark.parametrize(
    "text",
    [
        SECRET[:-1] + "Q",
        SECRET.lower(),
        SECRET[:-8],
        _bech32.encode("AGE-SECRET-KEY-PQ-", bytes(range(32))),
        _bech32.encode("AGE-SECRET-KEY-", bytes(range(31))),
        PUBLIC,
        "",
    ],
)
def test_a_malformed_identity_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(KeyWrong, match=r"identity \(AGE-SECRET-KEY-1…\) is malformed") as caught:
        X25519Identity.parse(text)
    said = str(caught.value) + caught.value.hint
    assert not text or text not in said
    assert "GFPYYSJZ" not in said.upper()


@pytest.mark.parametrize(
    "text", [PUBLIC[:-1] + "q", PUBLIC.upper(), _bech32.encode("age1pq", bytes(32)), SECRET]
)
def test_a_malformed_recipient_is_refused(text: str) -> None:
    with pytest.raises(KeyWrong, match=r"recipient \(age1…\) is malformed"):
        X25519Recipient.parse(text)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_a_recipient_that_protects_nothing_is_refused(point: bytes) -> None:
    with pytest.raises(KeyWrong, match="protect nothing"):
        X25519Recipient.parse(_bech32.encode("age", point))


def test_a_passphrase_keeps_the_bytes_that_the_environment_gave() -> None:
    latin = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert PassphraseRecipient(latin).encode() == b"caf\xe9"
    assert PassphraseRecipient("café").encode() == b"caf\xc3\xa9"


def test_an_empty_passphrase_is_no_key() -> None:
    with pytest.raises(KeyMissing, match="empty"):
        PassphraseRecipient("")


def test_a_passphrase_that_has_no_bytes_is_refused_and_not_repeated() -> None:
    with pytest.raises(KeyWrong) as caught:
        PassphraseIdentity("hunter2\ud800")
    assert "hunter2" not in str(caught.value) + caught.value.hint
