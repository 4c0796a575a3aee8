"""Index objects: the tables of many packs of a run, sealed as one piece, and signed by the host that made the run.

They say nothing that the packs do not, and are made again from these when they are lost. But a host that cannot read
packs can read them, with the id key: so it learns what other hosts have stored, if it trusts who signed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import zstandard

from holdfast.crypto import verify
from holdfast.errors import CorruptBackup
from holdfast.model import Signature
from holdfast.repository.dedup._key_file import RunKeys
from holdfast.repository.dedup._names import index_path, is_run, object_name, parse_object_name
from holdfast.repository.dedup._seal import (
    HEADER_LENGTH,
    INDEX,
    INDEX_POSITION,
    TAG_LENGTH,
    IndexKeys,
    Sealer,
)
from holdfast.repository.dedup._table import LINE_LIMIT, PackTable, parse_columns, parse_head
from holdfast.storage.base import Storage
from holdfast.streams import RandomAccess

INDEX_MAGIC: Final = b"HFINDEX1"
MAX_SEALED_INDEX: Final = 128 << 20
MAX_INDEX: Final = 256 << 20
"""Bytes of an index object before compression."""

_WRITE = 8 << 20
_LEVEL = 3
_KEY = 32
_SIGNATURE = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")


def audience_digest(audience: str) -> str:
    """How index objects call the recipients: who holds the id key alone does not learn who they are."""
    return hashlib.sha256(audience.encode()).hexdigest()


class IndexWriter:
    """Writes a run's index objects, numbered from 0. For one thread."""

    def __init__(
        self,
        storage: Storage,
        keys: RunKeys,
        *,
        sign: Callable[[bytes], Signature],
        key_file: str,
        audience: str,
    ) -> None:
        """A run makes one of these and no second: see `_seal`. `sign`: with the key of this host. `key_file`: the
        SHA-256 of the run's. `audience`: the recipients, who can open that, as `_writer.audience` names them."""
        self.names: list[str] = []
        """The objects that are written."""
        self.size = 0
        """Bytes of them."""
        self._storage = storage
        self._keys = keys
        self._sign = sign
        head = {"repository": keys.repository, "key_file": key_file, "audience": audience_digest(audience)}
        self._head = json.dumps(head, separators=(",", ":")).encode() + b"\n"
        self._number = 0
        self._records: list[bytes] = []
        self._waiting = 0

    def add(self, table: PackTable) -> None:
        """Takes the table of a finished pack of this run. Writes an object once there is enough for one.

        Raises StorageError.
        """
        if parse_object_name(table.name)[0] != self._keys.run:
            raise ValueError(f"pack {table.name} is not of run {self._keys.run}")
        record = table.encode(pack=table.name, size=table.size, hash=table.hash)
        self._records.append(record)
        self._waiting += len(record)
        if self._waiting >= _WRITE:
            self.flush()

    def flush(self) -> None:
        """Makes what has been taken durable. Raises StorageError; another try takes the next number."""
        if not self._records:
            return
        number, self._number = self._number, self._number + 1
        name = object_name(self._keys.run, number)
        plain = b"".join([self._head, *self._records])
        upload = self._storage.create(index_path(name))
        try:
            upload.write(seal_index(self._keys, number, plain, self._sign))
            upload.publish()
        finally:
            upload.abort()
        self.names.append(name)
        self.size += upload.size
        self._records = []
        self._waiting = 0


def seal_index(keys: RunKeys, number: int, plain: bytes, sign: Callable[[bytes], Signature]) -> bytes:
    """The bytes of an index object. `sign`: with the key of its writer."""
    sealer = Sealer(IndexKeys.derive(keys.id_key, keys.run), INDEX_MAGIC, number)
    packed = zstandard.ZstdCompressor(_LEVEL).compress(plain)
    sealed = sealer.header + sealer.seal(INDEX, INDEX_POSITION, packed)
    signature = sign(_statement(sealed))
    return sealed + base64.b64decode(signature.key) + base64.b64decode(signature.value)


def _statement(sealed: bytes | memoryview) -> bytes:
    return f"holdfast index\n{hashlib.sha256(sealed).hexdigest()}\n".encode()


@dataclass(frozen=True, slots=True)
class SignedIndex:
    """What an index object says, and what believing it takes."""

    writer: str
    """The public signing key (base64) of whoever signed it. That it did is proved; who it is, is not."""
    repository: str
    key_file: str
    """The SHA-256 of the run's key file when the packs were written."""
    audience: str
    """Who can open that, as `audience_digest` names them."""
    tables: Iterator[PackTable]
    """To be taken once. Raises CorruptBackup, perhaps after some."""


