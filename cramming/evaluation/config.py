"""What ``eval=...`` decides: tasks, where their rows are, and how a model is fine-tuned on each.

Nothing here imports torch: a mistake in a command line is answered at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming.errors import UserError
from cramming.recording.config import WandbConfig
from cramming.suggest import nearest

SCHEDULES = ("constant", "linear", "cosine", "polynomial")
OPTIMIZERS = ("adamw", "decoupled_adamw")
POOLERS = ("first", "mean")
SPANS = ("pooled", "marked")
CHOICES = ("each", "joint")
SAVED = ("all", "best", "none")
SEARCHES = ("none", "grid", "random")
KINDS = ("auto", "classification", "regression", "multilabel", "tokens")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Setting:
    """How one task is fine-tuned. Every key can be given for one task alone: ``eval.per_task.rte.lr=1e-5``."""

    lr: float = 4e-5  # peak
    batch_size: int = 16  # examples in an optimizer step
    epochs: float = 5
    min_steps: int = 0  # more epochs, where these would be fewer steps
    max_steps: int | None = None  # fewer, where they would be more
    schedule: str = "cosine"  # after the warm-up: constant, linear, cosine, polynomial
    end_factor: float = 0.0  # of the peak, at the end of linear, cosine and polynomial
    power: float = 1.0  # of polynomial
    warmup: float = 0.1  # below 1 a share of the steps, from 1 on steps
    # decoupled_adamw: the decay does not follow the peak rate (MosaicBERT's), p -= (lr_t / lr) * weight_decay * p
    optimizer: str = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    weight_decay: float = 0.0
    decay_all: bool = False  # norms and biases too
    clip_norm: float | None = None
    max_length: int = 128  # tokens of a text, special tokens included; no longer than the model takes
    evaluate_every_steps: int | None = None  # null: after every epoch; at the end in any case
    patience: int | None = None  # stop after so many evaluations without a better headline; null: never
    dropout: float | None = None  # of embeddings, sublayers and head; null: 0.1, or what the architecture says for it
    pooler: str | None = None  # first, mean: what the head reads; null: as the architecture has it
    spans: str = "pooled"  # pooled: the head reads the words asked about beside the pooled text; marked: in the text
    choices: str = "each"  # each: every choice is scored by itself; joint: all in one text, classified (COPA)
    start_from: str | None = None  # a task of the suite whose final model this one begins with; null: as pretrained
    precision: str | None = None  # null: impl.precision; or float32, say
    seeds: list[int] = field(default_factory=lambda: [0])


SETTING_KEYS = tuple(option.name for option in fields(Setting))


@dataclass
class Search:
    """Values to try for every task; each combination, or so many random ones, with the first of the seeds."""

    kind: str = "none"  # none, grid, random
    lr: list[float] = field(default_factory=list)
    batch_size: list[int] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    per_task: dict[str, Any] = field(default_factory=dict)  # lists of its own for one task
    trials: int | None = None  # of each task; null: the whole grid
    seed: int = 0  # of the draws
    # Share of the training rows that choose the setting; 0: the split that is reported does, and the result says so.
    heldout_fraction: float = 0.0


@dataclass
class Average:
    """One number for a suite, and the words that say what it is the mean of.

    Attributes:
        of: outcomes as ``task.metric``, ``task.metric@split``; each counts once.
        nested: the mean over tasks of the mean over a task's outcomes; else all outcomes count alike.
        rule: the same in words, printed wherever the number is.
    """

    of: list[str] = field(default_factory=list)
    nested: bool = False
    rule: str = ""


@dataclass
class OwnTask:
    """The columns of a task of one's own (``eval=task``)."""

    train_file: str | None = None  # csv, tsv, jsonl, parquet; or a Hugging Face id as eval.dataset
    validation_file: str | None = None  # null: a tenth of the training rows, the same at every repetition
    test_file: str | None = None  # to predict; labels are not needed
    dataset: str | None = None  # a hub id or folder instead of files
    subset: str | None = None
    task_name: str = "task"
    kind: str = "auto"  # auto: by the label column; classification, regression, multilabel, tokens
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    labels: list[str] = field(default_factory=list)  # in their order; empty: as they occur, sorted
    metric: str | None = None  # the headline; null: accuracy, pearson, f1


@dataclass
class EvalConfig(Setting, OwnTask):
    """A suite of tasks."""

    name: str = MISSING  # the results' folder: <run>/eval/<name>
    suite: str = MISSING  # what it is called
    tasks: list[str] = field(default_factory=list)
    # Official folders, parquet files, or what `python -m cramming.evaluation.download` fetched; null: its place, or
    # else the hub.
    data_dir: str | None = None
    per_task: dict[str, Any] = field(default_factory=dict)
    average: Average = field(default_factory=Average)
    save_models: str = "best"  # of each task's seeds; all; none
    search: Search = field(default_factory=Search)
    max_train_rows: int | None = None  # of every task, the first ones; for trying out
    # Seeds of parts of a job, where they shall be the same in all: null is the job's own seed.
    initialization_seed: int | None = None
    order_seed: int | None = None
    dropout_seed: int | None = None

    def setting(self, task: str) -> Setting:
        """How ``task`` is fine-tuned: the suite's values, and over them the task's own.

        Raises:
            UserError: an unknown key or an impossible value, named.
        """
        common = {key: getattr(self, key) for key in SETTING_KEYS}
        own: Mapping[str, Any] = self.per_task.get(task) or {}
        for key in own:
            if key not in SETTING_KEYS:
                raise UserError(f"eval.per_task.{task}.{key} is no setting of a task{nearest(str(key), SETTING_KEYS)}")
        try:
            tree = OmegaConf.merge(OmegaConf.structured(Setting), common, dict(own))
        except OmegaConfBaseException as error:
            raise UserError(f"eval.per_task.{task}: {str(error).splitlines()[0]}") from error
        setting = OmegaConf.to_object(tree)
        assert isinstance(setting, Setting)
        check_setting(setting, f"eval.per_task.{task}" if own else "eval")
        return setting


