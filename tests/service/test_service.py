from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from sqlalchemy.dialects import registry as dialects
from sqlalchemy.schema import CreateTable

ROOT = Path(__file__).parents[2]
ML_SERVICE = ROOT / "backend" / "ml-service"
PAST_PREDICTIONS = 300
READINGS = [0.25 * number for number in range(16)]

Request = Callable[..., httpx.Response]


def environment() -> dict[str, str]:
    """What a child process needs to import the service, and no database but its directory's own."""
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return inherited | {
        "PYTHONPATH": f"{ML_SERVICE}{os.pathsep}{ROOT}",
        "PYTHONWARNINGS": "error",
        "OPENBLAS_NUM_THREADS": "1",  # a second thread gains nothing at this size, and fights for busy cores
    }


def seed(directory: Path) -> subprocess.CompletedProcess[str]:
    script = ML_SERVICE / "scripts" / "seed_service.py"
    command = [sys.executable, str(script), "--rows", str(PAST_PREDICTIONS)]
    return subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests that write take `service`."""
    directory = tmp_path_factory.mktemp("seeded")
    result = seed(directory)
    assert result.returncode == 0, result.stderr
    (directory / "stdout").write_text(result.stdout)
    return directory


@pytest.fixture
def service(seeded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the seeded service as the current directory; `app` is imported anew, for its database."""
    directory = tmp_path / "service"
    shutil.copytree(seeded, directory)
    monkeypatch.chdir(directory)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    _forget_app()
    yield directory
    if "app.core.db" in sys.modules:
        sys.modules["app.core.db"].engine.dispose()
    _forget_app()


@contextmanager
def running() -> Iterator[Request]:
    """Starts the application of the current directory, and gives what sends it requests."""
    app: Any = importlib.import_module("app.main").app
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        runner.run(stack.enter_async_context(app.router.lifespan_context(app)))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")
        runner.run(stack.enter_async_context(client))
        try:
            yield lambda *args, **keywords: runner.run(client.request(*args, **keywords))
        finally:
            runner.run(stack.aclose())


def _forget_app() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:
        del sys.modules[name]


def modules(*names: str) -> list[Any]:
    return [importlib.import_module(f"app.ml.{name}") for name in names]


def rows(directory: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(directory / "iit_ml_service.db")) as connection:
        return connection.execute(query).fetchall()


def log_lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "logs/service.log").read_text().splitlines()]


def test_seeding_an_empty_directory_prepares_a_whole_service(seeded: Path) -> None:
    card = json.loads((seeded / "models/classifier-v1.json").read_text())
    tensors = (seeded / "models/classifier-v1.safetensors").read_bytes()
    assert hashlib.sha256(tensors).hexdigest() == card["sha256"]
    assert rows(seeded, "SELECT count(*) FROM predictions") == [(PAST_PREDICTIONS,)]
    assert rows(seeded, "SELECT count(*) FROM samples") == [(20_000,)]
    assert rows(seeded, "SELECT model_version, sha256 FROM training_runs") == [(1, card["sha256"])]
    assert rows(seeded, "PRAGMA journal_mode") == [("wal",)]
    assert (seeded / ".env").read_text() == "DATABASE_URL=sqlite:///./iit_ml_service.db\n"
    assert (seeded / ".env").stat().st_mode & 0o777 == 0o600
    assert [line["message"] for line in log_lines(seeded)] == ["trained", "seeded"]


def test_training_beats_chance_and_says_its_accuracy(seeded: Path) -> None:
    metrics = json.loads((seeded / "models/classifier-v1.json").read_text())["metrics"]
    assert metrics["chance"] < 0.25
    assert metrics["accuracy"] > 0.85  # no straight line does better than 0.58
    assert f"accuracy {metrics['accuracy']:.3f}" in (seeded / "stdout").read_text()


def test_seeding_a_service_twice_is_refused_and_changes_nothing(service: Path) -> None:
    before = {path: path.read_bytes() for path in service.rglob("*") if path.is_file()}
    result = seed(service)
    assert result.returncode == 2
    assert "has samples already" in result.stderr
    assert {path: path.read_bytes() for path in service.rglob("*") if path.is_file()} == before


def test_the_same_seed_trains_the_same_bytes_as_the_next_version(service: Path) -> None:
    engine = importlib.import_module("app.core.db").engine
    network, training = modules("network", "train")
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    cards = [
        training.train(
            engine, Path("models"), network.Hyperparameters(seed=number, hidden=16, epochs=1), noon
        )
        for number in (5, 5, 6)
    ]
    assert [card.version for card in cards] == [2, 3, 4]
    assert cards[0].sha256 == cards[1].sha256 != cards[2].sha256
    recorded = rows(service, "SELECT sha256 FROM training_runs WHERE model_version > 1 ORDER BY id")
    assert recorded == [(card.sha256,) for card in cards]


def test_a_loaded_model_predicts_what_the_saved_one_did(service: Path) -> None:
    network, registry, task = modules("network", "registry", "task")
    features, labels = task.draw(500, 11)
    parameters = network.Hyperparameters(hidden=16, epochs=2)
    trained = network.fit(features, labels, len(task.CLASSES), parameters)
    metrics = registry.Metrics(accuracy=0.5, chance=0.2, log_loss=1.0)
    card = registry.save(service / "models", trained, task.CLASSES, parameters, metrics)
    loaded = registry.load_newest(service / "models")
    assert loaded.card == card
    np.testing.assert_array_equal(loaded.network.probabilities(features), trained.probabilities(features))


