from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.crypto import _bech32

# From BIP-173 ("Test vectors"), and from the age specification.
VALID = [
    ("A12UEL5L", "A", b""),
    ("a12uel5l", "a", b""),
    (
        "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
        "abcdef",
        bytes.fromhex("00443214c74254b635cf84653a56d7c675be77df"),
    ),
    ("split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w", "split", None),
    ("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj", "age", None),
    (
        "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX",
        "AGE-SECRET-KEY-",
        b"\x42" * 32,
    ),
]


@pytest.mark.parametrize(("text", "prefix", "data"), VALID)
def test_published_strings_are_read_and_written_again(text: str, prefix: str, data: bytes | None) -> None:
    found, decoded = _bech32.decode(text)
    assert found == prefix
    assert data is None or decoded == data
    assert _bech32.encode(found, decoded) == text


@given(prefix=st.sampled_from(["age", "AGE-SECRET-KEY-", "a1b"]), data=st.binary(max_size=80))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(prefix: str, data: bytes) -> None:
    assert _bech32.decode(_bech32.encode(prefix, data)) == (prefix, data)


@given(data=st.binary(min_size=32, max_size=32), place=st.integers(0, 57), step=st.integers(1, 31))
@settings(max_examples=100, deadline=None)
def test_one_wrong_character_is_noticed(data: bytes, place: int, step: int) -> None:
    text = _bech32.encode("age", data)
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    place += len("age1")
    other = alphabet[(alphabet.index(text[place]) + step) % 32]
    with pytest.raises(ValueError, match="checksum"):
        _bech32.decode(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "too short"),
        ("age", "too short"),
        ("1qqqqqqqq", "too short"),
        ("age1qqqqq", "too short"),
        ("A12uEL5L", "mixes"),
        ("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwb", "character"),
        ("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwq", "checksum"),
        # U+212A, the Kelvin sign, whose lower case is an ordinary k.
        ("AGE1\u212a2UEL5L", "character"),
        # Good checksums over one, three and two numbers of five bits, which are no whole bytes.
        ("age1qdd35qf", "stray"),
        ("age1qqqyst3gn", "stray"),
        ("age1ppnjasjq", "stray"),
    ],
)
def test_what_is_not_bech32_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _bech32.decode(text)
