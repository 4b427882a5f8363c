"""Metrics that judge every example by itself.

Shape legend: E examples (or words, for token classification), C classes.
"""

import warnings

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """(E,), (E,) -> the share of examples whose class is right."""
    return float(accuracy_score(references, predictions))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """(E,), (E,) -> F1 of class 1: 2 TP / (2 TP + FP + FN); 0 where class 1 is nowhere."""
    return float(f1_score(np.asarray(references) == 1, np.asarray(predictions) == 1, zero_division=0))


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """(E,), (E,) or both (E, C) of 0 and 1 -> the mean over classes of each one's F1.

    Classes that neither are predicted nor occur are left out, as in CB's official script. In a multi-label task every
    class counts, with F1 0 where it is nowhere.
    """
    return float(f1_score(references, predictions, average="macro", zero_division=0))


def micro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """(E,), (E,) or both (E, C) of 0 and 1 -> F1 of all decisions of all classes together."""
    return float(f1_score(references, predictions, average="micro", zero_division=0))


def subset_accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Both (E, C) of 0 and 1 -> the share of examples with every label right."""
    return float(accuracy_score(references, predictions))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """(E,), (E,) -> Matthews' correlation of classes; 0 where either is constant, as CoLA's official script has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of a single class, which is one of the cases here
        return float(matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """(E,), (E,) -> Pearson's correlation; None where either is constant or not finite."""
    pair = _varying(predictions, references)
    return None if pair is None else float(stats.pearsonr(*pair).statistic)


def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float | None:
    """(E,), (E,) -> Spearman's correlation, ties at their mean rank; None where either is constant or not finite."""
    pair = _varying(predictions, references)
    return None if pair is None else float(stats.spearmanr(*pair).statistic)


def _varying(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Both in float64, if a correlation of them is defined."""
    pair = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    usable = all(values.size > 1 and np.isfinite(values).all() and np.ptp(values) > 0 for values in pair)
    return pair if usable else None
