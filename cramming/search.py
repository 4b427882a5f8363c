"""``python -m cramming.search``: learning rate and weight decay, tried as often and for as long for everyone compared.

Trials are ordinary runs, asked for by Optuna. The search keeps nothing but them: asked again, Optuna proposes the same
trials, those that are finished are passed over, and so the same command goes on where it was.
"""

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from filelock import FileLock

from cramming.cli import load_schemas, parse, readable, run_command, sweeping
from cramming.config import PretrainConfig, check_name
from cramming.errors import UserError
from cramming.suggest import nearest
from cramming.sweeps import outcomes, stages
from cramming.sweeps.jobs import Job, expand
from cramming.sweeps.launch import Launch, launching
from cramming.sweeps.outcomes import Outcome
from cramming.sweeps.sweep import run_jobs, tables_file
from cramming.text import number

_USAGE = """\
Find learning rate and weight decay for each of several optimizers, methods or whatever else a sweep can compare. Every
one of them gets the same number of trials, of the same budget.

  python -m cramming.search name=tune experiment=study_small train/optim=adamw,lion,sophiag,muon --dry
  python -m cramming.search name=tune experiment=study_small train/optim=adamw,lion,sophiag,muon
  python -m cramming.search name=tune arch=bert_small budget=2m method=none,layer_stacking lr=[5e-4,1e-3,2e-3] trials=6

The same command again goes on where it was. --dry says what it would cost. Trials are runs named <name>-...

Options: those of pretrain_bert.py -m, and
  trials=12                     for each            [all of the grid]
  lr=[1e-4,1e-3]                rates to try, for all alike
  lr_around=[0.5,1,2]           the same, as multiples of each optimizer's own default
  weight_decay=[0.01,0.1]       decays to try; weight_decay_around= as above
  sampler=grid                  grid: of these values; random, tpe: anything between the smallest and the largest
  sampler_seed=0                another order of the grid, another sequence of draws

Without lr= and weight_decay=, adamw, lion and sophiag try 1e-4, 4e-4, 7e-4 and 1e-3 with 0.01, 0.015 and 0.1: every
value that "No Train No Gain" took for one of these three. That they were its grid is a guess: the paper names what it
chose. Other optimizers try a quarter, half, once and twice their own rate, and a tenth, once and ten times their decay.
Trials have seed=1000, so that the runs they lead to (seed=0,1,2) are not those that chose the values."""

TRIAL_SEED = 1000
SAMPLERS = ("grid", "random", "tpe")
STUDY = ("adamw", "lion", "sophiag")
# Of https://arxiv.org/abs/2307.06440: what it settled on for AdamW (1e-3, 0.01), Lion (7e-4, 0.1) and Sophia (4e-4,
# 0.015), and the rate its files have for Lion (1e-4).
STUDY_LR = (1e-4, 4e-4, 7e-4, 1e-3)
STUDY_WEIGHT_DECAY = (0.01, 0.015, 0.1)
AROUND_LR = (0.25, 0.5, 1.0, 2.0)
AROUND_WEIGHT_DECAY = (0.1, 1.0, 10.0)
_KEYS = ("lr", "weight_decay")


@dataclass
class Options:
    """What this command has beside the options of a sweep."""

    trials: int | None = None
    sampler: str = "grid"
    sampler_seed: int = 0
    lr: list[float] = field(default_factory=list)
    lr_around: list[float] = field(default_factory=list)
    weight_decay: list[float] = field(default_factory=list)
    weight_decay_around: list[float] = field(default_factory=list)


@dataclass
class Arm:
    """One of what is compared: its part of the command line, the values it may try, and the trials it had."""

    name: str
    words: list[str]
    config: PretrainConfig
    space: dict[str, list[float]]
    study: Any  # Optuna's
    joint: str  # between its name and the values of a trial
    tried: list[tuple[dict[str, float], Job, Outcome]] = field(default_factory=list)

    def losses(self) -> list[tuple[float, dict[str, float]]]:
        """Validation loss and values of every trial that has one, the best first."""
        found = [(loss_of(job, outcome), values) for values, job, outcome in self.tried]
        return sorted(((loss, values) for loss, values in found if loss is not None), key=lambda pair: pair[0])


def command(argv: list[str]) -> None:
    """Search, as far as that is not done yet.

    Raises:
        UserError: what is wrong with the command line; in the end, that trials failed.
        SystemExit: after ``--help``.
    """
    names = {option.name for option in fields(Options)} | {"-h", "--help"}
    own = [word for word in argv if word.partition("=")[0] in names]
    options, _ = parse(own, Options, _USAGE)
    if options.sampler not in SAMPLERS:
        raise UserError(f"sampler={options.sampler} is not known{nearest(options.sampler, SAMPLERS)}")
    load_schemas()
    from cramming.session import pretrain

    words = readable([word for word in argv if word not in own])
    sweeping(words, lambda rest, config_dir, dry: search(rest, options, pretrain, config_dir, dry))


