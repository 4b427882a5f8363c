"""Nearest neighbours by the cosine of frozen features: what is decided without fitting anything.

Shape legend: D rows with labels, Q rows asked about, F features, C classes, K neighbours.
"""

import numpy as np
from numpy.typing import NDArray

from cramming.evaluation.probes.sts import directions

Features = NDArray[np.float64]
_ASKED_AT_A_TIME = 256
_SAME = 1e-9  # cosines nearer than this are equal


def neighbours(known: Features, asked: Features, k: int) -> NDArray[np.int64]:
    """Numbers of the nearest known rows, nearest first; of equals the first ones: (D, F), (Q, F) -> (Q, K)."""
    known, asked = directions(known), directions(asked)
    found = []
    for start in range(0, len(asked), _ASKED_AT_A_TIME):
        cosines = asked[start : start + _ASKED_AT_A_TIME] @ known.T
        # On a grid: equal vectors differ by rounding, which depends on where in a matrix they stand.
        found.append(np.argsort(-np.round(cosines / _SAME), axis=1, kind="stable")[:, :k])
    return np.concatenate(found)


def classes(known: Features, labels: NDArray[np.int64], asked: Features, count: int, k: int) -> Features:
    """Votes for each class, -> (Q, C); of equals that with the nearest neighbour has up to half a vote more."""
    nearest = labels[neighbours(known, asked, k)]
    votes = np.zeros((len(asked), count))
    for rank in reversed(range(nearest.shape[1])):
        rows = np.arange(len(asked))
        # The first neighbour of a class decides between classes, so the nearer one's part is written last.
        votes[rows, nearest[:, rank]] = np.floor(votes[rows, nearest[:, rank]]) + 1 + (k - rank) / (2 * k + 1)
    return votes


def values(known: Features, labels: NDArray[np.float64], asked: Features, k: int) -> Features:
    """The mean of the neighbours' values, -> (Q,)."""
    means: Features = labels[neighbours(known, asked, k)].mean(1)
    return means
