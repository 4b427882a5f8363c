"""The command line: Hydra for training commands, one small ``key=value`` parser for the rest.

Whatever is wrong with what a person typed ends with one line on stderr and exit code 2. Torch is not imported here, so
that ``--help`` is answered at once.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cramming import registry
from cramming.composition import Tree, dotted_keys, explain
from cramming.config import CHOSEN, PretrainConfig, check_name, register_schemas, typed
from cramming.errors import RankFailed, UserError
from cramming.parallel.environment import NotMetError, launched, one_speaks
from cramming.suggest import nearest

CONFIG_DIR = Path(__file__).resolve().parents[1] / "config"
T = TypeVar("T")
# Hydra's own; see `--hydra-help`.
_FLAGS = (
    "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r", "--multirun", "-m",
    "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i",
)  # fmt: skip
_SWEEP = {"-m", "--multirun"}
_SHOWING = {"--hydra-help", "--version", "--cfg", "-c", "--shell-completion", "-sc", "--info", "-i"}  # nothing is run
DRY = "--dry"  # of a sweep: say what would be done, and what it costs

_HELP = """\
Pretrain a masked language model inside a fixed compute budget.

  python pretrain_bert.py name=first data=python_docs arch=bert_small budget=10m
  python pretrain_bert.py -m name=sweep seed=0,1,2 method=none,layer_stacking ...    every combination; --dry: its cost
  python pretrain_bert.py name=mixed data.mix='{{wikipedia: 0.7, python_docs: 0.3}}'    shares of several corpora
  python pretrain_bert.py name=more init_from=first budget=1    begin with the weights of a run, folder or hub id

A run lives in <base_dir>/<name>/; the same command again resumes it.

Groups (group=option, see config/):
{groups}

Options people change most (option=value):
  name=first                    the run's folder under base_dir            [default]
  budget=24                     hours of reference system time; also 30m, 90s
  stop_at=12                    end here and save; asking again goes on
  seed=0                        of weights, order and masks
  data.path=my/texts            file, folder or glob, for data=local
  data.seq_length=128           tokens in a sequence
  train.batch_size=1536         sequences in an optimizer step             [from arch]
  train.optim.lr=1e-3           peak learning rate                         [from train/optim]
  impl.microbatch_size=auto     sequences per pass; never changes the result
  impl.validate_every_h=6       hours of budget between validations        [at the end]

Every option: python pretrain_bert.py --cfg job
"""


def run_command(command: Callable[[], None], *, ranks: bool = False) -> NoReturn:
    """Run a command; print what a person did wrong as one line and exit with code 2.

    Ctrl-C exits with 130 and SIGTERM with 143, after the command has saved what it had to. What ends one of several
    ranks ends all of them, and one speaks.

    Args:
        command: what to do.
        ranks: whether torchrun may start it as several processes.
    """
    here = launched()
    together = here.world > 1
    if together:
        one_speaks(here)
    try:
        if together and not ranks:
            raise UserError("this command is one process: start it without torchrun; it takes what devices it can use")
        command()
        code = 0
    except UserError as error:
        if together:
            _end_ranks(f"error: {error}", 2, met=not isinstance(error, NotMetError))
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RankFailed as failed:
        print(failed, file=sys.stderr)
        code = 1
    except KeyboardInterrupt as interrupt:
        code = interrupt.args[0] if interrupt.args else 130
        if together and not interrupt.args:  # else all ranks have saved and end
            _end_ranks(f"rank {here.rank} was interrupted: all ranks end", code)
    except BrokenPipeError:  # the reader of our output is gone, as in `| head`
        if together:
            _end_ranks(f"nobody reads what rank {here.rank} writes any more: all ranks end", 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not together:
            raise
        lost = bool(re.search("gloo|nccl|connection|store", f"{type(error).__name__} {error}", re.IGNORECASE))
        _end_ranks(traceback.format_exc().rstrip(), 1, asks=lost)
    sys.exit(code)


def _end_ranks(line: str, code: int, *, asks: bool = False, met: bool = True) -> NoReturn:
    from cramming.parallel.watch import end  # needs torch

    end(line, code, asks=asks, met=met)


def pretraining(job: Callable[[PretrainConfig], None], argv: Sequence[str]) -> None:
    """Compose the configuration ``argv`` describes and hand it to ``job``; with ``-m``, that of every job of a sweep.

    Raises:
        UserError: what is wrong with the command line; in a sweep, after all jobs, which of them failed.
    """
    if {"-h", "--help"} & set(argv):
        print(_HELP.format(groups=_groups()))
        return
    load_schemas()
    if any(word.startswith("from_run=") for word in argv):
        job(repeated(argv))
        return
    words = readable(argv)
    for word in words:
        if word.startswith("-") and word.split("=")[0] not in (*_FLAGS, DRY):
            raise UserError(f"unknown flag {word}{nearest(word, (*_FLAGS, DRY))}")
    showing = bool(_SHOWING & {word.split("=")[0] for word in words})
    if _SWEEP & set(words) and not showing:
        if launched().world > 1:
            raise UserError("-m starts runs of its own: start it without torchrun; impl.devices= is for each of them")
        sweeping(words, lambda options, config_dir, dry: _sweep(options, job, config_dir, dry))
        return
    if DRY in words:
        raise UserError(f"{DRY} says what a sweep would do: add -m")
    if not showing and any(word.startswith("hydra/launcher=") for word in words):
        raise UserError("hydra/launcher= is for sweeps: add -m, for one run too; without, it would train here")
    _single(job, words)


def _single(job: Callable[[PretrainConfig], None], words: list[str]) -> None:
    """One run, or what Hydra's flags ask for."""
    import hydra

    # Hydra's parser wants all overrides together, behind the flags.
    words = sorted(words, key=lambda word: "=" in word and not word.startswith("-"))
    failures: list[UserError | RankFailed] = []

    def task(composed: DictConfig) -> None:
        try:
            if composed.study:
                parts = ", ".join(map(str, composed.study))
                raise UserError(f"this experiment is a study of several runs ({parts}): add -m; --dry says which")
            job(typed(composed))
        except (UserError, RankFailed) as error:  # of what is raised here Hydra would print more than a line
            failures.append(error)

    # With this set Hydra raises instead of printing a page and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        with explained(words):
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="pretrain")(task)()
        if failures:
            raise failures[0]
    except SystemExit as ended:  # argparse has already said what it could not read
        if ended.code:
            raise UserError("that command line cannot be read; see --help") from None
    finally:
        sys.argv = before