def test_the_newest_version_is_the_highest_number(service: Path) -> None:
    [registry] = modules("registry")
    first = json.loads((service / "models/classifier-v1.json").read_text())
    for version in (9, 10):
        (service / f"models/classifier-v{version}.json").write_text(json.dumps(first | {"version": version}))
        tensors = (service / "models/classifier-v1.safetensors").read_bytes()
        (service / f"models/classifier-v{version}.safetensors").write_bytes(tensors)
    assert registry.load_newest(service / "models").card.version == 10


def test_a_missing_or_damaged_model_stops_the_service(service: Path) -> None:
    [registry] = modules("registry")
    tensors = service / "models/classifier-v1.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(registry.ModelError, match="not the file"), running():
        pass
    (service / "models/classifier-v1.json").unlink()
    with pytest.raises(registry.ModelError, match="No model in models"), running():
        pass


def test_a_prediction_is_a_row_and_a_log_line(service: Path) -> None:
    with running() as request:
        answer = request("POST", "/predict", json={"features": READINGS}).json()
        assert request("GET", "/predictions", params={"limit": 2}).json()[0] == answer
        assert len(request("GET", "/predictions", params={"limit": 2}).json()) == 2
        assert request("GET", "/predictions", params={"limit": 0}).status_code == 422
        health = request("GET", "/health").json()
    assert (health["model_version"], health["predictions"]) == (1, PAST_PREDICTIONS + 1)
    stored = rows(service, "SELECT id, label, confidence, features FROM predictions ORDER BY id DESC LIMIT 1")
    assert stored == [(answer["id"], answer["label"], answer["confidence"], json.dumps(READINGS))]
    [line] = [line for line in log_lines(service) if line["message"] == "prediction"]
    assert (line["id"], line["label"]) == (answer["id"], answer["label"])


@pytest.mark.parametrize(
    "features", [READINGS[1:], [*READINGS, 0.0], [*READINGS[1:], "NaN"], [*READINGS[1:], 1e30]]
)
def test_what_is_not_sixteen_readings_is_refused_and_not_stored(service: Path, features: list[Any]) -> None:
    with running() as request:
        assert request("POST", "/predict", json={"features": features}).status_code == 422
    assert rows(service, "SELECT count(*) FROM predictions") == [(PAST_PREDICTIONS,)]


def test_the_settings_are_honored(service: Path) -> None:
    (service / "models").rename(service / "elsewhere")
    (service / "config/service.yaml").write_text(
        "model_directory: elsewhere\nlog_file: other/place.log\nreview_threshold: 1.0 # everything\n"
    )
    seeded_log = log_lines(service)
    with running() as request:
        assert request("POST", "/predict", json={"features": READINGS}).json()["needs_review"] is True
    assert log_lines(service) == seeded_log
    assert '"message": "prediction"' in (service / "other/place.log").read_text()
    with (service / "config/service.yaml").open("a") as file:
        file.write("log_level: ERROR\n")
    before = (service / "other/place.log").read_text()
    with running() as request:
        assert request("POST", "/predict", json={"features": READINGS}).status_code == 200
    assert (service / "other/place.log").read_text() == before


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model_directry: models\n", "model_directry"),
        ("review_threshold: 2\n", "review_threshold"),
        ("# fine\n\nlog_file: 'quoted'\n", "line 3"),
        ("log_level: INFO\nlog_level: DEBUG\n", "line 2"),
        ("nested:\n  log_level: INFO\n", "line 1"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(service: Path, text: str, complaint: str) -> None:
    (service / "config/service.yaml").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        importlib.import_module("app.core.config").load_config()


def test_the_environment_wins_over_the_env_file(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (service / ".env").write_text("DATABASE_URL=sqlite:///from_file.db\nENCRYPTION_KEY=unrelated\n")
    db = importlib.import_module("app.core.db")
    assert db.DatabaseSettings().database_url == "sqlite:///from_file.db"
    monkeypatch.setenv("DATABASE_URL", "sqlite:///from_environment.db")
    assert db.DatabaseSettings().database_url == "sqlite:///from_environment.db"


@pytest.mark.parametrize("name", ["postgresql", "mysql"])
def test_the_tables_can_be_said_to_other_databases(service: Path, name: str) -> None:
    dialect = dialects.load(name)()
    tables = importlib.import_module("app.core.models").Base.metadata.sorted_tables
    statements = [str(CreateTable(table).compile(dialect=dialect)) for table in tables]
    assert [statement.split()[:3] for statement in statements] == [
        ["CREATE", "TABLE", name] for name in ("predictions", "samples", "training_runs")
    ]


def test_traffic_in_its_own_process_stops_cleanly_on_sigterm(service: Path) -> None:
    answered, last_id = run_traffic(service, "--rate", "500")
    stored = rows(service, "SELECT count(*), max(id) FROM predictions")
    assert stored == [(PAST_PREDICTIONS + answered, last_id)]


def test_traffic_over_http_writes_to_the_service_at_the_url(service: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = uvicorn.Config(importlib.import_module("app.main").app, log_config=None, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            answered, last_id = run_traffic(elsewhere, "--url", url)
        finally:
            server.should_exit = True
            thread.join()
    stored = rows(service, "SELECT count(*), max(id) FROM predictions")
    assert stored == [(PAST_PREDICTIONS + answered, last_id)]
    assert list(elsewhere.iterdir()) == []


def run_traffic(directory: Path, *arguments: str) -> tuple[int, int]:
    """Waits for the first answer, then asks it to stop; what it says it did."""
    command = [sys.executable, "-m", "backend.ml-service.scripts.traffic", *arguments]
    process = subprocess.Popen(command, cwd=directory, env=environment(), stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("writing ")
        process.send_signal(signal.SIGTERM)
        said = re.fullmatch(r"answered (\d+), last id (\d+)\n", process.stdout.read())
    assert process.returncode == 0
    assert said is not None
    return int(said[1]), int(said[2])
