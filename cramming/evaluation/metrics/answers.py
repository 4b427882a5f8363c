"""Answers as texts: ReCoRD (Zhang et al., 2018), judged as SQuAD 1.1 judges its answers."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only, as the official script has it


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles, words one space apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the words that prediction and answer share, each counted as often as it occurs; 0 where none is shared."""
    predicted, wanted = normalized(prediction).split(), normalized(answer).split()
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def record(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """The means over queries of the best match with any of a query's answers.

    Args:
        predictions: one text for each query.
        answers: the right texts of each query, one or more.

    Returns:
        ``record_f1`` of words and ``record_exact_match``.
    """
    f1 = [max(token_f1(text, answer) for answer in of) for text, of in zip(predictions, answers, strict=True)]
    exact = [
        any(normalized(text) == normalized(answer) for answer in of)
        for text, of in zip(predictions, answers, strict=True)
    ]
    return {"record_f1": float(np.mean(f1)), "record_exact_match": float(np.mean(exact))}
