"""``eval.py -m``: many runs or suites, one after the other, and a table of all."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cramming.errors import UserError
from cramming.evaluation.composing import Asked, asked
from cramming.evaluation.results import Results
from cramming.evaluation.session import scored
from cramming.sweeps.outcomes import show

_FOLDER = "_sweeps"


def score_all(lines: Sequence[Sequence[str]], config_dir: str | None) -> None:
    """Score every command line; one that fails does not end the others.

    Args:
        lines: words of each.
        config_dir: another folder with configuration files.

    Raises:
        UserError: a line that cannot be used, before any job; in the end, which of them failed.
    """
    calls = [asked(line, config_dir) for line in lines]
    ended: list[tuple[Asked, Results | None, str]] = []
    for place, call in enumerate(calls, 1):
        print(f"{place} of {len(calls)}: {_named(call)}", flush=True)
        try:
            found = scored(call)
            first = next((f"{one.task}, seed {one.seed}: {one.reason}" for one in found.failures), "")
            ended.append((call, found.results, first))
        except UserError as error:
            print(f"{_named(call)}: {error}", file=sys.stderr, flush=True)
            ended.append((call, None, str(error)))
    for suite in dict.fromkeys(call.config.eval.name for call in calls):
        _show(suite, [one for one in ended if one[0].config.eval.name == suite])
    failed = [(call, said) for call, _, said in ended if said]
    if failed:
        raise UserError(f"{len(failed)} of {len(ended)} failed, the first {_named(failed[0][0])}: {failed[0][1]}")


def _named(call: Asked) -> str:
    config = call.config
    return f"{config.name or config.checkpoint or 'the run trained last'}, {config.eval.name}"


def _show(suite: str, ended: Sequence[tuple[Asked, Results | None, str]]) -> None:
    """A line for each run: every task's headline in percent, and the average, if there is one."""
    titles: dict[str, str] = {}
    for _, results, _ in ended:
        for own in results.tasks if results else ():
            titles[own.task.name] = f"{own.task.title} {own.headline}"
    average = any(results is not None and results.average.value is not None for _, results, _ in ended)
    lines = []
    for call, results, said in ended:
        tasks = results.tasks if results else ()
        cells = {
            own.task.name: own.scores[own.headline] for own in tasks if own.headline and own.headline in own.scores
        }
        row = [_named(call).partition(",")[0]]
        for task in titles:
            score = cells.get(task)
            half = "" if score is None or score.half is None else f" ± {100 * score.half:.1f}"
            row.append("-" if score is None or score.mean is None else f"{100 * score.mean:.1f}{half}")
        if average:
            value = None if results is None else results.average.value
            row.append("-" if value is None else f"{100 * value:.1f}")
        lines.append((*row, f"failed: {said}" if said else "scored"))
    columns = ["run", *titles.values(), *(["average"] if average else []), "how it ended"]
    base_dir = Path(ended[0][0].config.base_dir)
    rule = next((r.average.rule for _, r, _ in ended if average and r is not None), "")
    show(f"{suite}, percent" + (f"; average: {rule}" if rule else ""), lines, base_dir / _FOLDER / f"eval-{suite}.md",
         columns)  # fmt: skip
