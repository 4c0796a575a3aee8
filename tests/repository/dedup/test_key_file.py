from __future__ import annotations

import base64
import json
import subprocess
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.crypto import PassphraseIdentity, SealingWriter, X25519Identity
from holdfast.errors import CorruptBackup, KeyMissing, KeyWrong, StorageError
from holdfast.repository.dedup._key_file import (
    IDENTITY,
    RunKeys,
    read_identity,
    read_run_keys,
    rewrap_run_keys,
    write_identity,
    write_run_keys,
)
from holdfast.storage.local import LocalStorage
from repository.dedup.sealed import REPOSITORY, flipped, make_keys

OWNER = X25519Identity.generate()
OTHER = X25519Identity.generate()


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def read(storage: LocalStorage, run: str, identity: X25519Identity = OWNER) -> RunKeys:
    return read_run_keys(storage, run, [identity], repository=REPOSITORY)


def record_of(keys: RunKeys) -> dict[str, Any]:
    return {
        "run": keys.run,
        "repository": keys.repository,
        "data_key": base64.b64encode(keys.data_key).decode(),
        "id_key": base64.b64encode(keys.id_key).decode(),
        "writer": keys.writer,
        "started": "2026-11-23T02:00:00",
    }


def test_the_keys_of_a_run_come_back_to_every_recipient(storage: LocalStorage) -> None:
    keys = make_keys()

    write_run_keys(storage, keys, [OWNER.recipient, OTHER.recipient])

    assert read(storage, keys.run) == keys
    assert read(storage, keys.run, OTHER) == keys


def test_the_age_program_reads_a_key_file(storage: LocalStorage, tmp_path: Path) -> None:
    keys = make_keys()
    write_run_keys(storage, keys, [OWNER.recipient])
    identity = tmp_path / "identity"
    identity.write_text(OWNER.reveal())

    found = subprocess.run(
        ["age", "-d", "-i", identity, tmp_path / "keys" / f"{keys.run}.age"], check=True, capture_output=True
    )

    assert json.loads(found.stdout) == record_of(keys)


def test_without_encryption_the_key_file_is_in_the_clear(storage: LocalStorage, tmp_path: Path) -> None:
    keys = make_keys()

    write_run_keys(storage, keys, None)

    assert json.loads((tmp_path / "keys" / f"{keys.run}.json").read_text()) == record_of(keys)
    assert read_run_keys(storage, keys.run, [], repository=REPOSITORY) == keys


def test_no_recipient_is_not_the_same_as_no_encryption(storage: LocalStorage, tmp_path: Path) -> None:
    with pytest.raises(KeyMissing):
        write_run_keys(storage, make_keys(), [])

    assert not any((tmp_path / "keys").iterdir())


def test_a_key_file_is_never_replaced_by_another_run(storage: LocalStorage) -> None:
    keys = make_keys()
    write_run_keys(storage, keys, [OWNER.recipient])

    with pytest.raises(StorageError, match="already exists"):
        write_run_keys(storage, replace(keys, data_key=bytes(32)), [OWNER.recipient])

    assert read(storage, keys.run) == keys


def test_no_key_shows_in_repr() -> None:
    keys = make_keys()

    shown = repr(keys)

    assert keys.run in shown
    for secret in (keys.data_key, keys.id_key):
        assert repr(secret) not in shown
        assert secret.hex() not in shown
        assert base64.b64encode(secret).decode() not in shown


def test_every_run_has_a_data_key_of_its_own() -> None:
    first = make_keys()
    second = make_keys(like=first)

    assert second.id_key == first.id_key
    assert second.run != first.run
    assert second.data_key != first.data_key


def test_another_identity_does_not_open_it(storage: LocalStorage) -> None:
    keys = make_keys()
    write_run_keys(storage, keys, [OWNER.recipient])

    with pytest.raises(KeyWrong):
        read(storage, keys.run, OTHER)
    with pytest.raises(KeyMissing):
        read_run_keys(storage, keys.run, [], repository=REPOSITORY)


def test_a_missing_key_file_is_named(storage: LocalStorage) -> None:
    run = make_keys().run

    with pytest.raises(CorruptBackup, match=run):
        read(storage, run)