def claimed_writer(source: RandomAccess) -> str:
    """The public signing key (base64) in an index object, read alone and believed in nothing: a cheap look at what
    others may have put there. Empty where there is no room for one."""
    start = source.size - _SIGNATURE - _KEY
    key = source.read_at(start, _KEY) if start >= 0 else b""
    return base64.b64encode(key).decode("ascii") if len(key) == _KEY else ""


def open_index(source: RandomAccess, name: str, id_key: bytes) -> SignedIndex | None:
    """Opens an index object. None for one that somebody has signed who names chunks with another id key.

    Takes the memory of the object as it lies there, and of one table. Raises CorruptBackup for a signature that is
    wrong as for any damage.
    """
    run, number = parse_object_name(name)
    what = f"index object {name}"
    if source.size > MAX_SEALED_INDEX:
        raise CorruptBackup(f"{what} has {source.size} bytes, more than one may have", hint=_HINT)
    data = memoryview(source.read_at(0, source.size))
    sealer = Sealer(IndexKeys.derive(id_key, run), INDEX_MAGIC, number)
    magic = bytes(data[: len(INDEX_MAGIC)])
    if magic[:-1] == INDEX_MAGIC[:-1] and INDEX_MAGIC[-1:] < magic[-1:] <= b"9":
        raise CorruptBackup(
            f"{what} says that it is of version {magic[-1:].decode()}, which a newer Holdfast wrote",
            hint="Update Holdfast: `holdfast --version` shows yours.",
        )
    if data[:HEADER_LENGTH] != sealer.header or len(data) < HEADER_LENGTH + TAG_LENGTH + _KEY + _SIGNATURE:
        raise CorruptBackup(f"{what} does not begin as one of that name does", hint=_HINT)
    end = len(data) - _KEY - _SIGNATURE
    writer, signature = (
        base64.b64encode(part).decode("ascii") for part in (data[end : end + _KEY], data[end + _KEY :])
    )
    if not verify(writer, signature, _statement(data[:end])):
        raise CorruptBackup(f"{what} is damaged: its signature does not fit it", hint=_HINT)
    packed = sealer.open(INDEX, INDEX_POSITION, data[HEADER_LENGTH:end])
    if packed is None:
        return None
    del data
    # It has what io.BufferedReader needs, and says so nowhere.
    raw = cast("io.RawIOBase", zstandard.ZstdDecompressor().stream_reader(packed))
    reader = io.BufferedReader(raw, 1 << 16)
    repository, key_file, audience = _read_head(reader, what)
    return SignedIndex(writer, repository, key_file, audience, _tables(reader, what, run))


def read_index(source: RandomAccess, name: str, keys: RunKeys) -> Iterator[PackTable]:
    """The tables in an index object, whoever has signed it. `keys`: those of the run that its name begins with.

    Takes the memory of the object as it lies there, and of one table.

    Raises CorruptBackup, perhaps after some tables.
    """
    if parse_object_name(name)[0] != keys.run:
        raise ValueError(f"index object {name} is not of run {keys.run}")
    found = open_index(source, name, keys.id_key)
    if found is None:
        raise CorruptBackup(f"index object {name} is sealed with a key that is not this run's", hint=_HINT)
    if found.repository != keys.repository:
        raise CorruptBackup(f"index object {name} is of repository {found.repository}", hint=_HINT)
    yield from found.tables


_HINT = "Restoring needs no index: the packs say the same. Put it back from a copy, or delete it."


def _read_head(reader: io.BufferedReader[io.RawIOBase], what: str) -> tuple[str, str, str]:
    """The first line: repository, key file, audience."""
    try:
        line = reader.readline(LINE_LIMIT + 1)
        if not line.endswith(b"\n"):
            raise ValueError
        record: Any = json.loads(line)
        repository, *digests = record["repository"], record["key_file"], record["audience"]
        if not is_run(repository) or not all(_DIGEST.fullmatch(digest) for digest in digests):
            raise ValueError
    except zstandard.ZstdError as error:
        raise CorruptBackup(f"{what} does not decompress: {error}", hint=_HINT) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptBackup(f"{what} does not say what it is an index of", hint=_HINT) from None
    return repository, digests[0], digests[1]


def _tables(reader: io.BufferedReader[io.RawIOBase], what: str, run: str) -> Iterator[PackTable]:
    left = MAX_INDEX
    try:
        while line := reader.readline(LINE_LIMIT + 1):
            head = parse_head(line, what)
            left -= len(line) + head.bytes
            if not line.endswith(b"\n") or not head.pack or left < 0:
                raise CorruptBackup(f"{what} has a table that does not begin as one must", hint=_HINT)
            if parse_object_name(head.pack)[0] != run:
                raise CorruptBackup(f"{what} speaks of a pack of another run, {head.pack}", hint=_HINT)
            yield parse_columns(head, reader.read(head.bytes), table_end=None)
    except zstandard.ZstdError as error:
        raise CorruptBackup(f"{what} does not decompress: {error}", hint=_HINT) from error