@dataclass
class EvalImpl:
    """What may change only the speed. ``auto`` is resolved once and stored with the results."""

    precision: str = "auto"
    threads: Any = "auto"  # of each job
    jobs: Any = "auto"  # at a time: one on each GPU; on a processor as many as cores and memory allow
    microbatch_size: Any = "auto"  # examples per pass


@dataclass
class EvaluateConfig:
    """One call of ``eval.py``."""

    name: str | None = None  # of a run; or, with a checkpoint that is no run's, where to put its results
    base_dir: str = "outputs"
    data_dir: str = "${base_dir}/_data"
    checkpoint: str | None = None  # a run's (x@12h, @step=4000), a folder, a file or a hub id
    weights: str = "averaged"  # those that the run's method lends, if it does; last; or untrained: fresh ones
    seed: Any = None  # instead of eval.seeds: one, or a list
    resume: bool = True  # false: forget the results of this suite and start over
    eval: EvalConfig = field(default_factory=EvalConfig)
    impl: EvalImpl = field(default_factory=EvalImpl)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def check_setting(setting: Setting, where: str) -> None:
    """Refuse values that cannot work.

    Args:
        setting: of one task.
        where: the keys' place, for messages.

    Raises:
        UserError: one of them, named.
    """
    for key, known in (
        ("schedule", SCHEDULES),
        ("optimizer", OPTIMIZERS),
        ("spans", SPANS),
        ("choices", CHOICES),
    ):
        _one_of(f"{where}.{key}", getattr(setting, key), known)
    if setting.pooler is not None:
        _one_of(f"{where}.pooler", setting.pooler, POOLERS)
    if setting.precision is not None:
        _one_of(f"{where}.precision", setting.precision, PRECISIONS)
    for key in ("lr", "batch_size", "epochs", "eps", "power"):
        _above(f"{where}.{key}", getattr(setting, key))
    for key in ("max_steps", "clip_norm", "evaluate_every_steps", "patience"):
        if getattr(setting, key) is not None:
            _above(f"{where}.{key}", getattr(setting, key))
    for key in ("warmup", "weight_decay", "min_steps"):
        value = getattr(setting, key)
        if not value >= 0 or not math.isfinite(value):
            raise UserError(f"{where}.{key}={value} must be 0 or more")
    if not 0 <= setting.end_factor <= 1:
        raise UserError(f"{where}.end_factor={setting.end_factor} is a share of the peak: give 0 to 1")
    if setting.dropout is not None and not 0 <= setting.dropout < 1:
        raise UserError(f"{where}.dropout={setting.dropout} must be from 0 to below 1")
    if len(setting.betas) != 2 or not all(0 <= beta < 1 for beta in setting.betas):
        raise UserError(f"{where}.betas={setting.betas} must be two numbers from 0 to below 1")
    if setting.max_length < 4:
        raise UserError(f"{where}.max_length={setting.max_length} is too short; it takes 4 or more, usually 128")
    if not setting.seeds or len(set(setting.seeds)) < len(setting.seeds):
        raise UserError(f"{where}.seeds={setting.seeds} must be one or more different numbers, such as [0,1,2]")
    if setting.max_steps is not None and setting.min_steps > setting.max_steps:
        raise UserError(f"{where}.min_steps={setting.min_steps} is above max_steps={setting.max_steps}")


def with_seeds(config: EvaluateConfig) -> EvaluateConfig:
    """``seed=`` in place of every task's ``seeds``.

    Raises:
        UserError: it is no whole number and no list of them.
    """
    if config.seed is None:
        return config
    seeds = config.seed if isinstance(config.seed, list) else [config.seed]
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise UserError(f"seed={config.seed} must be a whole number, or a list such as [0,1,2]")
    per_task = {
        task: {key: value for key, value in (own or {}).items() if key != "seeds"}
        for task, own in config.eval.per_task.items()
    }
    return replace(config, seed=None, eval=replace(config.eval, seeds=seeds, per_task=per_task))


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{key}={value} is not known{nearest(str(value), known)}")


def _above(key: str, value: float) -> None:
    if not value > 0 or not math.isfinite(value):
        raise UserError(f"{key}={value} must be above zero")


def register_schemas() -> None:
    """Put the schemas of ``config/evaluate.yaml`` and of ``config/eval/*.yaml`` into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="schema_evaluate", node=EvaluateConfig)
    store.store(group="eval", name="schema_suite", node=EvalConfig)
