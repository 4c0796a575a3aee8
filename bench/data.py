"""Seeded data sets for the benchmark: `python -m bench.data service|day|small|models|big DIRECTORY`.

The same seed and the same numpy give the same bytes, except for what SQLite arranges in its file by itself.
Files are created, never replaced: a directory that holds them already is a FileExistsError.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_MB = 1_000_000
_BLOCK = 1 << 20  # tensor elements made at a time
_ROWS_AT_ONCE = 20_000

_EPOCH = np.datetime64("2026-01-01T00:00:00.000")
_LABELS = ("normal", "imbalance", "wear", "leak", "sensor_fault")

_ROWS = 811_000  # predictions in service.db: 205 MB
_LOG_FILES = 10
_LOG_BYTES = 125 * _MB
_WEIGHT_DEVIATION = 0.02
_TUNING = (
    0.001  # deviation of a fine-tune's changes, in deviations of the weights: bf16 rounds most of them away
)

_CONFIG = {
    ".env": "DATABASE_URL=sqlite:///./service.db\nSERVICE_PORT=8000\n",
    "config/service.yaml": "revision: 1\nmodel_directory: models\nlog_level: INFO\nreview_threshold: 0.6\n",
    "config/training.toml": '[optimizer]\nname = "adamw"\nlearning_rate = 2e-5\n\n[data]\nbatch = 64\n',
    "config/labels.yaml": "".join(f"- {label}\n" for label in _LABELS),
}

Dtype = Literal["BF16", "F32"]
Shapes = dict[str, tuple[int, ...]]


def make_service(directory: Path, *, seed: int = 1, scale: float = 1.0) -> None:
    """A service of about 1136 MB times `scale`: two models, a SQLite database, logs, configuration."""
    for name, text in _CONFIG.items():
        _create(directory / name, [text.encode()])
    models = directory / "models"
    _create(models / "base.safetensors", _weights("BF16", _language_model(scale), seed))
    _create(models / "vision.safetensors", _weights("F32", _vision_model(scale), seed))
    for number in range(_LOG_FILES):
        age = _LOG_FILES - 1 - number
        name = f"service-{number:02d}.log" if age else "service.log"
        lines = _log_blocks(
            np.random.default_rng([seed, 3, number]), int(_LOG_BYTES * scale) // _LOG_FILES, number
        )
        _create(directory / "logs" / name, lines)
    _make_database(directory / "service.db", round(_ROWS * scale), seed)


def apply_day(directory: Path, *, seed: int = 1) -> None:
    """A day of work in such a service; apply it again for the next day.

    1 % of the predictions change and 0.5 % are added; a fine-tuned copy of the language model appears; log
    lines are appended (a quarter of a log file), a setting is edited, and the oldest log is deleted.
    """
    settings = directory / "config/service.yaml"
    first, _, rest = settings.read_text().partition("\n")
    day = int(first.removeprefix("revision: "))
    settings.write_text(f"revision: {day + 1}\n{rest}")

    models, logs = directory / "models", directory / "logs"
    _create(models / f"tuned-{day}.safetensors", _fine_tuned(models / "base.safetensors", [seed, 4, day]))
    oldest = min(logs.glob("service-*.log"))
    appended = oldest.stat().st_size // 4
    oldest.unlink()
    with (logs / "service.log").open("ab") as file:
        file.writelines(_log_blocks(np.random.default_rng([seed, 5, day]), appended, _LOG_FILES + day))
    _change_database(directory / "service.db", np.random.default_rng([seed, 6, day]), day)


def make_small(directory: Path, *, count: int = 100_000, seed: int = 1) -> None:
    """`count` files of 1 to 4 KiB of JSON-like text in 200 directories."""
    for number in range(200):
        rng = np.random.default_rng([seed, 7, number])
        sizes = rng.integers(1024, 4097, size=count // 200 + (number < count % 200))
        text = b"".join(_log_blocks(rng, int(sizes.sum()) + 4096, number))
        folder = directory / f"{number:03d}"
        folder.mkdir(parents=True)
        ends = np.cumsum(sizes).tolist()
        for index, (start, end) in enumerate(itertools.pairwise([0, *ends])):
            with open(folder / f"{index:05d}.json", "xb") as file:
                file.write(text[start:end])


def make_models(directory: Path, *, count: int = 40, seed: int = 1) -> None:
    """`count` models of 8 MB of fp32 weights."""
    for number in range(count):
        shapes: Shapes = {f"layers.{layer}.weight": (512, 512) for layer in range(8)}
        _create(directory / f"model-{number:02d}.safetensors", _weights("F32", shapes, seed * 1000 + number))


def make_big(directory: Path, *, gigabytes: float, seed: int = 1) -> None:
    """One file of `gigabytes` (10**9 bytes each): weights, log lines, table rows and random bytes in turn."""
    _create(directory / "big.bin", _mixed_blocks(int(gigabytes * 1e9), seed))


def _create(path: Path, blocks: Iterator[bytes] | list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.writelines(blocks)


# Models


def _language_model(scale: float) -> Shapes:
    """A transformer of 268 million weights in 201 tensors; scaled, its vocabulary and widths shrink."""
    wide, inner, words = 896, _scaled(2432, scale), _scaled(30_080, scale)
    heads = _scaled(wide, scale)
    shapes: Shapes = {"embed.weight": (words, wide), "head.weight": (words, wide), "norm.weight": (wide,)}
    for layer in range(22):
        name = f"layers.{layer}"
        shapes |= {f"{name}.attention.{part}.weight": (heads, wide) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}.weight": (inner, wide) for part in ("gate", "up", "down")}
        shapes |= {f"{name}.{part}_norm.weight": (wide,) for part in ("attention", "mlp")}
    return shapes


def _vision_model(scale: float) -> Shapes:
    """A vision transformer of 67 million weights."""
    wide = 768
    shapes: Shapes = {
        "patch.weight": (_scaled(wide, scale), 3, 16, 16),
        "position": (_scaled(197, scale), wide),
        "head.weight": (_scaled(3400, scale), wide),
    }
    for layer in range(9):
        name = f"blocks.{layer}"
        shapes |= {f"{name}.attention.{part}": (_scaled(wide, scale), wide) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}": (_scaled(4 * wide, scale), wide) for part in ("up", "down")}
    return shapes


def _scaled(size: int, scale: float) -> int:
    return max(1, round(size * scale))


def _weights(dtype: Dtype, shapes: Shapes, seed: int) -> Iterator[bytes]:
    yield _header(dtype, shapes)
    for number, shape in enumerate(shapes.values()):
        rng = np.random.default_rng([seed, 0 if dtype == "BF16" else 1, number])
        yield from _weight_blocks(dtype, rng, math.prod(shape))


def _weight_blocks(dtype: Dtype, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    for start in range(0, count, _BLOCK):
        block = rng.standard_normal(min(_BLOCK, count - start), dtype=np.float32)
        block *= _WEIGHT_DEVIATION
        yield (to_bf16(block) if dtype == "BF16" else block).tobytes()


def _header(dtype: Dtype, shapes: Shapes) -> bytes:
    """Length (u64) and JSON padded to eight bytes with spaces; https://huggingface.co/docs/safetensors."""
    item = 2 if dtype == "BF16" else 4
    ends = list(itertools.accumulate(math.prod(shape) * item for shape in shapes.values()))
    tensors = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": span}
        for (name, shape), span in zip(shapes.items(), itertools.pairwise([0, *ends]), strict=True)
    }
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _fine_tuned(base: Path, seed: list[int]) -> Iterator[bytes]:
    """The base with a little noise on every weight, under the same header."""
    rng = np.random.default_rng(seed)
    with base.open("rb") as file:
        length = file.read(8)
        yield length + file.read(struct.unpack("<Q", length)[0])
        while block := file.read(2 * _BLOCK):
            weights = _from_bf16(np.frombuffer(block, np.uint16))
            change = rng.standard_normal(len(weights), dtype=np.float32)
            change *= _TUNING * _WEIGHT_DEVIATION
            yield to_bf16(weights + change).tobytes()


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of the bits, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


