"""The public test vectors of the age format (C2SP CCTV), against our reader."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from holdfast.crypto import Identity, OpeningReader, PassphraseIdentity, X25519Identity
from holdfast.errors import CorruptBackup, HoldfastError, KeyWrong
from holdfast.streams import RandomAccess

PROJECT = Path(__file__).parents[2]
VECTORS = Path(os.environ.get("HOLDFAST_VECTORS") or PROJECT.parent / "shared" / "vectors") / "age"
NAMES = sorted(os.listdir(VECTORS)) if VECTORS.is_dir() else []
NOT_IMPLEMENTED = ("armor_", "hybrid")
PASSED_OVER = [name for name in NAMES if name.startswith(NOT_IMPLEMENTED)]

FAILURES: dict[str, tuple[type[HoldfastError], str]] = {
    "no match": (KeyWrong, "None of the configured keys"),
    "HMAC failure": (CorruptBackup, "MAC does not match"),
    "header failure": (CorruptBackup, "The header of .*(is malformed|asks for more work)"),
    "payload failure": (CorruptBackup, "The payload of"),
}

needs_vectors = pytest.mark.skipif(not NAMES, reason=f"no test vectors in {VECTORS}; set HOLDFAST_VECTORS")


def read_vector(name: str) -> tuple[list[tuple[str, str]], bytes]:
    head, _, body = (VECTORS / name).read_bytes().partition(b"\n\n")
    fields = [(key, value) for key, _, value in (line.partition(": ") for line in head.decode().split("\n"))]
    return fields, zlib.decompress(body) if ("compressed", "zlib") in fields else body


def chunks_before_failure(file: bytes, file_key: bytes) -> Iterator[bytes]:
    """What a reader that goes from front to back gives out, up to the last chunk or the first bad one."""
    start = file.index(b"\n", file.index(b"\n---") + 1) + 1
    nonce, payload = file[start : start + 16], file[start + 16 :]
    cipher = ChaCha20Poly1305(HKDF(SHA256(), 32, nonce, b"payload").derive(file_key))
    for number in range(len(payload) // 65552 + 1):
        chunk = payload[number * 65552 : (number + 1) * 65552]
        # Only a full chunk can be other than the last.
        for last in (b"\x00", b"\x01") if len(chunk) == 65552 else (b"\x01",):
            try:
                yield cipher.decrypt(number.to_bytes(11, "big") + last, chunk, None)
            except InvalidTag:
                continue
            if last == b"\x01":
                return
            break
        else:
            return


@needs_vectors
def test_every_vector_is_used_but_those_of_other_features() -> None:
    assert len(PASSED_OVER) == 51
    assert len(NAMES) - len(PASSED_OVER) == 92
    for name in PASSED_OVER:
        fields = read_vector(name)[0]
        assert ("armored", "yes") in fields or any("AGE-SECRET-KEY-PQ-" in value for _, value in fields)


@needs_vectors
@pytest.mark.parametrize("name", [name for name in NAMES if name not in PASSED_OVER])
def test_vector(name: str, source: Callable[[bytes], RandomAccess]) -> None:
    fields, file = read_vector(name)
    values = dict(fields)
    identities: list[Identity] = [
        *(X25519Identity.parse(value) for key, value in fields if key == "identity"),
        *(PassphraseIdentity(value) for key, value in fields if key == "passphrase"),
    ]
    released = b""
    failure: HoldfastError | None = None
    try:
        reader = OpeningReader(source(file), identities, name=name)
        for offset in range(0, reader.size, 65536):
            released += reader.read_at(offset, 65536)
        assert len(released) == reader.size
    except HoldfastError as error:
        failure = error

    if values["expect"] == "success":
        assert failure is None
        assert hashlib.sha256(released).hexdigest() == values["payload"]
        return
    kind, message = FAILURES[values["expect"]]
    assert isinstance(failure, kind)
    with pytest.raises(kind, match=message):
        raise failure
    if values["expect"] == "payload failure":
        # Our reader may give out less, since it looks at the end first, but nothing else.
        before = b"".join(chunks_before_failure(file, bytes.fromhex(values["file key"])))
        assert hashlib.sha256(before).hexdigest() == values["payload"]
        assert before.startswith(released)
    else:
        assert released == b""
