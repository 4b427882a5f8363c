"""A linear probe: logistic or ridge regression on frozen features (Alain & Bengio 2016, https://arxiv.org/abs/1610.01644).

The penalty is on the mean loss, so that it means the same for any number of rows.

Shape legend: D rows fitted, Q rows asked about, F features, C classes.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

Features = NDArray[np.float64]
_ITERATIONS = 1000  # of L-BFGS, at most; standardised features take some dozens


def standardised(fitted: Features, asked: Features) -> tuple[Features, Features]:
    """Both with the fitted rows' mean 0 and standard deviation 1 in each feature: (D, F), (Q, F) -> the same.

    A feature that is constant among the fitted rows becomes 0 in both.
    """
    mean, deviation = fitted.mean(0), fitted.std(0)
    varies = deviation > 1e-9 * np.maximum(1.0, np.abs(mean))
    scale = np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0)
    return (fitted - mean) * scale, (asked - mean) * scale


def classes(fitted: Features, labels: NDArray[np.int64], asked: Features, count: int, l2: float) -> Features:
    """Log-odds of each class, -> (Q, C): of mean cross entropy + l2 / 2 * |weights|^2.

    Args:
        fitted: (D, F), standardised.
        labels: (D,) classes, 0 to C - 1.
        asked: (Q, F).
        count: C; classes that no label names are never chosen.
        l2: strength of the penalty.
    """
    named = np.unique(labels)
    found = np.full((len(asked), count), -np.inf)
    if len(named) == 1:  # nothing to fit
        found[:, named[0]] = 0.0
        return found
    model = LogisticRegression(C=1 / (l2 * len(labels)), max_iter=_ITERATIONS)
    odds = model.fit(fitted, labels).decision_function(asked)
    found[:, named] = np.stack([-odds / 2, odds / 2], 1) if odds.ndim == 1 else odds
    return found


def values(fitted: Features, labels: NDArray[np.float64], asked: Features, l2: float) -> Features:
    """Predicted values, -> (Q,): of mean squared error / 2 + l2 / 2 * |weights|^2."""
    predicted: Features = Ridge(alpha=l2 * len(labels)).fit(fitted, labels).predict(asked)
    return predicted
