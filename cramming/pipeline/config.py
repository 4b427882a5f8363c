"""What ``pipeline.py experiment=...`` does: the command line of every stage, in one file.

Nothing here imports torch: a mistake in a command line is answered at once.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming.cli import CONFIG_DIR
from cramming.config import check_name
from cramming.errors import UserError
from cramming.suggest import nearest

STAGES = ("data", "pretrain", "validate", "module_task", "evaluate", "report", "submit")


@dataclass
class PipelineConfig:
    """One pipeline. Words are those a person would type behind the command; ``name=`` and ``base_dir=`` are added."""

    name: str = MISSING
    base_dir: str = "outputs"
    data_dir: str = "${base_dir}/_data"
    folder: str = "${base_dir}/_pipelines/${name}"  # of what is no run's: the record, the page, the zips
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    pretrain: str = MISSING  # words of pretrain_bert.py; with -m a sweep or a study
    runs: str | None = None  # which runs go on from there: a name or a glob; null: the pipeline's own
    validate: str = ""  # words of validate_bert.py, such as probes=[minimal_pairs]
    module_task: int | None = None  # sentences per module of a task made of the installed packages' documentation
    evaluate: dict[str, str] = field(default_factory=dict)  # label -> words of eval.py
    report: str = ""  # words of report.py
    launcher: str = ""  # of pretraining and fine-tuning: slurm, ray or joblib, and fields of it: "slurm partition=gpu"
    submit: dict[str, str] = field(default_factory=dict)  # label -> words of cramming.evaluation.submit


def load(words: Sequence[str], config_dir: Path = CONFIG_DIR / "pipeline") -> PipelineConfig:
    """The pipeline a command line describes.

    Options of the pipeline itself replace what its file says. Words that begin with ``eval.`` go to every fine-tuning,
    all others to pretraining.

    Args:
        words: ``experiment=<a file in config/pipeline>`` and more.
        config_dir: where the files are.

    Raises:
        UserError: no such experiment, an unknown stage, or words that cannot be read.
    """
    known = sorted(file.stem for file in config_dir.glob("*.yaml"))
    given = dict(_option(word) for word in words)
    experiment = given.pop("experiment", None)
    if experiment is None:
        raise UserError(f"name a pipeline with experiment=; there are: {', '.join(known)}")
    if experiment not in known:
        raise UserError(f"experiment={experiment} is no pipeline{nearest(experiment, known)}")
    own = {key: value for key, value in given.items() if key in PipelineConfig.__dataclass_fields__}
    others = [word for word in words if _option(word)[0] not in (*own, "experiment")]
    try:
        tree = OmegaConf.merge(
            OmegaConf.structured(PipelineConfig),
            OmegaConf.load(config_dir / f"{experiment}.yaml"),
            OmegaConf.create({key: _value(value) for key, value in own.items()}),
        )
        assert isinstance(tree, DictConfig)
        fields = [word.removeprefix("hydra.launcher.") for word in others if word.startswith("hydra.launcher.")]
        tree.launcher = _joined(tree.launcher, fields)
        others = [word for word in others if not word.startswith("hydra.launcher.")]
        tree.pretrain = _joined(tree.pretrain, [word for word in others if not word.startswith("eval.")])
        for label in tree.evaluate:
            tree.evaluate[label] = _joined(tree.evaluate[label], [w for w in others if w.startswith("eval.")])
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or f"experiment={experiment}"
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, PipelineConfig)
    check_name(config.name)
    if config.launcher and "=" in split(config.launcher)[0]:
        raise UserError("hydra.launcher.*= are fields of a launcher: name it with launcher=slurm, ray or joblib")
    for stage in config.stages:
        if stage not in STAGES:
            raise UserError(f"stages has {stage!r}, which is none{nearest(stage, STAGES)}")
    return config


def split(words: str) -> list[str]:
    """Words as a shell would read them; no shell ever does.

    Raises:
        UserError: a quote that is not closed.
    """
    try:
        return shlex.split(words)
    except ValueError as error:
        raise UserError(f"{words!r} cannot be read: {error}") from error


def launched(line: Sequence[str], launcher: str) -> list[str]:
    """A stage's command line, on the launcher where it is a pretraining or a fine-tuning; a single run becomes a sweep
    of one, which has the run's own name.

    Args:
        line: program and words.
        launcher: ``PipelineConfig.launcher``.
    """
    program = Path(line[0]).name
    if not launcher or program not in ("pretrain_bert.py", "eval.py"):
        return list(line)
    option, *fields = split(launcher)
    many = [] if program == "eval.py" or "-m" in line else ["-m"]
    return [line[0], *many, *line[1:], f"hydra/launcher={option}", *(f"hydra.launcher.{field}" for field in fields)]


def _joined(words: str, more: Sequence[str]) -> str:
    """A command line with words that have the last say behind it."""
    return " ".join(filter(None, (words.strip(), shlex.join(more))))


def _option(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"{word!r} is not an option: give key=value, such as experiment=demo_pipeline")
    return key.lstrip("+"), value


def _value(text: str) -> object:
    return OmegaConf.create(f"value: {text}").value
