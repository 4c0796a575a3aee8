"""Prepares a service in the current directory: tables, samples, a model, settings, past predictions."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.core.config import CONFIG_FILE, ServiceConfig, load_config
from app.core.db import engine
from app.core.logs import log, logging_to
from app.core.models import Base, Prediction, Sample
from app.ml.network import Hyperparameters
from app.ml.registry import load_newest
from app.ml.task import CLASSES, draw
from app.ml.train import train

_BATCH = 5000  # rows in one statement
_HISTORY = timedelta(days=30)
_SETTINGS = """\
# Settings of the service: flat `name: value` lines. It reads them when it starts.
model_directory: models
log_file: logs/service.log
log_level: INFO          # DEBUG, INFO, WARNING, ERROR
review_threshold: 0.6    # predictions less confident than this are marked for review
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="past predictions to insert (default 20000)")
    parser.add_argument("--samples", type=int, default=20_000, help="samples to train on (default 20000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        if session.scalars(select(Sample.id).limit(1)).first() is not None:
            parser.error(f"{engine.url!r} has samples already: seed an empty service")
    # The password is needed here; the file is its owner's alone.
    url = engine.url.render_as_string(hide_password=False)
    write_unless_there(Path(".env"), f"DATABASE_URL={url}\n", mode=0o600)
    write_unless_there(CONFIG_FILE, _SETTINGS, mode=0o644)

    config, now = load_config(), datetime.now(UTC)
    with logging_to(config.log_file, config.log_level):
        insert_samples(arguments.samples, arguments.seed)
        card = train(engine, config.model_directory, Hyperparameters(seed=arguments.seed), now)
        insert_predictions(arguments.rows, arguments.seed + 1, config, now)
        log.info("seeded", extra={"fields": {"samples": arguments.samples, "predictions": arguments.rows}})
    engine.dispose()
    print(f"{engine.url!r}: {arguments.rows} predictions, {arguments.samples} samples")
    metrics = card.metrics
    print(f"classifier-v{card.version}: accuracy {metrics.accuracy:.3f} (chance {metrics.chance:.3f})")


def write_unless_there(path: Path, text: str, mode: int) -> None:
    """Keeps what an operator has written before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def insert_samples(count: int, seed: int) -> None:
    features, labels = draw(count, seed)
    rows = [
        {"label": CLASSES[label], "features": readings}
        for label, readings in zip(labels.tolist(), features.tolist(), strict=True)
    ]
    insert_rows(Sample, rows)


def insert_predictions(count: int, seed: int, config: ServiceConfig, now: datetime) -> None:
    """What the service would have answered over the last month, had it been asked."""
    classifier = load_newest(config.model_directory)
    features, _ = draw(count, seed)
    probabilities = classifier.network.probabilities(features)
    ages = np.sort(np.random.default_rng(seed).uniform(0, _HISTORY.total_seconds(), count))[::-1]
    rows = [
        {
            "created_at": now - timedelta(seconds=age),
            "model_version": classifier.card.version,
            "label": classifier.card.classes[best],
            "confidence": confidence,
            "needs_review": confidence < config.review_threshold,
            "features": readings,
        }
        for age, best, confidence, readings in zip(
            ages.tolist(),
            probabilities.argmax(axis=1).tolist(),
            probabilities.max(axis=1).tolist(),
            features.tolist(),
            strict=True,
        )
    ]
    insert_rows(Prediction, rows)


def insert_rows(table: type[Base], rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        for start in range(0, len(rows), _BATCH):
            connection.execute(insert(table), rows[start : start + _BATCH])


if __name__ == "__main__":
    main()
