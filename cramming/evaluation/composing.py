"""The command line of ``eval.py``: words to a checked ``EvaluateConfig``, or to one for each of several.

Nothing here imports torch.
"""

import fnmatch
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming.cli import CONFIG_DIR, compose_tree, explained, quoted
from cramming.composition import Tree
from cramming.config import check_name
from cramming.errors import UserError
from cramming.evaluation.config import (
    KINDS,
    PRECISIONS,
    SAVED,
    SEARCHES,
    EvaluateConfig,
    OwnTask,
    register_schemas,
    with_seeds,
)
from cramming.migration import evaluation as earlier
from cramming.suggest import nearest
from cramming.sweeps.cluster import Cluster, cluster_of

UNTRAINED = "untrained"
WEIGHTS = ("averaged", "last", UNTRAINED)
_GROUPS = ("eval", "wandb")
# Below these there are names of tasks, which are not in the tree before somebody types them.
_BY_TASK = re.compile(r"\+{0,2}(eval\.(?:search\.)?per_task\.)")
_ROOT = "evaluate"
_PATTERN = "*?["


@dataclass(frozen=True)
class Asked:
    """What one command line asks for.

    Attributes:
        config: checked.
        suite_tasks: tasks of the suite, before ``eval.tasks=`` chose among them.
        typed: keys on the command line, whose values are not adapted to the model in silence.
        words: the command line, but for what names a launcher.
        config_dir: another folder with configuration files.
        cluster: where jobs run; None: on this machine.
    """

    config: EvaluateConfig
    suite_tasks: tuple[str, ...]
    typed: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    config_dir: str | None = None
    cluster: Cluster | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of the suite, then others that were asked for; names as they are typed."""
        return tuple(dict.fromkeys([*self.suite_tasks, *self.config.eval.tasks]))


def asked(words: Sequence[str], config_dir: str | None = None) -> Asked:
    """What a command line without flags asks for.

    Args:
        words: ``key=value``.
        config_dir: another folder with configuration files.

    Raises:
        UserError: what is wrong with them.
    """
    tree = composed(words, config_dir)
    config = checked(tree)
    hydras = [word for word in words if _key(word).startswith(("hydra.", "hydra/"))]
    words = [word for word in words if word not in hydras]
    keys = frozenset(map(_key, words))
    if "eval.tasks" in keys:
        tree = composed([word for word in words if _key(word) in ("eval", "eval.name")], config_dir)
    cluster = _cluster(hydras, config_dir) if hydras else None
    return Asked(config, tuple(map(str, tree.eval.tasks)), keys, tuple(words), config_dir, cluster)


def _cluster(words: Sequence[str], config_dir: str | None) -> Cluster | None:
    """The cluster that ``hydra/launcher=`` and its fields name.

    Raises:
        UserError: a field that cannot be used.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return cluster_of(compose(_ROOT, [*words, *_searched(config_dir)], return_hydra_config=True).hydra.launcher)


