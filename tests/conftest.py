"""What all tests share: how long they may take, and a local state of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The assertions of the suites are explained as those of the tests that subclass them are.
pytest.register_assert_rewrite("conformance", "installed")

TORTURE = os.environ.get("HOLDFAST_TORTURE") == "1"

# A deadline would be a timed assertion. In CI every run tries the same examples: a change is never blamed for
# what it did not break.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long runs are asked for: `make torture`."""
    if TORTURE:
        return
    long = [item for item in items if item.get_closest_marker("torture")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


@pytest.fixture
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$XDG_STATE_HOME, for this process and its children."""
    home = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    return home
