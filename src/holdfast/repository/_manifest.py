"""The manifest: JSON lines, written and read as a stream. docs/archive-format.md describes it for other readers.

A list in the local state has the same lines, resolved: an incremental's list is what a full backup's manifest
would have been.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from json.encoder import encode_basestring_ascii as _quote
from typing import Any, NamedTuple

from holdfast.errors import CorruptBackup, HostileBackup, UsageError
from holdfast.model import (
    ENTRY_KINDS,
    BackupMetadata,
    BackupType,
    Component,
    Entry,
    SourceRecord,
    is_backup_id,
    parse_components,
)

VERSION = 1
NAME = "MANIFEST.jsonl"

LINE_LIMIT = 1 << 20
"""No line is longer: chunks and blocks are listed so many to a line that it cannot be."""
CHUNKS_PER_LINE = 1024
BLOCKS_PER_LINE = 4096

CONTENT_DIGEST = "sha256"
"""What the digest of an entry is called that is the SHA-256 of its content."""
CHUNKS_DIGEST = "chunks_blake3"
"""In the deduplicating format: BLAKE3 of the ids of its chunks."""

_PATH = re.compile(r"(?:files|absolute|database)(?:/(?!\.\.?(?:/|\Z))[^/\0]+)+")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PACK = re.compile(r"[0-9a-f]{32}-[0-9]{1,10}")
# Lines as `entry_line` and `chunks_line` write them for most files, with numbers that are surely within their limits:
# json.loads takes five times as long. Any other line, also one that means the same, is left to it.
_NUMBER = "(0|[1-9][0-9]{0,17})"
_OWNER = "(0|[1-9][0-9]{0,8})"
_TIME = "(-?(?:0|[1-9][0-9]{0,17}|[1-8][0-9]{18}))"
_PLAIN_FILE = re.compile(
    r'\{"path":"((?:files|absolute|database)(?:/(?!\.\.?[/"])[ !#-.0-\[\]-~]+)+)","kind":"file",'
    rf'"size":{_NUMBER},"mode":"([0-7]{{4}})","uid":{_OWNER},"gid":{_OWNER},'
    rf'"mtime_ns":{_TIME},"ctime_ns":{_TIME},"inode":{_NUMBER},'
    rf'"(?:{CONTENT_DIGEST}|({CHUNKS_DIGEST}))":"([0-9a-f]{{64}})"'
    rf'(?:,"offset":{_NUMBER})?(,"racy":true)?(?:,"parts":{_NUMBER}|,"pack":{_NUMBER})?\}}\n'
)
_PLAIN_LIMIT = 65536
"""Bytes of such a line."""
_CHUNK = rf'\[{_NUMBER},"([0-9a-f]{{64}})",{_NUMBER}\]'
_EACH_CHUNK = re.compile(_CHUNK)
_PLAIN_CHUNKS = re.compile(rf'\{{"chunks":\[{_CHUNK}(?:,{_CHUNK})*\]\}}\n')
PACKS_LIMIT = 1 << 20
"""Packs that a manifest lists, at most: some 64 TiB of what they hold."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SIZE_LIMIT = 1 << 60
_OWNER_LIMIT = (1 << 32) - 1
_TIME_LIMIT = 1 << 63

_SOURCE = b'{"source":'
_PART = (b'{"data":', b'{"copy":', b'{"chunks":')
_PACKS = b'{"packs":'
_ENTRY = b'{"path":'
_BLOCKS = b'{"blocks":'
_END = b'{"end":'

SourceKey = tuple[str, str]
"""Component and name."""


@dataclass(frozen=True, slots=True)
class Header:
    """The manifest's first line."""

    id: str
    type: BackupType
    time: str
    host: str
    tool: str
    components: tuple[Component, ...]
    parent: str | None = None
    parent_manifest: str | None = None
    """SHA-256 of the parent's manifest: a signature covers the whole chain."""
    tags: tuple[str, ...] = ()
    schedule_id: str | None = None
    original: str | None = None
    """See `BackupMetadata`."""

    @classmethod
    def of(cls, metadata: BackupMetadata, *, parent_manifest: str | None) -> Header:
        """The header that goes with a run's metadata."""
        return cls(
            id=metadata.backup_id,
            type=metadata.type,
            time=metadata.timestamp,
            host=metadata.host,
            tool=metadata.tool,
            components=metadata.components,
            parent=metadata.parent,
            parent_manifest=parent_manifest,
            tags=metadata.tags,
            schedule_id=metadata.schedule_id,
            original=metadata.original,
        )

    def check(self, metadata: BackupMetadata, end: End, name: str) -> None:
        """Raises HostileBackup for a manifest of another backup, CorruptBackup where the two contradict each other.
        `name` is what errors call the file."""
        if (metadata.backup_id, metadata.type, metadata.parent) != (self.id, self.type, self.parent):
            raise HostileBackup(
                f"{name} holds the backup {self.id}, not {metadata.backup_id}",
                hint="Somebody has renamed or replaced it. Find out who before you restore anything.",
            )
        as_written = Header.of(metadata, parent_manifest=self.parent_manifest)
        sums = (metadata.entries, metadata.source_bytes, metadata.coherent)
        if self != as_written or sums != (end.entries, end.bytes, end.coherent):
            raise CorruptBackup(f"{name}: its metadata and its manifest contradict each other")


