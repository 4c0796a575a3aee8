"""Trains the next version of the model on the samples in the database: `python -m app.ml.train --seed 2`."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.core.config import load_config
from app.core.db import engine
from app.core.logs import log, logging_to
from app.core.models import Sample, TrainingRun
from app.ml import network, registry
from app.ml.network import Hyperparameters, Network
from app.ml.registry import Metrics, ModelCard
from app.ml.task import CLASSES, Features, Labels

_HELD_OUT = 5  # one sample in five measures the accuracy and is not trained on


def train(database: Engine, directory: Path, parameters: Hyperparameters, started_at: datetime) -> ModelCard:
    """Trains, measures and saves one version, and records the run. ValueError: too few samples."""
    start = time.perf_counter()
    features, labels = load_samples(database)
    if len(labels) < 100:
        raise ValueError(f"{len(labels)} samples in the database are too few to train on.")
    order = np.random.default_rng(parameters.seed).permutation(len(labels))
    held_out, rest = np.split(order, [len(order) // _HELD_OUT])
    trained = network.fit(features[rest], labels[rest], len(CLASSES), parameters)
    metrics = measure(trained, features[held_out], labels[held_out])
    card = registry.save(directory, trained, CLASSES, parameters, metrics)
    run = TrainingRun(
        started_at=started_at,
        seconds=time.perf_counter() - start,
        model_version=card.version,
        seed=parameters.seed,
        samples=len(rest),
        accuracy=metrics.accuracy,
        sha256=card.sha256,
    )
    with Session(database) as session, session.begin():
        session.add(run)
    log.info("trained", extra={"fields": {"version": card.version, **metrics.model_dump()}})
    return card


def load_samples(database: Engine) -> tuple[Features, Labels]:
    with Session(database) as session:
        rows = session.execute(select(Sample.features, Sample.label).order_by(Sample.id)).all()
    labels = np.array([CLASSES.index(row.label) for row in rows], dtype=np.int64)
    return np.array([row.features for row in rows], dtype=np.float32), labels


def measure(trained: Network, features: Features, labels: Labels) -> Metrics:
    probabilities = trained.probabilities(features)
    of_truth = probabilities[np.arange(len(labels)), labels]
    return Metrics(
        accuracy=float((probabilities.argmax(axis=1) == labels).mean()),
        chance=float(np.bincount(labels).max() / len(labels)),
        log_loss=float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the next version of the model.")
    parser.add_argument("--seed", type=int, default=1)
    config, arguments = load_config(), parser.parse_args()
    with logging_to(config.log_file, config.log_level):
        parameters = Hyperparameters(seed=arguments.seed)
        card = train(engine, config.model_directory, parameters, datetime.now(UTC))
    metrics = card.metrics
    print(f"classifier-v{card.version}: accuracy {metrics.accuracy:.3f} (chance {metrics.chance:.3f})")


if __name__ == "__main__":
    main()
