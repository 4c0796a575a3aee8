"""The benchmark runs, and tells ratios."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.measure import Row, Sample
from bench.postgres_server import installed
from bench.real_weights import as_bf16
from bench.report import Table, share_goal
from bench.weights import FILE, PACKAGE
from numpy.typing import NDArray

PROJECT = Path(__file__).parents[1]


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(
    not (shutil.which("tar") and shutil.which("pigz")), reason="there is nothing to compare with"
)
def test_two_quick_scenarios_run_and_print_ratios_and_goals(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = _bench(
        *("--only", "archive-plain", "start", "--scale", "0.002", "--runs", "1"),
        *("--dir", str(tmp_path / "bench"), "--json", str(figures)),
    )
    assert done.returncode == 0, done.stderr
    [measured] = re.findall(r"^ +holdfast {2,}\d.* MB .*$", done.stdout, re.MULTILINE)
    assert re.search(r"\d+\.\d\dx \(CPU \d+\.\d\dx\)", measured)
    assert len(re.findall(r"^  goal: .*, (met|NOT MET)$", done.stdout, re.MULTILINE)) == 5
    archive, start = json.loads(figures.read_text())
    assert {row["name"] for row in archive["tables"][0]["rows"]} >= {"holdfast", "tar | pigz -9"}
    assert all(sample["wall"] > 0 for row in start["tables"][0]["rows"] for sample in row["samples"])
    assert not (tmp_path / "bench" / "work").exists()


@pytest.mark.skipif(installed() is None, reason="no PostgreSQL server is installed")
def test_postgres_is_compared_with_its_own_programs(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = _bench(
        *("--only", "postgres", "--scale", "0.005", "--runs", "1"),
        *("--dir", str(tmp_path / "bench"), "--json", str(figures)),
    )
    assert done.returncode == 0, done.stderr
    [result] = json.loads(figures.read_text())
    saved, restored, changed = (
        {row["name"]: row["samples"] for row in table["rows"]} for table in result["tables"]
    )
    assert saved.keys() == {"holdfast, level 9", "holdfast, level 1", "pg_dump -Fc -Z1"}
    assert all(samples[0]["stored"] > 0 for samples in saved.values())
    assert restored.keys() == {"holdfast", "pg_restore -j2"}
    assert 0 < changed["holdfast, incremental"][0]["stored"] < changed["holdfast, full"][0]["stored"]
    assert len(result["checks"]) == 2


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    precious = tmp_path / "work" / "precious"
    precious.parent.mkdir()
    precious.touch()
    done = _bench("--only", "start", "--dir", str(tmp_path))
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert precious.exists()


def test_what_deduplication_promises_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = _bench(
        *("--only", "dedup-small", "one-model", "index-memory", "--scale", "0.002", "--runs", "1"),
        *("--dir", str(tmp_path / "bench"), "--json", str(figures)),
    )
    assert done.returncode == 0, done.stderr
    small, model, index = json.loads(figures.read_text())
    first, unchanged, _ = (table["rows"][0]["samples"][0] for table in small["tables"])
    assert 0 < unchanged["stored"] < first["stored"]
    assert len(small["goals"]) == 4
    assert "no other model came with it" in model["checks"][0]
    restored, started = (table["rows"][0]["samples"][0] for table in model["tables"])
    if sys.platform == "linux":
        assert restored["read"] - started["read"] > 8 << 20
        assert model["goals"][0]["met"]
    assert [goal["met"] for goal in index["goals"]] == [True] * 3


def test_weights_that_are_there_are_measured_in_both_types(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    place = tmp_path / "bench"
    model = place / "data" / PACKAGE / FILE
    model.parent.mkdir(parents=True)
    (place / "holdfast-bench").touch()
    _save(model, np.random.default_rng(1).normal(0, 0.02, 300_000).astype("<f4"))
    done = _bench("--only", "weights", "--runs", "1", "--dir", str(place), "--json", str(figures))
    assert done.returncode == 0, done.stderr
    [result] = json.loads(figures.read_text())
    stored = [table["rows"][0]["samples"][0]["stored"] for table in result["tables"]]
    assert 0.3 < stored[1] / stored[0] < 0.5
    assert all("zstd at level 3 0." in goal["measured"] for goal in result["goals"])


def test_weights_are_never_fetched_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    done = _bench("--only", "weights", "--dir", str(tmp_path / "bench"))
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"is not fetched where CI is set, not measured$", done.stdout, re.MULTILINE)) == 2


def test_a_bf16_copy_is_rounded_to_the_nearest_and_ties_to_even(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    bits = [0x3F800000, 0x3F808000, 0x3F808001, 0x3F818000, 0xBF817FFF]
    _save(source, np.array(bits, "<u4").view("<f4"))
    data = b"".join(as_bf16(source))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["weights"] == {"dtype": "BF16", "shape": [5], "data_offsets": [16, 26]}
    assert header["positions"] == {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}
    assert header["__metadata__"] == {"format": "pt"}
    tensors = data[8 + length :]
    assert tensors[:16] == np.array([1, 2], "<i8").tobytes()
    assert np.frombuffer(tensors[16:], "<u2").tolist() == [0x3F80, 0x3F80, 0x3F81, 0x3F82, 0xBF81]


def _save(path: Path, weights: NDArray[np.float32]) -> None:
    """As somebody else's safetensors file: with metadata, and a tensor that is not of floats."""
    header = {
        "__metadata__": {"format": "pt"},
        "weights": {"dtype": "F32", "shape": [len(weights)], "data_offsets": [16, 16 + weights.nbytes]},
        "positions": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + np.array([1, 2], "<i8").tobytes() + weights.tobytes()
    )


def _table(*walls: tuple[str, float]) -> Table:
    samples = {name: Sample(wall, wall, 1, None) for name, wall in walls}
    return Table("work", [Row(name, name != "holdfast", (sample,)) for name, sample in samples.items()])


@pytest.mark.parametrize(
    ("restic", "borg", "met"),
    [
        (10.0, 12.0, True),  # half of both
        (10.0, 4.0, True),  # Borg's is smaller than restic's, so that it does not count
        (8.0, 12.0, False),
        (8.0, 4.0, False),
        (None, 4.0, False),  # alone, it counts
        (None, None, None),
    ],
)
def test_against_borg_a_goal_counts_where_its_figure_is_not_smaller_than_restics(
    restic: float | None, borg: float | None, met: bool | None
) -> None:
    others = [(name, wall) for name, wall in (("restic", restic), ("borg", borg)) if wall is not None]
    goal = share_goal(_table(("holdfast", 5.0), *others), "holdfast", "wall", 0.5)
    assert goal.met is met
    assert ("does not count" in goal.measured) == (restic is not None and borg == 4.0)