# Database


def _make_database(path: Path, rows: int, seed: int) -> None:
    _create(path, [])  # refuses a database that is there
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE predictions (id INTEGER PRIMARY KEY, created_at TEXT, request TEXT, model_version"
            " INTEGER, label TEXT, confidence REAL, needs_review INTEGER, features TEXT)"
        )
        connection.execute("CREATE INDEX predictions_by_time ON predictions (created_at)")
        for start in range(0, rows, _ROWS_AT_ONCE):
            rng = np.random.default_rng([seed, 2, start])
            _insert(connection, _rows(rng, min(_ROWS_AT_ONCE, rows - start), start))


def _change_database(path: Path, rng: np.random.Generator, day: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        [count] = connection.execute("SELECT count(*) FROM predictions").fetchone()
        reviewed = (1 + rng.choice(count, count // 100, replace=False)).tolist()
        labels = rng.choice(_LABELS, len(reviewed)).tolist()
        with connection:
            connection.executemany(
                "UPDATE predictions SET label = ?, needs_review = 2 WHERE id = ?",
                zip(labels, reviewed, strict=True),
            )
        _insert(connection, _rows(rng, count // 200, count))


def _insert(connection: sqlite3.Connection, rows: Iterator[tuple[object, ...]]) -> None:
    with connection:
        connection.executemany("INSERT INTO predictions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", rows)


def _rows(rng: np.random.Generator, count: int, first: int) -> Iterator[tuple[object, ...]]:
    """Predictions two seconds apart, without their ids."""
    features = "[" + ", ".join(["%.4f"] * 16) + "]"
    times = _EPOCH + 2000 * (first + np.arange(count)) + rng.integers(0, 2000, count)
    confidences = np.round(1 - rng.exponential(0.1, count).clip(0, 0.8), 4)
    return zip(
        np.datetime_as_string(times).tolist(),
        _hex(rng, count, 8),
        (1 + (first + np.arange(count)) // 200_000).tolist(),
        rng.choice(_LABELS, count, p=(0.6, 0.1, 0.1, 0.1, 0.1)).tolist(),
        confidences.tolist(),
        (confidences < 0.6).astype(int).tolist(),
        map(features.__mod__, map(tuple, rng.normal(0, 1.5, (count, 16)).tolist())),
        strict=True,
    )


# Text, and all of it together


def _log_blocks(rng: np.random.Generator, size: int, day: int) -> Iterator[bytes]:
    """JSON lines of one day: as many whole ones as `size` bytes hold."""
    line = (
        '{"time": "%sZ", "level": "%s", "message": "prediction", "trace": "%s", "input": "%s",'
        ' "client": "10.0.%d.%d", "label": "%s", "confidence": %.4f, "latency_ms": %.2f}\n'
    )
    time = _EPOCH + np.timedelta64(day, "D")
    while size > 0:
        count = min(_ROWS_AT_ONCE, size // 200 + 1)
        times = time + np.cumsum(rng.integers(0, 200, count))
        time = times[-1]
        columns = zip(
            np.datetime_as_string(times).tolist(),
            rng.choice(("INFO", "WARNING", "ERROR"), count, p=(0.95, 0.04, 0.01)).tolist(),
            _hex(rng, count, 16),
            _hex(rng, count, 20),
            rng.integers(0, 4, count).tolist(),
            rng.integers(1, 255, count).tolist(),
            rng.choice(_LABELS, count, p=(0.6, 0.1, 0.1, 0.1, 0.1)).tolist(),
            (1 - rng.exponential(0.1, count).clip(0, 0.8)).tolist(),
            rng.gamma(4, 3, count).tolist(),
            strict=True,
        )
        block = "".join(map(line.__mod__, columns)).encode()
        if len(block) > size:
            yield block[: block.rfind(b"\n", 0, size) + 1]
            return
        size -= len(block)
        yield block


def _hex(rng: np.random.Generator, count: int, width: int) -> list[str]:
    """Identifiers of `width` bytes."""
    digits = rng.bytes(count * width).hex()
    return [digits[start : start + 2 * width] for start in range(0, len(digits), 2 * width)]


def _mixed_blocks(size: int, seed: int) -> Iterator[bytes]:
    kinds: list[Callable[[np.random.Generator, int], Iterator[bytes]]] = [
        lambda rng, _: _weight_blocks("BF16", rng, 4 * _BLOCK),
        lambda rng, number: _log_blocks(rng, 8 * _BLOCK, number),
        lambda rng, _: _weight_blocks("F32", rng, 2 * _BLOCK),
        lambda rng, number: (f"{row}\n".encode() for row in _rows(rng, 32_000, number * 32_000)),
        lambda rng, _: iter([rng.bytes(8 * _BLOCK)]),
    ]
    for number in itertools.count():
        for block in kinds[number % len(kinds)](np.random.default_rng([seed, 8, number]), number):
            if size <= 0:
                return
            yield block[:size]
            size -= len(block)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the benchmark's data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    makers = {
        "service": make_service,
        "day": apply_day,
        "small": make_small,
        "models": make_models,
        "big": make_big,
    }
    for name, make in makers.items():
        command = commands.add_parser(name, help=(make.__doc__ or "").partition("\n")[0])
        command.add_argument("directory", type=Path)
        command.add_argument("--seed", type=int, default=1)
        command.set_defaults(make=make)
        if name == "service":
            command.add_argument("--scale", type=float, default=1.0, help="1 makes 1136 MB")
        elif name == "small":
            command.add_argument("--count", type=int, default=100_000)
        elif name == "models":
            command.add_argument("--count", type=int, default=40)
        elif name == "big":
            command.add_argument("--gigabytes", type=float, required=True)
    arguments = vars(parser.parse_args())
    del arguments["command"]
    arguments.pop("make")(**arguments)


if __name__ == "__main__":
    main()
