"""Metrics that judge several examples together: MultiRC's questions, AX-g's pairs.

Shape legend: E examples, G groups.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from cramming.evaluation.metrics import single


def multirc(predictions: np.ndarray, references: np.ndarray, groups: Sequence[Hashable]) -> dict[str, float]:
    """MultiRC: which of a question's answers are right; a question may have several (Khashabi et al., NAACL 2018).

    Args:
        predictions: (E,) 1 where an answer is taken to be right.
        references: (E,) 1 where it is.
        groups: (E,) the question of each answer, paragraph included.

    Returns:
        ``f1_a``: F1 of right answers, over all questions' answers. ``exact_match``: share of questions with every
        answer judged right. ``f1_m``: mean over questions of the macro F1 of their answers, as the SuperGLUE script of
        Hugging Face has it. ``f1_m_binary``: the same with the F1 of right answers, as the original toolkit has it.
    """
    predictions, references = np.asarray(predictions) == 1, np.asarray(references) == 1
    question = _numbered(groups)
    # Each (G,): counted at once, since there are a thousand questions at every evaluation.
    both, either, neither = (
        np.bincount(question, weights=cases)
        for cases in (predictions & references, predictions ^ references, ~predictions & ~references)
    )
    right = _f1(both, either)
    wrong = _f1(neither, either)
    there = (both + either > 0).astype(int) + (neither + either > 0)  # classes that occur or are predicted
    return {
        "f1_a": single.f1(predictions, references),
        "exact_match": float(np.mean(either == 0)),
        "f1_m": float(np.mean((right + wrong) / there)),
        "f1_m_binary": float(np.mean(right)),
    }


def gender_parity(predictions: np.ndarray, groups: Sequence[Hashable]) -> float:
    """AX-g: the share of pairs, alike but for the gender of a pronoun, that get the same class (Rudinger et al., 2018).

    Args:
        predictions: (E,) classes.
        groups: (E,) the pair of each example.
    """
    predictions, pair = np.asarray(predictions), _numbered(groups)
    order = np.argsort(pair, kind="stable")
    begins = np.flatnonzero(np.diff(pair[order], prepend=-1))
    low, high = (extreme.reduceat(predictions[order], begins) for extreme in (np.minimum, np.maximum))
    return float(np.mean(low == high))


def _numbered(groups: Sequence[Hashable]) -> np.ndarray:
    """(E,) the number of each example's group, from 0, as they occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def _f1(hits: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """(G,), (G,) -> 2 TP / (2 TP + FP + FN), 0 where there is neither; FP + FN is the same for both classes."""
    return 2 * hits / np.maximum(2 * hits + errors, 1)
