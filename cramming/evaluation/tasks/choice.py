"""Multiple choice: each ending, or each option, is read by itself, and the model says which fits best.

Columns and row counts are those of the Hugging Face datasets ``allenai/swag`` (subset ``regular``) and ``ehovy/race``
(subset ``all``).
"""

from cramming.evaluation.tasks.task import Task

CHOICE: tuple[Task, ...] = (
    Task(
        name="swag",
        title="SWAG",
        collection="choice",
        kind="choice",
        fields=("startphrase", "ending0", "ending1", "ending2", "ending3"),
        labels=("ending0", "ending1", "ending2", "ending3"),
        metrics=("accuracy",),
        rows={"train": 73546, "validation": 20006, "test": 20005},
        choices=4,
        source="Zellers, Bisk, Schwartz & Choi, SWAG (EMNLP 2018), https://rowanzellers.com/swag",
    ),
    Task(
        name="race",
        title="RACE",
        collection="choice",
        kind="choice",
        fields=("article", "question", "options"),
        labels=("A", "B", "C", "D"),
        metrics=("accuracy",),
        rows={"train": 87866, "validation": 4887, "test": 4934},
        choices=4,
        source="Lai, Xie, Liu, Yang & Hovy, RACE (EMNLP 2017), https://www.cs.cmu.edu/~glai1/data/race",
    ),
)
