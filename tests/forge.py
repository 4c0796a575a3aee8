"""Archives written by hand, from docs/archive-format.md: honest, or with whatever lie a test wants to tell.

Everything about a forged archive is right but for what the test says: it has the index, the digests, the checksum
and the signature that it should have, so that only the lie is there to be found.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from holdfast.crypto import Recipient, SealingWriter
from holdfast.model import Signature

HEADER = bytes.fromhex("1f8b08000000000000ff")
_SYNC_FLUSH = 2
_TYPES = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
}

Sign = Callable[[bytes], Signature]


def json_line(data: dict[str, Any] | bytes) -> bytes:
    """A line of a manifest; bytes as they are."""
    return data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n"


def member(path: str, data: bytes = b"", kind: str = "file", target: str = "", **fields: Any) -> bytes:
    """A tar member, as the standard library writes it."""
    info = tarfile.TarInfo(path)
    info.type = _TYPES.get(kind, kind.encode())
    info.size = len(data)
    info.linkname = target
    for name, value in fields.items():
        setattr(info, name, value)
    head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return head + data + bytes(-len(data) % 512)


def told(path: str, **says: Any) -> dict[str, Any]:
    """The line of a file that holds ``content``, or of what a test says."""
    usual = {"path": path, "kind": "file", "size": 7, "mode": "0644", "uid": 0, "gid": 0, "mtime_ns": 0}
    return usual | {"ctime_ns": 0, "inode": 1, "sha256": hashlib.sha256(b"content").hexdigest()} | says


class Forge:
    """One archive in the making."""

    def __init__(self, backup_id: str = "full_20240101_020000", **header: Any) -> None:
        """`header`: what the manifest's first line says beside, or instead of, the usual."""
        self.id = backup_id
        self.type = {"incr": "incremental"}.get(backup_id.partition("_")[0], backup_id.partition("_")[0])
        date, time = backup_id.split("_")[1:]
        self.time = f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}"
        self.header = {
            "holdfast": 1,
            "id": backup_id,
            "type": self.type,
            "time": self.time,
            "host": "far-away",
            "tool": "forge",
            "components": ["models"],
        } | header
        self.told = {name: self.header.get(name) for name in ("type", "components", "parent", "host", "tool")}
        """What the metadata says of these: what the header said at first."""
        self.lines: list[bytes] = []
        self.sources: list[dict[str, Any]] = []
        self.entries = 0
        self.bytes = 0
        self.raw = 0
        """Bytes of the tar so far."""
        self.blocks: list[tuple[int, int]] = []
        self._packed = bytearray(HEADER)
        self._crc = 0

    def source(self, component: str = "models", name: str = "models", **says: Any) -> Forge:
        """Begins a source. `says`: what is told of it, at its beginning (`whole`) or at the manifest's end."""
        whole = says.pop("whole", True)
        self.lines.append(json_line({"source": {"component": component, "name": name, "whole": whole}}))
        usual = {
            "component": component,
            "name": name,
            "kind": "files",
            "roots": ["files/models"],
            "moment": {},
        }
        self.sources.append(usual | {"entries": 0, "bytes": 0} | says)
        return self

    def holds(self, *components: str) -> Forge:
        """Says truly which components it holds."""
        self.header["components"] = self.told["components"] = list(components)
        return self

    def write(self, data: bytes) -> int:
        """Puts bytes into the tar as a block of their own. Returns where they begin."""
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = compressor.compress(data) + compressor.flush(_SYNC_FLUSH)
        self._packed += packed
        self._crc = zlib.crc32(data, self._crc)
        self.blocks.append((len(packed), len(data)))
        start = self.raw
        self.raw += len(data)
        return start

    def entry(self, path: str, kind: str = "directory", /, *, data: bytes = b"", **says: Any) -> Forge:
        """A member and its line. `says`: what the line tells beside, or instead of, the truth; None leaves out."""
        mode = says.get("mode", {"directory": "0755", "symlink": "0777"}.get(kind, "0644"))
        bits = int(mode, 8) if isinstance(mode, str) and set(mode) <= set("01234567") else 0
        written = member(path, data, kind, says.get("target", ""), mode=bits)
        start = self.write(written)
        line: dict[str, Any] = {
            "path": path,
            "kind": kind,
            "size": len(data),
            "mode": mode,
            "uid": 0,
            "gid": 0,
        }
        line |= {"mtime_ns": 0, "ctime_ns": 0, "inode": 1}
        if kind == "file":
            padded = len(data) + -len(data) % 512
            line |= {"sha256": hashlib.sha256(data).hexdigest(), "offset": start + len(written) - padded}
        return self.line(line | says)

    def file(self, path: str, data: bytes = b"content", /, **says: Any) -> Forge:
        return self.entry(path, "file", data=data, **says)

    def line(self, line: dict[str, Any] | bytes) -> Forge:
        """A line without a member, or a part."""
        if isinstance(line, dict):
            line = {name: value for name, value in line.items() if value is not None}
            if "path" in line and line.get("kind") != "deleted":
                self.count(1, line.get("size", 0) if line["kind"] == "file" else 0)
        self.lines.append(json_line(line))
        return self

    def count(self, entries: int, size: Any) -> Forge:
        """Adds to what the source at hand is said to hold, and the backup."""
        size = size if isinstance(size, int) and 0 <= size < 1 << 60 else 0
        self.entries, self.bytes = self.entries + entries, self.bytes + size
        self.sources[-1]["entries"] += entries
        self.sources[-1]["bytes"] += size
        return self

    @property
    def end(self) -> dict[str, Any]:
        """What the manifest's last line says, unless a test says otherwise."""
        return {"entries": self.entries, "bytes": self.bytes, "sources": self.sources}

    def manifest(
        self, *, blocks: Iterable[tuple[Any, Any]] | None = None, end: dict[str, Any] | None = None
    ) -> bytes:
        """The manifest. `blocks` and `end`: lies, instead of what is true."""
        listed = self.blocks if blocks is None else list(blocks)
        lines = [json_line(self.header), *self.lines]
        lines += [json_line({"blocks": listed[n : n + 4096]}) for n in range(0, len(listed), 4096)]
        lines.append(json_line({"end": self.end | (end or {})}))
        return b"".join(lines)

    def save(
        self,
        directory: Path,
        sign: Sign | None,
        *,
        manifest: bytes | None = None,
        recipients: tuple[Recipient, ...] = (),
        name: str | None = None,
        after: bytes = b"",
        says: dict[str, Any] | None = None,
    ) -> Path:
        """Writes archive and metadata into a backup directory. Returns the archive's path.

        `manifest`: instead of the true one. `after`: what follows the manifest in the tar, before its end. `says`:
        what the metadata tells beside, or instead of, the truth; None leaves out.
        """
        manifest = self.manifest() if manifest is None else manifest
        offset = len(self._packed)
        blocks = len(self.blocks)
        self.write(member("MANIFEST.jsonl", manifest, mode=0o600) + after + bytes(1024))
        archive = bytes(self._packed) + b"\x03\x00" + struct.pack("<LL", self._crc, self.raw & 0xFFFFFFFF)
        del self.blocks[blocks:]
        if recipients:
            sealed = io.BytesIO()
            with SealingWriter(sealed, recipients, work_factor=1) as writer:
                writer.write(archive)
            archive = sealed.getvalue()
        digest = hashlib.sha256(manifest).hexdigest()
        signature = sign(f"holdfast backup\n{self.id}\n{digest}\n".encode()) if sign else None
        metadata = (
            {
                "backup_id": self.id,
                "timestamp": self.time,
                "version": "1.0.0",
                "size_bytes": len(archive),
                "checksum": hashlib.sha256(archive).hexdigest(),
                "status": "success",
                "encrypted": bool(recipients),
                "entries": self.end["entries"],
                "source_bytes": self.end["bytes"],
                "manifest": {"digest": digest, "size": len(manifest), "compressed_offset": offset},
                "signature": {"key": signature.key, "value": signature.value} if signature else None,
            }
            | self.told
            | (says or {})
        )
        place = directory / self.type
        place.mkdir(parents=True, exist_ok=True)
        path = place / (name or f"{self.id}.tar.gz" + (".enc" if recipients else ""))
        path.write_bytes(archive)
        told = {field: value for field, value in metadata.items() if value is not None}
        (place / f"{self.id}.metadata.json").write_text(json.dumps(told))
        return path


def honest(backup_id: str = "full_20240101_020000", **header: Any) -> Forge:
    """An archive of models with nothing wrong in it; what more a test adds goes at its end."""
    forge = Forge(backup_id, **header).source()
    forge.entry("files/models")
    forge.file("files/models/a.bin", b"restored", mode="0600", xattrs=None)
    forge.entry("files/models/d")
    forge.file("files/models/d/x", bytes(range(256)) * 8)
    forge.entry("files/models/link", "symlink", target="a.bin")
    return forge


def xattr(value: bytes) -> str:
    return base64.b64encode(value).decode()