def sweeping(words: Sequence[str], run: Callable[[list[str], str | None, bool], None]) -> None:
    """Take the flags of a sweep off its words and run it: ``run(words, config_dir, dry)``.

    Raises:
        UserError: a flag that a sweep cannot have, or whatever is wrong with the words.
    """
    options: list[str] = []
    config_dir, dry = None, False
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            config_dir = value if equals else next(rest, "")
        elif word == DRY:
            dry = True
        elif word.startswith("-") and word not in _SWEEP:
            raise UserError(f"{word} is not for sweeps; leave it out")
        elif word not in _SWEEP:
            options.append(word)
    if config_dir is not None and not os.path.isdir(config_dir):
        raise UserError(f"--config-dir {config_dir} is no folder")
    if any(word.startswith("hydra/sweeper=") for word in options):
        raise UserError("hydra/sweeper= cannot be chosen: -m runs all combinations, python -m cramming.search searches")
    with explained(options):
        run(options, config_dir, dry)


@contextmanager
def explained(words: Sequence[str], of: Tree | None = None) -> Iterator[None]:
    """Hydra's errors in the block, as one line a person can act on.

    Args:
        words: the command line.
        of: the tree that is composed; None: that of ``pretrain_bert.py``.

    Raises:
        UserError: in place of them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = explain(error, list(words), of or Tree(compose_tree))
        if said is None:
            raise
        raise UserError(said) from error


def _sweep(words: list[str], job: Callable[[PretrainConfig], None], config_dir: str | None, dry: bool) -> None:
    from cramming.sweeps.sweep import sweep  # needs torch, which a single command line checks without

    sweep(words, job, config_dir=config_dir, dry=dry)


def compose(overrides: Sequence[str]) -> PretrainConfig:
    """A checked configuration from overrides, for commands that use a part of the tree.

    Raises:
        UserError: what is wrong with them.
    """
    load_schemas()
    words = readable(overrides)
    with explained(words):
        return typed(compose_tree(words))


def compose_tree(overrides: list[str], root: str = "pretrain") -> DictConfig:
    """The composed tree of ``config/<root>.yaml``, unchecked."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra_compose(root, overrides)


def load_schemas() -> None:
    """Register the schemas of everything that can be chosen."""
    register_schemas()
    registry.load_plugins()


