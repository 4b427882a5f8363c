"""``eval.py``: what a trained model is worth on tasks, fine-tuned on each."""

import os
from collections.abc import Sequence

from omegaconf import OmegaConf

from cramming.cli import CONFIG_DIR
from cramming.errors import UserError
from cramming.evaluation.composing import asked, composed, several
from cramming.suggest import nearest

_MANY = ("-m", "--multirun")
_FLAGS = ("-h", "--help", "--cfg", "-c", "--config-dir", "-cd", *_MANY)

_HELP = """\
Fine-tune a trained model on tasks and score it: every task, every seed, in parallel over the machine's devices.

  python eval.py name=first                                  the suite glue_sane, of the run's last checkpoint
  python eval.py name=first eval=superglue eval.tasks=[cb,wic] seed=[0,1,2]
  python eval.py name=first eval=task eval.train_file=my.csv eval.label_column=topic      a task of your own
  python eval.py checkpoint=google/bert_uncased_L-2_H-128_A-2 eval=glue      anyone's: a folder, a file, a hub id
  python eval.py -m name='study_small-*'                     all runs that match, one after the other

Results go to <base_dir>/<name>/eval/<suite>/; the same command again goes on where it was.

Suites (eval=option, see config/eval/):
{suites}

Options people change most (option=value):
  name=first                    the run                                    [the one trained last]
  checkpoint=first@12h          another checkpoint of it; or anyone's
  weights=averaged              or last, or untrained: the same architecture, to compare with
  seed=[0,1,2]                  of every task                              [from the suite]
  eval.tasks=[cola,rte]         some of the suite's tasks
  eval.data_dir=my/glue         official folders or parquet files; generated: rows made here
  eval.lr=4e-5                  also batch_size, epochs, schedule, warmup, weight_decay, max_length, ...
  eval.per_task.rte.lr=1e-5     the same for one task
  eval.save_models=best         of each task's seeds; or all, or none
  impl.jobs=auto                at a time; one on each GPU, or as many as cores and memory allow
  wandb=none                    default, offline

Every option: python eval.py --cfg job
"""


def command(argv: Sequence[str]) -> None:
    """Run what a command line asks for.

    Raises:
        UserError: what is wrong with it; in the end, which jobs failed.
    """
    if {"-h", "--help"} & set(argv):
        print(_HELP.format(suites=_suites()))
        return
    words, flags = _parted(argv)
    config_dir = flags.get("--config-dir")
    if config_dir is not None and not os.path.isdir(config_dir):
        raise UserError(f"--config-dir {config_dir} is no folder")
    if "--cfg" in flags:
        if flags["--cfg"] != "job":
            raise UserError(f"--cfg {flags['--cfg']} is unknown; give --cfg job")
        print(OmegaConf.to_yaml(composed(words, config_dir)), end="")
        return
    if "-m" in flags:
        from cramming.evaluation.several import score_all  # needs torch

        score_all(several(words, config_dir), config_dir)
        return
    call = asked(words, config_dir)
    from cramming.evaluation.session import score  # needs torch

    score(call)


def _parted(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Options, and flags with their values.

    Raises:
        UserError: a flag that does not exist, or a word that is no option.
    """
    words: list[str] = []
    flags: dict[str, str] = {}
    rest = iter(argv)
    for word in rest:
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            if not equals:
                raise UserError(f"{word!r} is not an option: give key=value, such as name={word}")
            words.append(word)
        elif word in _MANY:
            flags["-m"] = ""
        elif flag in ("--cfg", "-c", "--config-dir", "-cd"):
            name = "--cfg" if flag in ("--cfg", "-c") else "--config-dir"
            flags[name] = value if equals else next(rest, "")
        else:
            raise UserError(f"unknown flag {word}{nearest(word, _FLAGS)}")
    return words, flags


def _suites() -> str:
    """A line for each suite: its name, and what its file says first."""
    lines = []
    for file in sorted((CONFIG_DIR / "eval").glob("*.yaml")):
        first = file.read_text(encoding="utf-8").split("\n", maxsplit=1)[0]
        lines.append(f"  {file.stem:<15} {first.removeprefix('# ')}")
    return "\n".join(lines) or "  (none yet)"