class ChunkRef(NamedTuple):
    """A chunk of a file in the deduplicating format."""

    length: int
    id: str
    """Hexadecimal."""
    pack: int
    """Where its pack stands in the manifest's list."""


class PackRef(NamedTuple):
    """A pack that a backup needs."""

    name: str
    size: int
    hash: str
    """BLAKE3 of all before its trailer, hexadecimal. Empty for one that is not needed any more: its place in the list
    stays, so that the others keep theirs."""


class End(NamedTuple):
    """The last line."""

    entries: int
    bytes: int
    """Of content."""
    sources: list[SourceRecord]
    coherent: bool | None
    """See `BackupMetadata`."""


class Row(NamedTuple):
    """An entry's line."""

    entry: Entry
    offset: int | None
    """Where its content begins in the tar, when it is there in one stretch."""
    parts: int
    """How many part lines follow."""
    line: bytes
    pack: int | None = None
    """In the deduplicating format, where the content is one chunk: the place of its pack in the manifest's list."""


class Part(NamedTuple):
    """A stretch of a large file's content."""

    copy: bool
    """It is in the parent's version of the file, at `offset`; else in this archive's tar, at `offset`."""
    offset: int
    length: int
    chunks: list[tuple[int, str]]
    """Length and BLAKE3 of each chunk; empty for a copy."""


def header_line(header: Header) -> bytes:
    return _line({"holdfast": VERSION, **{key: value for key, value in asdict(header).items() if value}})


def source_line(key: SourceKey, *, whole: bool) -> bytes:
    """Begins the entries of a source. `whole`: what the parent has of it does not count."""
    return _line({"source": {"component": key[0], "name": key[1], "whole": whole}})


def entry_line(
    entry: Entry,
    offset: int | None = None,
    parts: int = 0,
    *,
    digest: str = CONTENT_DIGEST,
    pack: int | None = None,
) -> bytes:
    # Formatted by hand: json.dumps takes four times as long, and there is a line for every small file.
    text = (
        f'{{"path":{_quote(entry.path)},"kind":"{entry.kind}","size":{entry.size},"mode":"{entry.mode:04o}",'
        f'"uid":{entry.uid},"gid":{entry.gid},"mtime_ns":{entry.mtime_ns},"ctime_ns":{entry.ctime_ns},'
        f'"inode":{entry.inode}'
    )
    if entry.digest:
        text += f',"{digest}":"{entry.digest}"'
    if offset is not None:
        text += f',"offset":{offset}'
    if entry.target:
        text += f',"target":{_quote(entry.target)}'
    if entry.xattrs:
        encoded = {key: base64.b64encode(value).decode() for key, value in entry.xattrs.items()}
        text += f',"xattrs":{json.dumps(encoded, separators=(",", ":"))}'
    if entry.sparse:
        text += ',"sparse":true'
    if entry.token:
        text += f',"token":{_quote(entry.token)}'
    if entry.racy:
        text += ',"racy":true'
    if parts:
        text += f',"parts":{parts}'
    if pack is not None:
        text += f',"pack":{pack}'
    return (text + "}\n").encode()


def deleted_line(path: str) -> bytes:
    return f'{{"path":{_quote(path)},"kind":"deleted"}}\n'.encode()


def part_line(part: Part) -> bytes:
    if part.copy:
        return b'{"copy":%d,"length":%d}\n' % (part.offset, part.length)
    return _line({"data": part.offset, "chunks": part.chunks})


def chunks_line(chunks: Sequence[ChunkRef]) -> bytes:
    listed = ",".join([f'[{length},"{name}",{pack}]' for length, name, pack in chunks])
    return f'{{"chunks":[{listed}]}}\n'.encode()


def packs_lines(packs: Iterable[PackRef]) -> Iterator[bytes]:
    """The packs of a backup, `CHUNKS_PER_LINE` a line."""
    rest = iter(packs)
    while batch := list(islice(rest, CHUNKS_PER_LINE)):
        yield _line({"packs": batch})


