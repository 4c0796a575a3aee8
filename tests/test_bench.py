"""The benchmark runs, and tells ratios."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench.postgres_server import installed

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
