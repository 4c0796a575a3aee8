"""A two-layer perceptron in numpy, trained with Adam (Kingma and Ba, 2015, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.ml.task import Features, Labels

_DECAY = (0.9, 0.999)
_EPSILON = 1e-8


@dataclass(frozen=True)
class Hyperparameters:
    seed: int = 1
    hidden: int = 512
    epochs: int = 60
    batch: int = 128
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Network:
    """Standardized readings, a hidden layer of rectifiers, softmax over the classes."""

    tensors: dict[str, NDArray[np.float32]]

    def probabilities(self, features: Features) -> NDArray[np.float32]:
        """One row of readings in, one row of probabilities out."""
        tensors = self.tensors
        inputs = (features - tensors["mean"]) / tensors["deviation"]
        hidden = np.maximum(inputs @ tensors["hidden.weight"] + tensors["hidden.bias"], 0)
        return _softmax(hidden @ tensors["output.weight"] + tensors["output.bias"])


def fit(features: Features, labels: Labels, classes: int, parameters: Hyperparameters) -> Network:
    """Trains a network: the same bytes for the same arguments, numpy, machine and number of BLAS threads."""
    rng = np.random.default_rng(parameters.seed)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    inputs = (features - mean) / deviation
    hidden_weight = _initial(rng, inputs.shape[1], parameters.hidden)
    hidden_bias = np.zeros(parameters.hidden, np.float32)
    output_weight = _initial(rng, parameters.hidden, classes)
    output_bias = np.zeros(classes, np.float32)

    weights = (hidden_weight, hidden_bias, output_weight, output_bias)
    firsts, seconds = ([np.zeros_like(weight) for weight in weights] for _ in range(2))
    step = 0
    for _ in range(parameters.epochs):
        order = rng.permutation(len(inputs))
        for start in range(0, len(order), parameters.batch):
            step += 1
            batch = order[start : start + parameters.batch]
            hidden = np.maximum(inputs[batch] @ hidden_weight + hidden_bias, 0)
            error = _softmax(hidden @ output_weight + output_bias)
            error[np.arange(len(batch)), labels[batch]] -= 1
            error /= len(batch)
            back = (error @ output_weight.T) * (hidden > 0)
            gradients = (inputs[batch].T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0))
            for weight, gradient, first, second in zip(weights, gradients, firsts, seconds, strict=True):
                first += (1 - _DECAY[0]) * (gradient - first)
                second += (1 - _DECAY[1]) * (gradient**2 - second)
                scale = np.sqrt(second / (1 - _DECAY[1] ** step)) + _EPSILON
                weight -= parameters.learning_rate / (1 - _DECAY[0] ** step) * first / scale
    return Network(
        {
            "mean": mean,
            "deviation": deviation,
            "hidden.weight": hidden_weight,
            "hidden.bias": hidden_bias,
            "output.weight": output_weight,
            "output.bias": output_bias,
        }
    )


def _initial(rng: np.random.Generator, inputs: int, outputs: int) -> NDArray[np.float32]:
    weight = rng.standard_normal((inputs, outputs), dtype=np.float32)
    weight *= np.sqrt(2 / inputs)  # He et al., 2015: keeps the variance through rectifiers
    return weight


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    odds: NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    return odds