@pytest.mark.parametrize("run", ["", "../../etc/passwd", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n"])
def test_no_path_is_built_from_what_is_no_run(storage: LocalStorage, run: str) -> None:
    with pytest.raises(CorruptBackup, match="does not name a run"):
        read(storage, run)


def test_the_key_file_of_another_run_or_repository_is_refused(storage: LocalStorage, tmp_path: Path) -> None:
    keys = make_keys()
    write_run_keys(storage, keys, [OWNER.recipient])
    other = "f" * 32
    (tmp_path / "keys" / f"{keys.run}.age").rename(tmp_path / "keys" / f"{other}.age")

    with pytest.raises(CorruptBackup, match="another run"):
        read(storage, other)
    (tmp_path / "keys" / f"{other}.age").rename(tmp_path / "keys" / f"{keys.run}.age")
    with pytest.raises(CorruptBackup, match="belongs to repository") as caught:
        read_run_keys(storage, keys.run, [OWNER], repository="e" * 32)
    assert "mixed" in caught.value.hint


def test_every_damaged_byte_of_a_key_file_is_noticed(storage: LocalStorage, tmp_path: Path) -> None:
    keys = make_keys()
    write_run_keys(storage, keys, [OWNER.recipient])
    path = tmp_path / "keys" / f"{keys.run}.age"
    whole = path.read_bytes()

    for position in range(len(whole)):
        path.write_bytes(flipped(whole, 8 * position + position % 8))
        with pytest.raises((CorruptBackup, KeyWrong)):
            read(storage, keys.run)


def test_a_key_file_is_bounded(storage: LocalStorage) -> None:
    keys = make_keys()
    for name in (f"keys/{keys.run}.age", f"keys/{'f' * 32}.json"):
        upload = storage.create(name)
        if name.endswith("age"):
            with SealingWriter(upload, [OWNER.recipient]) as writer:
                writer.write(b" " * (1 << 20))
        else:
            upload.write(b" " * (1 << 20))
        upload.publish()

    for run in (keys.run, "f" * 32):
        with pytest.raises(CorruptBackup, match="too large"):
            read(storage, run)


KEYS = make_keys()
HOSTILE = st.one_of(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda field, value: json.dumps(record_of(KEYS) | {field: value}).encode(),
        st.sampled_from(sorted(record_of(KEYS))),
        st.none() | st.integers() | st.text(max_size=50) | st.lists(st.integers(), max_size=3),
    ),
    st.binary(max_size=60),
    st.just(b"[" * 60_000),
)


@given(text=HOSTILE)
def test_what_is_no_key_file_is_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("repository"))
    storage.put(f"keys/{KEYS.run}.json", text)

    try:
        found = read_run_keys(storage, KEYS.run, [], repository=REPOSITORY)
    except CorruptBackup:
        return
    assert (found.run, found.repository) == (KEYS.run, REPOSITORY)
    assert len(found.data_key) == len(found.id_key) == 32


def test_no_error_quotes_a_key(storage: LocalStorage) -> None:
    text = json.dumps(record_of(KEYS) | {"started": "yesterday"})
    storage.put(f"keys/{KEYS.run}.json", text.encode())

    with pytest.raises(CorruptBackup) as caught:
        read_run_keys(storage, KEYS.run, [], repository=REPOSITORY)
    assert base64.b64encode(KEYS.data_key).decode() not in "".join(traceback.format_exception(caught.value))


def test_a_key_file_is_rewrapped_for_others(storage: LocalStorage) -> None:
    keys = make_keys()
    write_run_keys(storage, keys, [OWNER.recipient])

    assert rewrap_run_keys(storage, keys.run, [OWNER], [OTHER.recipient])

    assert read(storage, keys.run, OTHER) == keys
    with pytest.raises(KeyWrong):
        read(storage, keys.run, OWNER)


def test_there_is_nothing_to_rewrap_in_the_clear(storage: LocalStorage) -> None:
    keys = make_keys()
    write_run_keys(storage, keys, None)

    assert not rewrap_run_keys(storage, keys.run, [OWNER], [OTHER.recipient])


def test_a_passphrase_opens_the_identity(storage: LocalStorage) -> None:
    passphrase = PassphraseIdentity("correct horse")
    with pytest.raises(KeyMissing, match="no passphrase opens"):
        read_identity(storage, [passphrase])

    write_identity(storage, OWNER, passphrase.recipient)

    assert read_identity(storage, [passphrase]) == OWNER
    with pytest.raises(KeyWrong):
        read_identity(storage, [PassphraseIdentity("incorrect horse")])
    with pytest.raises(StorageError, match="already exists"):
        write_identity(storage, OTHER, passphrase.recipient)


@pytest.mark.parametrize(
    "text",
    [b"", b"a passphrase", str(OWNER.recipient).encode(), b"\xff\xfe"],
    ids=["nothing", "passphrase", "recipient", "noise"],
)
def test_what_is_no_identity_is_not_taken_for_one(storage: LocalStorage, text: bytes) -> None:
    passphrase = PassphraseIdentity("correct horse")
    upload = storage.create(IDENTITY)
    with SealingWriter(upload, [passphrase.recipient], work_factor=4) as writer:
        writer.write(text)
    upload.publish()

    with pytest.raises(CorruptBackup, match="does not hold an identity"):
        read_identity(storage, [passphrase])