def search(
    words: Sequence[str],
    options: Options,
    job: Callable[[PretrainConfig], None],
    config_dir: str | None = None,
    dry: bool = False,
) -> None:
    """Give every arm its trials and say which were best.

    Args:
        words: of the sweep whose jobs are the arms.
        options: what is tried.
        job: trains one run.
        config_dir: another folder with configuration files.
        dry: only say what it costs.

    Raises:
        UserError: words that cannot be used, or trials that failed.
    """
    with launching(words, config_dir) as launch:
        name = check_name(str(launch.common.name or "search"))
        arms = _arms(launch, name, options)
        trials = min(_grid_size(arm) for arm in arms) if options.trials is None else options.trials
        _check(arms, trials, options)
        first, unit_s = arms[0].config, arms[0].config.rst.unit_s
        each_s = first.stop_at_s or first.budget_s
        print(
            f"search {name}: {len(arms)} x {trials} trials of {stages.cost(each_s, unit_s)}, "
            f"{stages.cost(len(arms) * trials * each_s, unit_s)} by rst={first.rst.kind}, trials done before included"
        )
        if dry:
            for arm in arms:
                print(f"  {arm.name}: {'; '.join(f'{key} {_shown(values)}' for key, values in arm.space.items())}")
            print("nothing was started: leave --dry out to run it")
            return
        rounds = [1] * trials if _learns(arms[0]) else [trials]
        with launch.beside(len(arms) * rounds[0]):
            for several in rounds:
                _round(launch, arms, several, job, len(arms) * trials)
        file = tables_file(launch, name)
        with FileLock(file.with_name(f".{name}.lock")):
            tried = [(trial, outcome) for arm in arms for _, trial, outcome in arm.tried]
            outcomes.show(f"search {name}: trials", outcomes.rows(tried), file.with_name(f"{name}_trials.md"))
            columns = ("compared", "trials", "best loss", "lr", "weight decay", "remarks")
            outcomes.show(f"search {name}: best of {trials} trials each", [_row(arm) for arm in arms], file, columns)
    for arm in arms:
        if found := arm.losses():
            print(_command(name, arm, found[0][1]))
    failed = sum(outcome.state == "failed" for _, outcome in tried)
    if failed:
        first_said = next(outcome.said for _, outcome in tried if outcome.state == "failed")
        raise UserError(f"{failed} of {len(tried)} trials failed, the first with: {first_said}")


def loss_of(job: Job, outcome: Outcome) -> float | None:
    """The validation loss a trial ended with; None if it has none that can be compared."""
    if outcome.state not in ("trained", "finished before"):
        return None
    loss = (outcomes.summary_of(job.run_dir) or {}).get("validation_loss")
    return float(loss) if loss is not None and math.isfinite(loss) else None


def _arms(launch: Launch, name: str, options: Options) -> list[Arm]:
    keys = {word.partition("=")[0].lstrip("+") for word in launch.words}
    for key in _KEYS:
        if f"train.optim.{key}" in keys:
            raise UserError(f"train.optim.{key}= is what this command searches: say what it may try with {key}=[...]")
    seed = [] if "seed" in keys else [f"seed={TRIAL_SEED}"]
    arms = []
    for named, words in expand(name, [*seed, *launch.words], launch.loader):
        job = launch.composed(named, words)
        if job.config is None:
            raise UserError(f"{named}: {job.refused}")
        space = {key: _values(key, job.config, options) for key in _KEYS}
        arms.append(Arm(named, words[:-1], job.config, space, _study(space, options), "-" if named == name else ","))
    return arms


def _values(key: str, config: PretrainConfig, options: Options) -> list[float]:
    """What an arm may try of ``lr`` or ``weight_decay``, from the smallest to the largest."""
    optim = config.train.optim
    own = getattr(optim, key, None)
    if own is None:
        raise UserError(f"train/optim={optim.kind} has no {key} to search")
    given, around = getattr(options, key), getattr(options, f"{key}_around")
    if given and around:
        raise UserError(f"{key}= and {key}_around= both say what to try; give one of them")
    if not (given or around):
        listed = {"lr": STUDY_LR, "weight_decay": STUDY_WEIGHT_DECAY}[key]
        if optim.kind in STUDY or own == 0:
            given = listed
        else:
            around = {"lr": AROUND_LR, "weight_decay": AROUND_WEIGHT_DECAY}[key]
    values = sorted({float(f"{value:.4g}") for value in (given or [factor * own for factor in around])})
    if not (values[0] >= 0 and math.isfinite(values[-1])) or (key == "lr" and values[0] == 0):
        raise UserError(f"{key}={_shown(values)} must be finite and {'above 0' if key == 'lr' else 'not below 0'}")
    return values


def _study(space: dict[str, list[float]], options: Options) -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install 'budget-bert[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {
        "grid": lambda: optuna.samplers.GridSampler(space, seed=options.sampler_seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=options.sampler_seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=options.sampler_seed),
    }
    return optuna.create_study(sampler=samplers[options.sampler]())


