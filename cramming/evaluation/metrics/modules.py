"""The metrics as ``evaluate.Metric`` classes: made directly, without a network and without a file.

from cramming.evaluation.metrics.modules import MultiRC
MultiRC().compute(predictions=[1, 0], references=[1, 1], groups=["a", "b"])
"""

from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from cramming.evaluation.metrics import answers, entities, grouped, single

_CLASS, _VALUE, _TEXT = datasets.Value("int64"), datasets.Value("float64"), datasets.Value("string")


class Offline(evaluate.Metric):
    """A metric that is held in memory unless asked otherwise.

    Attributes:
        columns: what ``compute`` takes, with its type.
        source: of the definition.
    """

    columns: ClassVar[dict[str, Any]]
    source: ClassVar[str] = ""

    def __init__(self, keep_in_memory: bool = True, **options: Any) -> None:
        super().__init__(keep_in_memory=keep_in_memory, **options)

    def _build_data_dir(self) -> str:
        """The folder of temporary files; none is made where there are none."""
        return "" if self.keep_in_memory else str(super()._build_data_dir())

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=self.source,
            inputs_description=f"Columns: {', '.join(self.columns)}.",
            features=datasets.Features(self.columns),
        )


def _single(name: str, function: Callable[[np.ndarray, np.ndarray], float | None], column: Any) -> type[Offline]:
    """The class of a metric that judges every example by itself."""

    def _compute(self: Offline, predictions: Any, references: Any) -> dict[str, float | None]:
        return {function.__name__: function(np.asarray(predictions), np.asarray(references))}

    columns = {"predictions": column, "references": column}
    return type(name, (Offline,), {"__doc__": function.__doc__, "columns": columns, "_compute": _compute})


_LABELS = datasets.Sequence(_CLASS)
Accuracy = _single("Accuracy", single.accuracy, _CLASS)
F1 = _single("F1", single.f1, _CLASS)
MacroF1 = _single("MacroF1", single.macro_f1, _CLASS)
MicroF1 = _single("MicroF1", single.micro_f1, _CLASS)
MatthewsCorrelation = _single("MatthewsCorrelation", single.matthews_correlation, _CLASS)
Pearson = _single("Pearson", single.pearson, _VALUE)
SpearmanR = _single("SpearmanR", single.spearmanr, _VALUE)
SubsetAccuracy = _single("SubsetAccuracy", single.subset_accuracy, _LABELS)
MultilabelMacroF1 = _single("MultilabelMacroF1", single.macro_f1, _LABELS)
MultilabelMicroF1 = _single("MultilabelMicroF1", single.micro_f1, _LABELS)


class MultiRC(Offline):
    """MultiRC's ``f1_a``, ``exact_match``, ``f1_m`` and ``f1_m_binary``; ``groups`` names each answer's question."""

    columns: ClassVar = {"predictions": _CLASS, "references": _CLASS, "groups": _TEXT}
    source = "Khashabi et al., Looking Beyond the Surface, NAACL 2018"

    def _compute(self, predictions: Any, references: Any, groups: Any) -> dict[str, float]:
        return grouped.multirc(np.asarray(predictions), np.asarray(references), list(groups))


class ReCoRD(Offline):
    """ReCoRD's ``record_f1`` and ``record_exact_match``; ``references`` are the right texts of each query."""

    columns: ClassVar = {"predictions": _TEXT, "references": datasets.Sequence(_TEXT)}
    source = "Zhang et al., ReCoRD, arXiv:1810.12885"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return answers.record(list(predictions), list(references))


class GenderParity(Offline):
    """AX-g's share of pairs with equal predictions; ``groups`` names each example's pair."""

    columns: ClassVar = {"predictions": _CLASS, "groups": _TEXT}
    source = "Rudinger et al., Gender Bias in Coreference Resolution, NAACL 2018"

    def _compute(self, predictions: Any, groups: Any) -> dict[str, float]:
        return {"gender_parity": grouped.gender_parity(np.asarray(predictions), list(groups))}


class EntityF1(Offline):
    """F1 of entities in BIO tags; both columns are lists of tags for each text."""

    columns: ClassVar = {"predictions": datasets.Sequence(_TEXT), "references": datasets.Sequence(_TEXT)}
    source = "Tjong Kim Sang and De Meulder, CoNLL-2003"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"entity_f1": entities.entity_f1(list(predictions), list(references))}