def blocks_lines(blocks: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Compressed and raw length of every gzip block before the manifest's own."""
    batch: list[tuple[int, int]] = []
    for block in blocks:
        batch.append(block)
        if len(batch) == BLOCKS_PER_LINE:
            yield _line({"blocks": batch})
            batch = []
    if batch:
        yield _line({"blocks": batch})


def end_line(
    entries: int, size: int, sources: Iterable[SourceRecord], *, coherent: bool | None = None
) -> bytes:
    end = {"entries": entries, "bytes": size, "sources": [asdict(record) for record in sources]}
    return _line({"end": end if coherent is None else {**end, "coherent": coherent}})


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def parse_header(line: bytes) -> Header:
    """Raises CorruptBackup; also for a version that this program does not know."""
    data = _parse(line)
    version = data.pop("holdfast", None)
    if version != VERSION:
        raise CorruptBackup(
            f"the manifest has version {version!r}, and this program reads version {VERSION}",
            hint="Restore with a newer Holdfast, or with tar: `holdfast --version` shows yours.",
        )
    try:
        header = Header(
            id=str(data["id"]),
            type=data["type"],
            time=str(data["time"]),
            host=str(data["host"]),
            tool=str(data["tool"]),
            components=parse_components(data["components"]),
            parent=data.get("parent"),
            parent_manifest=data.get("parent_manifest"),
            tags=tuple(str(tag) for tag in data.get("tags", ())),
            schedule_id=None if data.get("schedule_id") is None else str(data["schedule_id"]),
            original=None if data.get("original") is None else _digest(data["original"]),
        )
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptBackup(f"the manifest's first line is not well-formed: {error}") from error
    if not is_backup_id(header.id) or not (header.parent is None or is_backup_id(str(header.parent))):
        raise HostileBackup("the manifest's ids are not backup ids")
    if (header.parent is None) != (header.type != "incremental"):
        raise CorruptBackup(
            f"{header.id}: type {header.type!r} and parent {header.parent!r} contradict each other"
        )
    return header


def parse_end(line: bytes) -> End:
    """Raises CorruptBackup."""
    try:
        end = _parse(line)["end"]
        records = [
            SourceRecord(
                component=parse_components([item["component"]])[0],
                name=_name(item["name"]),
                kind=str(item["kind"]),
                roots=tuple(_path(root) for root in item["roots"]),
                moment=dict(item["moment"]),
                entries=_count(item["entries"]),
                bytes=_count(item["bytes"]),
            )
            for item in end["sources"]
        ]
        coherent = end.get("coherent")
        if coherent is not None and not isinstance(coherent, bool):
            raise ValueError(f"coherent is {coherent!r:.80}")
        return End(_count(end["entries"]), _count(end["bytes"]), records, coherent)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptBackup(f"the manifest's last line is not well-formed: {error}") from error


def source_of(line: bytes) -> tuple[SourceKey, bool] | None:
    """The source that a line begins, and whether it stands whole; None for any other line."""
    if not line.startswith(_SOURCE):
        return None
    try:
        data = _parse(line)["source"]
        return (parse_components([data["component"]])[0], _name(data["name"])), bool(data["whole"])
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptBackup(
            f"the manifest begins a source in a way that is not well-formed: {error}"
        ) from error


def is_known(line: bytes) -> bool:
    """Whether a line is of a kind that may follow the first."""
    return line.startswith((_ENTRY, _SOURCE, _BLOCKS, _PACKS, _END, *_PART))


def is_entry(line: bytes) -> bool:
    """Whether a line is an entry's."""
    return line.startswith(_ENTRY)


def is_part(line: bytes) -> bool:
    """Whether a line tells of a part of the entry before it."""
    return line.startswith(_PART)


def is_end(line: bytes) -> bool:
    """Whether a line is the last."""
    return line.startswith(_END)


def parse_blocks(line: bytes) -> list[tuple[int, int]] | None:
    """The blocks that a line lists; None for any other line."""
    if not line.startswith(_BLOCKS):
        return None
    try:
        return [(_count(compressed), _count(raw)) for compressed, raw in _parse(line)["blocks"]]
    except (TypeError, ValueError) as error:
        raise CorruptBackup(f"the manifest lists blocks in a way that is not well-formed: {error}") from error


def parse_entry(line: bytes) -> Row:
    """Raises CorruptBackup, or HostileBackup for a path that could lead outside a target."""
    if len(line) < _PLAIN_LIMIT and (plain := _PLAIN_FILE.fullmatch(line.decode("latin-1"))):
        path, size, mode, uid, gid, mtime_ns, ctime_ns, inode, chunks, digest, *rest = plain.groups()
        if rest[3] is None or chunks:
            offset, racy, parts, pack = rest
            return Row(
                Entry(
                    path,
                    "file",
                    int(size),
                    int(mode, 8),
                    int(uid),
                    int(gid),
                    int(mtime_ns),
                    int(ctime_ns),
                    int(inode),
                    digest,
                    racy=racy is not None,
                ),
                None if offset is None else int(offset),
                0 if parts is None else int(parts),
                line,
                None if pack is None else int(pack),
            )
    data = _parse(line)
    try:
        kind = data["kind"]
        if kind not in ENTRY_KINDS:
            raise CorruptBackup(f"the manifest has an entry of kind {kind!r}")
        path = _path(data["path"])
        if kind == "deleted":
            return Row(Entry(path, kind), None, 0, line)
        digest = data.get(CONTENT_DIGEST) or data.get(CHUNKS_DIGEST, "")
        if (kind == "file") != bool(digest) or (digest and not _DIGEST.fullmatch(digest)):
            raise CorruptBackup(f"{path}: its digest is not well-formed")
        target = data.get("target", "")
        if kind == "hardlink":
            _path(target)
        elif (kind == "symlink") != bool(target) or "\0" in target:
            raise CorruptBackup(f"{path}: its link target is not well-formed")
        xattrs = data.get("xattrs")
        offset = data.get("offset")
        parts, pack = _count(data.get("parts", 0)), data.get("pack")
        if pack is not None and (parts or kind != "file" or data.get(CHUNKS_DIGEST) != digest):
            raise CorruptBackup(f"{path}: its chunks are not well-formed")
        entry = Entry(
            path,
            kind,
            _count(data["size"]),
            int(data["mode"], 8) & 0o7777,
            _count(data["uid"], _OWNER_LIMIT),
            _count(data["gid"], _OWNER_LIMIT),
            _time(data["mtime_ns"]),
            _time(data["ctime_ns"]),
            _count(data["inode"], 1 << 64),
            digest,
            target,
            _xattrs(xattrs) if xattrs else None,
            data.get("sparse") is True,
            str(data.get("token", "")),
            data.get("racy") is True,
        )
        return Row(
            entry,
            None if offset is None else _count(offset),
            parts,
            line,
            None if pack is None else _count(pack),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptBackup(f"the manifest has a line that is not well-formed: {error!r}") from error


def parse_part(line: bytes) -> Part:
    try:
        data = _parse(line)
        if "copy" in data:
            return Part(True, _count(data["copy"]), _count(data["length"]), [])
        chunks = [(_count(length), str(digest)) for length, digest in data["chunks"]]
        return Part(False, _count(data["data"]), sum(length for length, _ in chunks), chunks)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptBackup(f"the manifest has a part that is not well-formed: {error}") from error


def parse_chunks(line: bytes) -> list[ChunkRef]:
    """Raises CorruptBackup."""
    text = line.decode("latin-1")
    if _PLAIN_CHUNKS.fullmatch(text):
        return [ChunkRef(int(length), name, int(pack)) for length, name, pack in _EACH_CHUNK.findall(text)]
    try:
        return [
            ChunkRef(_count(length), _digest(chunk), _count(pack))
            for length, chunk, pack in _parse(line)["chunks"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptBackup(f"the manifest has chunks that are not well-formed: {error}") from error


def parse_packs(line: bytes) -> list[PackRef] | None:
    """The packs that a line lists; None for any other line."""
    if not line.startswith(_PACKS):
        return None
    try:
        return [
            PackRef(_pack_name(name), _count(size), _digest(digest) if digest else "")
            for name, size, digest in _parse(line)["packs"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptBackup(f"the manifest lists packs in a way that is not well-formed: {error}") from error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptBackup("the manifest has a line that is not JSON") from error
    if not isinstance(data, dict):
        raise CorruptBackup("the manifest has a line that is not a JSON object")
    return data


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{value!r:.80} is no digest")
    return value


def _pack_name(value: object) -> str:
    if not isinstance(value, str) or not _PACK.fullmatch(value):
        raise ValueError(f"{value!r:.80} is no pack")
    return value


def _path(value: object) -> str:
    if not isinstance(value, str) or not _PATH.fullmatch(value) or len(value) > 65536:
        raise HostileBackup(f"{value!r:.200} is not a path that a backup may hold")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r:.80} is not a source's name")
    return value


def _time(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -_TIME_LIMIT <= value < _TIME_LIMIT:
        raise ValueError(f"{value!r:.80} is not a time that a file can have")
    return value


def _xattrs(data: dict[str, str]) -> dict[str, bytes]:
    if any("\0" in key or not key for key in data):
        raise ValueError("an extended attribute has a name that none can have")
    return {str(key): base64.b64decode(value, validate=True) for key, value in data.items()}


def _count(value: object, limit: int = _SIZE_LIMIT) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise ValueError(f"{value!r:.80} is not a sensible number")
    return value