def _check(arms: Sequence[Arm], trials: int, options: Options) -> None:
    """Refuse what would be no fair comparison, or none at all."""
    smallest = min(arms, key=_grid_size)
    if trials < 1:
        raise UserError(f"trials={options.trials} must be 1 or more")
    if options.sampler == "grid" and trials > _grid_size(smallest):
        raise UserError(
            f"trials={trials}: {smallest.name} has {_grid_size(smallest)} combinations to try; "
            "give more values with lr= or weight_decay=, or use sampler=random"
        )
    alike: dict[str, Callable[[PretrainConfig], Any]] = {
        "budget": lambda config: (config.stop_at_s or config.budget_s, config.rst.kind),
        "seed": lambda config: config.seed,
        "data.heldout_fraction": lambda config: config.data.heldout_fraction,
    }
    for key, value in alike.items():
        if len({value(arm.config) for arm in arms}) > 1:
            raise UserError(f"{key} is not the same for all that is compared; search for each value of it by itself")
    if not arms[0].config.data.heldout_fraction:
        raise UserError("data.heldout_fraction=0 leaves no sequences to compare trials on; give 0.01, say")


def _round(
    launch: Launch, arms: Sequence[Arm], several: int, job: Callable[[PretrainConfig], None], total: int
) -> None:
    """Ask for so many trials of every arm, run them, and tell what came out where the next trial depends on it."""
    asked = [(arm, *_asked(launch, arm)) for arm in arms for _ in range(several)]
    jobs = list({trial.name: trial for *_, trial in asked}.values())  # a draw that is drawn again is not run again
    done = {trial.name for trial in jobs if trial.config is not None and outcomes.finished(trial.config) is not None}
    ended = {trial.name: (trial, outcome) for trial, outcome in run_jobs(launch, jobs, job, done, total)}
    for arm, number_of_trial, values, asked_for in asked:
        trial, outcome = ended[asked_for.name]
        arm.tried.append((values, trial, outcome))
        loss = loss_of(trial, outcome)
        if _learns(arm):
            if outcome.state == "at work elsewhere":
                raise UserError(f"another process works on {trial.name}, and the next trial depends on it: wait for it")
            from optuna.trial import TrialState

            arm.study.tell(number_of_trial, loss, state=None if loss is not None else TrialState.FAIL)


def _learns(arm: Arm) -> bool:
    """Whether the sampler looks at results."""
    from optuna.samplers import TPESampler

    return isinstance(arm.study.sampler, TPESampler)


def _asked(launch: Launch, arm: Arm) -> tuple[int, dict[str, float], Job]:
    """Optuna's next trial of an arm: its number, its values and its run."""
    import optuna

    trial = arm.study.ask()
    grid = isinstance(arm.study.sampler, optuna.samplers.GridSampler)
    values = {}
    for key, tried in arm.space.items():
        if grid:
            value = trial.suggest_categorical(key, tried)
        else:
            value = trial.suggest_float(key, tried[0], tried[-1], log=tried[0] > 0)
        values[key] = float(f"{value:.4g}")  # as it stands in the run's name
    words = [f"train.optim.{key}={value}" for key, value in values.items()]
    named = check_name(f"{arm.name}{arm.joint}{','.join(words)}")
    return trial.number, values, launch.composed(named, [*arm.words, *words, f"name='{named}'"])


def _row(arm: Arm) -> tuple[str, ...]:
    found = arm.losses()
    remarks = []
    without = len(arm.tried) - len(found)
    if without:
        remarks.append(f"{without} without a loss")
    if not found:
        return arm.name, str(len(arm.tried)), "-", "-", "-", "; ".join(remarks)
    loss, best = found[0]
    for key, tried in arm.space.items():
        if len(tried) > 1 and best[key] in (tried[0], tried[-1]):
            remarks.append(f"{'smallest' if best[key] == tried[0] else 'largest'} {key} tried")
    cells = number(loss, ".4f"), f"{best['lr']:g}", f"{best['weight_decay']:g}"
    return arm.name, str(len(arm.tried)), *cells, "; ".join(remarks) or "-"


def _command(name: str, arm: Arm, best: dict[str, float]) -> str:
    """What a person types to run an arm with its best values."""
    kept = [word for word in arm.words if not word.startswith("seed=")]
    named = arm.name.replace(name, f"{name}_best", 1)
    values = [f"train.optim.{key}={value}" for key, value in best.items()]
    return f"python pretrain_bert.py -m {shlex.join([f'name={named}', *kept, *values, 'seed=0,1,2'])}"


def _grid_size(arm: Arm) -> int:
    return math.prod(len(values) for values in arm.space.values())


def _shown(values: Sequence[float]) -> str:
    return f"[{','.join(f'{value:g}' for value in values)}]"


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
