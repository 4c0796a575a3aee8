from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._seal import BLOCK, INDEX, TABLE, Sealer, header
from repository.dedup.sealed import flipped, make_keys

MAGIC = b"HFPACK01"
KEYS = make_keys()


@given(
    plaintext=st.binary(max_size=200),
    number=st.integers(0, 2**32 - 1),
    position=st.integers(0, 2**64 - 1),
    kind=st.sampled_from([BLOCK, TABLE, INDEX]),
)
def test_a_piece_is_sealed_as_the_format_says(
    plaintext: bytes, number: int, position: int, kind: bytes
) -> None:
    sealed = Sealer(KEYS, MAGIC, number).seal(kind, position, plaintext)

    head = MAGIC + bytes.fromhex(KEYS.run) + struct.pack("<I", number)
    nonce = struct.pack("<IQ", number, position)
    assert AESGCM(KEYS.data_key).decrypt(nonce, sealed, head + kind) == plaintext
    assert Sealer(KEYS, MAGIC, number).open(kind, position, sealed) == plaintext


def test_a_piece_opens_in_its_own_place_alone() -> None:
    sealed = Sealer(KEYS, MAGIC, 3).seal(BLOCK, 7, b"content")

    assert Sealer(KEYS, MAGIC, 3).open(BLOCK, 7, sealed) == b"content"
    assert Sealer(KEYS, MAGIC, 3).open(BLOCK, 8, sealed) is None
    assert Sealer(KEYS, MAGIC, 3).open(TABLE, 7, sealed) is None
    assert Sealer(KEYS, MAGIC, 4).open(BLOCK, 7, sealed) is None
    assert Sealer(KEYS, b"HFPACK02", 3).open(BLOCK, 7, sealed) is None
    assert Sealer(replace(KEYS, run="0" * 32), MAGIC, 3).open(BLOCK, 7, sealed) is None
    assert Sealer(make_keys(like=KEYS), MAGIC, 3).open(BLOCK, 7, sealed) is None


def test_a_damaged_or_cut_piece_does_not_open() -> None:
    sealer = Sealer(KEYS, MAGIC, 0)
    sealed = sealer.seal(BLOCK, 0, b"content")

    for bit in range(8 * len(sealed)):
        assert sealer.open(BLOCK, 0, flipped(sealed, bit)) is None
    for length in range(len(sealed)):
        assert sealer.open(BLOCK, 0, sealed[:length]) is None


def test_a_header_has_28_bytes() -> None:
    assert header(MAGIC, "00" * 15 + "ff", 258) == MAGIC + bytes(15) + b"\xff" + b"\x02\x01\0\0"


def test_ids_are_keyed_blake3() -> None:
    """From the test vectors of BLAKE3, keyed_hash, input of 1 byte."""
    key = b"whats the Elvish word for friend"
    expected = "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b"

    assert chunk_id(key, b"\0").hex() == expected


@pytest.mark.parametrize("data", [bytearray(b"x"), memoryview(b"x")])
def test_any_bytes_have_an_id(data: bytearray | memoryview) -> None:
    assert chunk_id(bytes(32), data) == chunk_id(bytes(32), b"x")
