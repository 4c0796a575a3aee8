"""Versions of the model on disk: `classifier-v1.safetensors`, and `classifier-v1.json` that describes it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy
from pydantic import BaseModel

from app.ml.network import Hyperparameters, Network

_CARD = re.compile(r"classifier-v([1-9]\d*)\.json")


class ModelError(Exception):
    """There is no model, or it is not what its card says."""


class Metrics(BaseModel):
    """On samples that the training did not see."""

    accuracy: float
    chance: float  # the accuracy of always naming the commonest class
    log_loss: float


class ModelCard(BaseModel):
    version: int
    classes: tuple[str, ...]
    hyperparameters: Hyperparameters
    metrics: Metrics
    sha256: str  # of the safetensors file


@dataclass(frozen=True)
class Classifier:
    card: ModelCard
    network: Network


def newest_version(directory: Path) -> int:
    """The highest version in the directory, 0 when there is none."""
    cards = (_CARD.fullmatch(path.name) for path in directory.glob("classifier-v*.json"))
    return max((int(card[1]) for card in cards if card), default=0)


def save(
    directory: Path,
    network: Network,
    classes: tuple[str, ...],
    hyperparameters: Hyperparameters,
    metrics: Metrics,
) -> ModelCard:
    """Writes the next version; the card goes last, because a version exists once its card does."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = safetensors.numpy.save(network.tensors)
    card = ModelCard(
        version=newest_version(directory) + 1,
        classes=classes,
        hyperparameters=hyperparameters,
        metrics=metrics,
        sha256=hashlib.sha256(tensors).hexdigest(),
    )
    _write(directory / f"classifier-v{card.version}.safetensors", tensors)
    _write(directory / f"classifier-v{card.version}.json", card.model_dump_json(indent=2).encode() + b"\n")
    return card


def load_newest(directory: Path) -> Classifier:
    """Raises ModelError when there is no model, or when its tensors are not those that its card describes."""
    version = newest_version(directory)
    if not version:
        raise ModelError(f"No model in {directory}. `scripts/seed_service.py` trains one.")
    stem = directory / f"classifier-v{version}"
    card = ModelCard.model_validate_json(stem.with_suffix(".json").read_bytes())
    tensors = stem.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(tensors).hexdigest() != card.sha256:
        raise ModelError(f"{stem}.safetensors is not the file that {stem}.json describes.")
    return Classifier(card, Network(safetensors.numpy.load(tensors)))


def _write(path: Path, content: bytes) -> None:
    """A reader sees the whole file or none; so does a backup."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
