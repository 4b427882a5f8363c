"""The eight tasks of SuperGLUE and its two diagnostic sets.

Wang et al., "SuperGLUE: A Stickier Benchmark for General-Purpose Language Understanding Systems" (NeurIPS 2019);
https://super.gluebenchmark.com. Columns and numbers of labels are those of the Hugging Face dataset ``aps/super_glue``
(there MultiRC has a row for each answer and ReCoRD one for each query), row counts those of the official files.
"""

from cramming.evaluation.tasks.task import Task

_DATA = "https://super.gluebenchmark.com/tasks"
_YES_NO = ("False", "True")
_ENTAILMENT = ("entailment", "not_entailment")

SUPERGLUE: tuple[Task, ...] = (
    Task(
        name="boolq",
        title="BoolQ",
        collection="superglue",
        kind="classification",
        fields=("question", "passage"),
        labels=_YES_NO,
        metrics=("accuracy",),
        rows={"train": 9427, "validation": 3270, "test": 3245},
        source=f"Clark et al., BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions (2019); {_DATA}",
    ),
    Task(
        name="cb",
        title="CB",
        collection="superglue",
        kind="classification",
        fields=("premise", "hypothesis"),
        labels=("entailment", "contradiction", "neutral"),
        metrics=("macro_f1", "accuracy"),
        rows={"train": 250, "validation": 56, "test": 250},
        source=f"de Marneffe, Simons & Tonhauser, The CommitmentBank (2019); {_DATA}",
    ),
    Task(
        name="copa",
        title="COPA",
        collection="superglue",
        kind="choice",
        fields=("premise", "question", "choice1", "choice2"),
        labels=("choice1", "choice2"),
        metrics=("accuracy",),
        rows={"train": 400, "validation": 100, "test": 500},
        choices=2,
        source=f"Roemmele, Bejan & Gordon, Choice of Plausible Alternatives (AAAI Spring Symposium 2011); {_DATA}",
    ),
    Task(
        name="multirc",
        title="MultiRC",
        collection="superglue",
        kind="classification",
        fields=("paragraph", "question", "answer"),
        labels=_YES_NO,
        metrics=("f1_a", "f1_m", "exact_match"),
        rows={"train": 27243, "validation": 4848, "test": 9693},
        groups=("paragraph", "question"),
        source=f"Khashabi et al., Looking Beyond the Surface (NAACL 2018); {_DATA}",
    ),
    Task(
        name="record",
        title="ReCoRD",
        collection="superglue",
        kind="classification",
        fields=("passage", "query", "entities"),
        labels=_YES_NO,  # whether an entity is the answer
        metrics=("record_f1", "record_exact_match"),
        rows={"train": 100730, "validation": 10000, "test": 10000},  # queries; 65709, 7481 and 7484 passages
        groups=("passage", "query"),
        source=f"Zhang et al., ReCoRD (2018); {_DATA}",
    ),
    Task(
        name="rte_superglue",
        title="RTE",
        collection="superglue",
        kind="classification",
        fields=("premise", "hypothesis"),
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        rows={"train": 2490, "validation": 277, "test": 3000},
        source=f"PASCAL Recognizing Textual Entailment 1, 2, 3 and 5 (2006-2009); {_DATA}",
    ),
    Task(
        name="wic",
        title="WiC",
        collection="superglue",
        kind="classification",
        fields=("word", "sentence1", "sentence2"),
        labels=_YES_NO,
        metrics=("accuracy",),
        rows={"train": 5428, "validation": 638, "test": 1400},
        span_count=2,
        source=f"Pilehvar & Camacho-Collados, WiC: The Word-in-Context Dataset (NAACL 2019); {_DATA}",
    ),
    Task(
        name="wsc",
        title="WSC",
        collection="superglue",
        kind="classification",
        fields=("text", "span1_text", "span2_text"),
        labels=_YES_NO,
        metrics=("accuracy",),
        rows={"train": 554, "validation": 104, "test": 146},
        span_count=2,
        source=f"Levesque, Davis & Morgenstern, The Winograd Schema Challenge (KR 2012); {_DATA}",
    ),
    Task(
        name="axb",
        title="AX-b",
        collection="superglue",
        kind="classification",
        fields=("sentence1", "sentence2"),
        labels=_ENTAILMENT,
        metrics=("matthews_correlation",),
        evaluated=("test",),
        rows={"test": 1104},
        trained_by="rte_superglue",
        source="Wang et al. (2019), https://super.gluebenchmark.com/diagnostics",
    ),
    Task(
        name="axg",
        title="AX-g",
        collection="superglue",
        kind="classification",
        fields=("premise", "hypothesis"),
        labels=_ENTAILMENT,
        metrics=("accuracy", "gender_parity"),
        evaluated=("test",),
        rows={"test": 356},
        groups=("pair",),
        trained_by="rte_superglue",
        source=f"Rudinger et al., Gender Bias in Coreference Resolution (NAACL 2018), as pairs; {_DATA}",
    ),
)