def composed(words: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """The tree of a command line, unchecked.

    Raises:
        UserError: a word that cannot be used, with the nearest that can.
    """
    readable = _readable(words)
    tree = Tree(partial(compose_words, config_dir=config_dir), _GROUPS, earlier.instead)
    with explained(readable, tree):
        return compose_words(readable, config_dir)


def compose_words(words: list[str], config_dir: str | None = None) -> DictConfig:
    """Hydra's part; its errors pass."""
    register_schemas()
    return compose_tree([*words, *_searched(config_dir)], _ROOT)


def _searched(config_dir: str | None) -> list[str]:
    return [] if config_dir is None else [f"hydra.searchpath=['file://{os.path.abspath(config_dir)}']"]


def several(words: Sequence[str], config_dir: str | None = None) -> list[list[str]]:
    """The command lines that ``-m`` stands for: runs by a pattern or a list, suites by a list.

    Raises:
        UserError: no run matches, or another option has several values.
    """
    last = {_key(word): word.partition("=")[2].strip("'\"") for word in words}
    rest = [word for word in words if _key(word) not in ("name", "eval")]
    _refuse_lists(rest)
    base_dir = Path(str(composed([word for word in words if _key(word) == "base_dir"], config_dir).base_dir))
    names = [f"name={name}" for name in _names(last["name"], base_dir)] if "name" in last else [""]
    suites = [f"eval={suite}" for suite in last["eval"].split(",")] if "eval" in last else [""]
    return [[*filter(None, chosen), *rest] for chosen in itertools.product(names, suites)]


def _names(given: str, base_dir: Path) -> list[str]:
    """Runs that a list of names and patterns stands for, in its order; of a pattern, sorted."""
    runs = sorted(file.parent.name for file in base_dir.glob("*/config.yaml"))
    if given in runs:  # a run of a sweep may have commas in its name
        return [given]
    found: list[str] = []
    for part in given.split(","):
        if not any(sign in part for sign in _PATTERN):
            found.append(part)
            continue
        matching = [run for run in runs if fnmatch.fnmatchcase(run, part)]
        trained = [run for run in matching if any((base_dir / run / "checkpoints").glob("step=*/manifest.json"))]
        if not trained:
            untrained = f"; {', '.join(matching)} has no checkpoint yet" if matching else nearest(part, runs)
            raise UserError(f"no trained run in {base_dir} matches name={part}{untrained}")
        for run in sorted(set(matching) - set(trained)):
            print(f"{run} has no checkpoint yet and is left out")
        found += trained
    return list(dict.fromkeys(found))


def _readable(words: Sequence[str]) -> list[str]:
    """The words as Hydra is to read them.

    Raises:
        UserError: several values where there can be one.
    """
    for word in words:
        key, _, value = word.partition("=")
        if key == "name" and any(sign in value for sign in _PATTERN):
            raise UserError(f"{word} is a pattern: add -m to score every run that matches")
    found = []
    for word in words:
        if _key(word) == "name" and "," in word:  # a run of a sweep may have commas in its name
            word = "name='{}'".format(word.partition("=")[2].strip("'\""))  # noqa: PLW2901
        found.append(_renamed(quoted(word)))
    _refuse_lists(found)
    return found


def _refuse_lists(words: Sequence[str]) -> None:
    """Refuse ``key=a,b``, which is a sweep in Hydra's grammar.

    Raises:
        UserError: the word, and how a list is written.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for word in words:
        if "," not in word or not OverridesParser.create().parse_override(quoted(word)).is_sweep_override():
            continue
        key, value = _key(word), word.partition("=")[2]
        if key in ("name", "eval"):
            raise UserError(f"{word}: several values: add -m to score each")
        raise UserError(f"{word}: only name= and eval= can have several values, with -m; a list is {key}=[{value}]")


def _renamed(word: str) -> str:
    """A word with what Hydra needs to add a task's key, and with the suite's name as it is here."""
    if _BY_TASK.match(word):
        return _BY_TASK.sub(r"++\1", word, count=1)
    if word.startswith("eval="):
        return f"eval={earlier.suite(word.removeprefix('eval='))}"
    return word


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def checked(tree: DictConfig) -> EvaluateConfig:
    """A composed tree as dataclasses whose values can be used.

    Raises:
        UserError: one that cannot, named.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(EvaluateConfig), OmegaConf.to_container(tree, resolve=True))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        first = str(error).split("\n", maxsplit=1)[0]
        raise UserError(f"{error.full_key}: {first}" if getattr(error, "full_key", None) else first) from error
    assert isinstance(config, EvaluateConfig)
    config = with_seeds(config)
    for said in _impossible(config):
        raise UserError(said)
    for task in dict.fromkeys([*config.eval.tasks, *config.eval.per_task]) or [config.eval.task_name]:
        config.eval.setting(task)
    return config


def _impossible(config: EvaluateConfig) -> Iterator[str]:
    """What cannot be used, the first of which is said."""
    if config.name is not None:
        check_name(config.name)
    for key in ("base_dir", "data_dir"):
        if not getattr(config, key).strip():
            yield f"{key} is empty; give a folder, or leave it out"
    suite, impl = config.eval, config.impl
    for key, value, known in (
        ("weights", config.weights, WEIGHTS),
        ("eval.save_models", suite.save_models, SAVED),
        ("eval.search.kind", suite.search.kind, SEARCHES),
        ("eval.kind", suite.kind, KINDS),
        ("impl.precision", impl.precision, PRECISIONS),
    ):
        if value not in known:
            yield f"{key}={value} is unknown{nearest(str(value), known)}"
    for key in ("threads", "jobs", "microbatch_size"):
        count = getattr(impl, key)
        if count != "auto" and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            yield f"impl.{key}={count} must be auto or a whole number from 1"
    if suite.max_train_rows is not None and suite.max_train_rows < 1:
        yield f"eval.max_train_rows={suite.max_train_rows} must be 1 or more; null takes all"
    if not 0 <= suite.search.heldout_fraction < 1:
        yield f"eval.search.heldout_fraction={suite.search.heldout_fraction} is a share: give 0 to below 1"
    twice = [task for task in suite.tasks if suite.tasks.count(task) > 1]
    if twice:
        yield f"eval.tasks names {twice[0]} twice"


def origin(config: EvaluateConfig) -> dict[str, Any]:
    """What says which rows a task is made of: two results are of the same rows only where this is the same."""
    suite = config.eval
    own = {option.name: getattr(suite, option.name) for option in fields(OwnTask)}
    return {"data_dir": suite.data_dir, "max_train_rows": suite.max_train_rows, **own}
