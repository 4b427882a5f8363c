"""What a reader must know before the numbers: what is left out, and what may mislead."""

from collections import Counter
from collections.abc import Sequence

from cramming.report.arms import options
from cramming.report.provenance import machine, revision, versions
from cramming.report.runs import Reading, Run
from cramming.report.study import Comparison, Study

_ENOUGH = 3  # seeds


def notices(study: Study, reading: Reading) -> list[str]:
    """One line each; empty if there is nothing to say."""
    lines = [f"Damaged, and left out: {path.name}: {reason}." for path, reason in reading.damaged]
    comparisons = study.comparisons
    for c in comparisons:
        where = f"Group {c.group.label}: " if len(comparisons) > 1 else ""
        lines += [f"{where}{line}" for line in (*_unfinished(c), *_baseline(c), *_seeds(c), *_also(c), *_free(c))]
        lines += [f"{where}{line}" for line in _devices(c)]
    runs = [run for c in comparisons for run in c.group.runs]
    lines += _several("commits", [revision(run) for run in runs])
    lines += _several("versions", [versions(run) for run in runs])
    lines += _several("machines", [machine(run) for run in runs])
    changed = sum("+" in revision(run) for run in runs)
    if changed:
        lines.append(f"{_runs(changed)} ran from sources that differ from their commit (`+changes`).")
    return lines


def _unfinished(c: Comparison) -> list[str]:
    lines = [f"Unfinished: {run.name}: {run.unfinished}." for run in c.group.unfinished]
    if lines:
        lines.append(
            "Unfinished runs are drawn by themselves in the curves and are in no mean. If one was ended because it did "
            "badly, its arm looks better for it."
        )
    return lines


def _baseline(c: Comparison) -> list[str]:
    if len(c.meant) > 1 and c.baseline is not None:
        others = "; ".join(arm.label for arm in c.meant if arm is not c.baseline)
        return [
            f"Several arms could be the baseline; taken: {c.baseline.label}. The others: {others}. Another one is "
            "chosen with `baseline=key=value`."
        ]
    if c.baseline is None and len(c.arms) > 1:
        return [f"No baseline among the arms ({'; '.join(arm.label for arm in c.arms)}): no differences are given. "
                "One is named with `baseline=<method>` or `baseline=key=value`."]  # fmt: skip
    return []


def _seeds(c: Comparison) -> list[str]:
    lines = []
    few = [f"{arm.label} ({len(arm.by_seed)})" for arm in c.arms if len(arm.by_seed) < _ENOUGH]
    if few:
        lines.append(
            f"Fewer than {_ENOUGH} seeds: {'; '.join(few)}. One seed says nothing about chance, two say little."
        )
    if c.baseline is not None:
        for arm in c.arms:
            lacking = sorted(arm.by_seed.keys() ^ c.baseline.by_seed.keys())
            if lacking:
                seeds = ", ".join(map(str, lacking))
                lines.append(f"{arm.label} and the baseline do not have the same seeds: {seeds} cannot be paired.")
    for arm in c.arms:
        again = {seed: runs for seed, runs in arm.by_seed.items() if len(runs) > 1}
        if again:
            names = "; ".join(", ".join(run.name for run in runs) for runs in again.values())
            lines.append(f"{arm.label} has several runs of one seed, which count as one, their mean: {names}.")
    return lines


def _also(c: Comparison) -> list[str]:
    """Options in which arms differ beside those that name them."""
    lines = []
    for key in c.name.also:
        values = {options(run).get(key) for run in c.group.runs}
        if len(values) > 1:
            usual = Counter(arm.values[key] for arm in c.arms).most_common(1)[0][0]
            told = "; ".join(f"{arm.values[key]} in {arm.label}" for arm in c.arms if arm.values[key] != usual)
            lines.append(f"`{key}` differs between arms too, which may be what makes a difference: {told}; {usual} in "
                         "the others.")  # fmt: skip
    return lines


def _free(c: Comparison) -> list[str]:
    """Accounts that one arm pays and another does not."""
    lines = []
    for account in sorted({account for run in c.group.runs for account in run.free}):
        free = [arm.label for arm in c.arms if any(account in run.free and _used(run, account) for run in arm.runs)]
        if free:
            lines.append(f"The account {account} is free in {'; '.join(free)}: its work is written down and not paid.")
    return lines


def _devices(c: Comparison) -> list[str]:
    """Numbers of devices, where it is not one for all."""
    counts = sorted({run.devices for run in (*c.group.runs, *c.group.unfinished)})
    if counts in ([], [1]):
        return []
    words = " and ".join(f"{count:.4g}" for count in counts)
    if c.group.runs and c.group.runs[0].unit == "steps":
        return [f"Runs on {words} devices are compared at equal steps, since no time is counted."]
    compared = f"Runs on {words} devices are compared at equal device-hours" if len(counts) > 1 else (
        f"All runs are on {words} devices")  # fmt: skip
    return [
        f"{compared}: budget, accounts and what was spent are of all devices together; wall seconds are what passed."
    ]


def _used(run: Run, account: str) -> bool:
    return bool(run.ledger.get(account))


def _several(what: str, values: Sequence[str]) -> list[str]:
    different = list(dict.fromkeys(values))
    if len(different) < 2:
        return []
    return [f"The runs are of {len(different)} {what}; see the end of this report."]


def _runs(n: int) -> str:
    return f"{n} run{'s' * (n != 1)}"
