"""The task: which state is a machine in, from sixteen sensor readings?

Made, but not trivial: each state is several Gaussian clusters scattered among those of the others, so that no
straight line tells the states apart (the best one is right 57 times in 100), and neighbors overlap, so that
nobody is right every time (whoever knows the clusters is, 94 times in 100).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = ("normal", "imbalance", "wear", "leak", "sensor_fault")
FEATURES = 16
_CLUSTERS = 8  # for each class
_WORLD_SEED = 7  # where the clusters lie; the samples drawn from them have seeds of their own
_SPREAD = 1.2  # of the clusters' centers, in standard deviations of a cluster

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


def draw(count: int, seed: int) -> tuple[Features, Labels]:
    """Draws `count` readings and the classes (indices into CLASSES) that they are of."""
    shape = (len(CLASSES), _CLUSTERS, FEATURES)
    centers = np.random.default_rng(_WORLD_SEED).normal(0, _SPREAD, shape)
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CLASSES), size=count)
    clusters = rng.integers(_CLUSTERS, size=count)
    features = centers[labels, clusters] + rng.normal(0, 1, (count, FEATURES))
    return features.astype(np.float32), labels