def repeated(argv: Sequence[str]) -> PretrainConfig:
    """The stored configuration of ``from_run=``, under a new name and with single options changed.

    Raises:
        UserError: no such run, no new name, or a group among the changes.
    """
    words = dict(_option(word) for word in argv)
    source = check_name(words.pop("from_run"))
    base_dir = Path(words.get("base_dir", "outputs"))
    tree = stored_config(base_dir, source)
    if words.get("name", source) == source:
        raise UserError(f"from_run={source} repeats that run under another name: give name=...")
    groups = {group for group in registry.GROUPS if group in words} | {"experiment"} & set(words)
    if groups:
        raise UserError(f"from_run={source} takes single options on top, not {', '.join(sorted(groups))}=...")
    for key, value in words.items():
        if OmegaConf.select(tree, key, default=tree) is tree:
            raise UserError(f"unknown option {key}{nearest(key, dotted_keys(tree))}")
        OmegaConf.update(tree, key, OmegaConf.create(f"value: {value}").value)
    return typed(tree)


def stored_config(base_dir: Path, name: str) -> DictConfig:
    """A run's ``config.yaml``.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    file = base_dir / check_name(name) / "config.yaml"
    if not file.is_file():
        known = sorted(path.parent.name for path in base_dir.glob("*/config.yaml"))
        raise UserError(f"there is no run {name!r} in {base_dir}{nearest(name, known) or '; it holds no run yet'}")
    try:
        tree = OmegaConf.load(file)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    assert isinstance(tree, DictConfig)
    return tree


def parse(argv: Sequence[str], schema: type[T], usage: str) -> tuple[T, list[str]]:
    """Words of a small command: ``key=value`` into a dataclass, the others as positionals.

    Args:
        argv: the words.
        schema: a dataclass of the options, which are also its defaults.
        usage: printed for ``--help``.

    Raises:
        UserError: an unknown key or a wrong value.
        SystemExit: after ``--help``.
    """
    if {"-h", "--help"} & set(argv):
        print(usage)
        sys.exit(0)
    tree = OmegaConf.structured(schema)
    positionals = []
    for word in argv:
        match = re.match(r"([A-Za-z_][\w.]*)=", word)
        if match is None or (match[1] not in tree and " " in word):
            positionals.append(word)
            continue
        key, value = _option(word)
        if key not in tree:
            raise UserError(f"unknown option {key}{nearest(key, map(str, tree))}")
        try:
            tree[key] = _read(value)
        except (OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{word}: {str(error).splitlines()[0]}") from error
    result = OmegaConf.to_object(tree)
    assert isinstance(result, schema)
    return result, positionals


def job_name(name: str, override_dirname: str) -> str:
    """A multirun job's name: ``<name>-<its own overrides, sorted>``, the same at every repetition."""
    own = override_dirname.replace("[", "").replace("]", "").replace("/", ".")
    own = re.sub(r"(?<==)([^=]*)(?=,[^=]+=|$)", lambda values: values[1].replace(",", "+"), own)
    return check_name(f"{name}-{re.sub(r'[^A-Za-z0-9._=,+-]', '', own)}" if own else name)


def _read(value: str) -> Any:
    """A value as YAML reads it; what is no YAML, such as a title with a colon, is text."""
    try:
        return OmegaConf.create(f"value: {value}").value
    except YAMLError:
        return value


def _option(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"{word!r} is not an option: give key=value")
    return key.lstrip("+"), value


def readable(argv: Sequence[str]) -> list[str]:
    """The words as Hydra is to read them: quoted where they must be, ``data.mix=`` with what it stands for."""
    from cramming.data.mixture_words import expanded  # needs the registered data configs

    words = expanded([quoted(word) for word in argv])
    given = next((word.partition("=")[2] for word in reversed(argv) if word.startswith("init_from=")), "null")
    if given in ("", "null"):
        return words
    from cramming.exchange.initializing import adopted  # needs torch, which --help must not import

    return [*words, *adopted(given.strip("'\""), argv, CONFIG_DIR / "experiment")]


def quoted(word: str) -> str:
    """A word that Hydra's grammar cannot read, such as ``data.path=~/my texts``, with its value quoted for it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = word.partition("=")
    if not equals or word.startswith("-"):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return word


def _groups() -> str:
    lines = []
    for group in (*dict.fromkeys(CHOSEN.values()), "method", "wandb", "experiment"):
        options = sorted(file.stem for file in (CONFIG_DIR / group).glob("*.yaml"))
        lines.append(f"  {group:<15} {', '.join(options) or '(none yet)'}")
    return "\n".join(lines)
