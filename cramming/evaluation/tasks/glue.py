"""The nine tasks of GLUE and its diagnostic set.

Wang, Singh, Michael, Hill, Levy & Bowman, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding" (ICLR 2019); https://gluebenchmark.com. Columns and numbers of labels are those of the Hugging Face
dataset ``nyu-mll/glue``, row counts those of the official files.
"""

from cramming.evaluation.tasks.task import Task

_DATA = "https://gluebenchmark.com/tasks"


GLUE: tuple[Task, ...] = (
    Task(
        name="cola",
        title="CoLA",
        collection="glue",
        kind="classification",
        fields=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        rows={"train": 8551, "validation": 1043, "test": 1063},
        source=f"Warstadt, Singh & Bowman, Neural Network Acceptability Judgments (TACL 2019); {_DATA}",
    ),
    Task(
        name="sst2",
        title="SST-2",
        collection="glue",
        kind="classification",
        fields=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        rows={"train": 67349, "validation": 872, "test": 1821},
        source=f"Socher et al., Recursive Deep Models for Semantic Compositionality (EMNLP 2013); {_DATA}",
    ),
    Task(
        name="mrpc",
        title="MRPC",
        collection="glue",
        kind="classification",
        fields=("sentence1", "sentence2"),
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        rows={"train": 3668, "validation": 408, "test": 1725},
        source=f"Dolan & Brockett, Automatically Constructing a Corpus of Sentential Paraphrases (IWP 2005); {_DATA}",
    ),
    Task(
        name="stsb",
        title="STS-B",
        collection="glue",
        kind="regression",
        fields=("sentence1", "sentence2"),
        labels=(),
        metrics=("pearson", "spearmanr"),
        rows={"train": 5749, "validation": 1500, "test": 1379},
        source=f"Cer et al., SemEval-2017 Task 1: Semantic Textual Similarity; {_DATA}",
    ),
    Task(
        name="qqp",
        title="QQP",
        collection="glue",
        kind="classification",
        fields=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        rows={"train": 363849, "validation": 40430, "test": 390965},
        source=f"Iyer, Dandekar & Csernai, First Quora Dataset Release: Question Pairs (2017); {_DATA}",
    ),
    Task(
        name="mnli",
        title="MNLI",
        collection="glue",
        kind="classification",
        fields=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        evaluated=("validation_matched", "validation_mismatched"),
        rows={
            "train": 392702,
            "validation_matched": 9815,
            "validation_mismatched": 9832,
            "test_matched": 9796,
            "test_mismatched": 9847,
        },
        source=f"Williams, Nangia & Bowman, A Broad-Coverage Challenge Corpus (NAACL 2018); {_DATA}",
    ),
    Task(
        name="qnli",
        title="QNLI",
        collection="glue",
        kind="classification",
        fields=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        rows={"train": 104743, "validation": 5463, "test": 5463},
        source=f"Rajpurkar et al., SQuAD (EMNLP 2016), as pairs by Wang et al. (2019); {_DATA}",
    ),
    Task(
        name="rte",
        title="RTE",
        collection="glue",
        kind="classification",
        fields=("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        rows={"train": 2490, "validation": 277, "test": 3000},
        source=f"PASCAL Recognizing Textual Entailment 1, 2, 3 and 5 (2006-2009); {_DATA}",
    ),
    Task(
        name="wnli",
        title="WNLI",
        collection="glue",
        kind="classification",
        fields=("sentence1", "sentence2"),
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        rows={"train": 635, "validation": 71, "test": 146},
        source=f"Levesque, Davis & Morgenstern, The Winograd Schema Challenge (KR 2012), as pairs; {_DATA}",
    ),
    Task(
        name="ax",
        title="AX",
        collection="glue",
        kind="classification",
        fields=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("matthews_correlation",),
        evaluated=(),  # its labels are the server's
        rows={"test": 1104},
        trained_by="mnli",
        source="Wang et al. (2019), https://gluebenchmark.com/diagnostics",
    ),
)
