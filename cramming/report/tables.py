"""Tables of a report, from what ``outcomes`` found."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from cramming.report.arms import ABSENT, Arm, options
from cramming.report.document import Cell, Column, Table, Tone
from cramming.report.intervals import Estimate
from cramming.report.outcomes import Outcome, Reach, Result
from cramming.text import Unit, amount

_SPACE = "\N{NO-BREAK SPACE}"
_TONES: Mapping[str, Tone] = {"better": "better", "worse": "worse", "no difference shown": "muted"}


def finals(outcome: Outcome, found: Sequence[Result], baseline: Arm | None, confidence: float) -> Table:
    """One outcome of every arm at its end: the mean over seeds, and the difference to the baseline.

    Args:
        outcome: what is compared.
        found: the arms' results, in the order of the rows.
        baseline: marked as such; None leaves the differences out.
        confidence: of the intervals.
    """
    places = decimals(result.estimate for result in found)
    share = f"{100 * confidence:.3g}{_SPACE}%"
    caption = f"{sentence(outcome.label)}: mean over seeds ± half of the {share} interval"
    columns = [Column("arm", False), Column("seeds"), Column(outcome.label)]
    if baseline is not None:
        caption += "; the difference to the baseline is paired by seed"
        columns += [Column("difference"), Column(f"{share} interval"), Column("pairs"), Column("verdict", False)]
    if outcome.rule is not None:
        caption += f'. Averaged by the rule "{outcome.rule}"' if not outcome.detail else ""
    rows = []
    for result in found:
        arm, difference = result.arm, result.difference
        seeds = result.estimate.n if result.estimate is not None else 0
        row = [arm_cell(arm, baseline), Cell(str(seeds), seeds), estimate_cell(result.estimate, places)]
        if baseline is not None:
            row += difference_cells(difference, result, arm is baseline, places)
        rows.append(row)
    return Table(f"{caption}.", columns, rows)


def arm_cell(arm: Arm, baseline: Arm | None) -> Cell:
    """An arm's name with its colour."""
    label = arm.label + (" (baseline)" if arm is baseline else "")
    return Cell(label, arm.label, arm=arm.label)


def estimate_cell(estimate: Estimate | None, places: int) -> Cell:
    """``6.4074 ± 0.0121``; a single seed has no interval."""
    if estimate is None:
        return Cell(ABSENT, tone="muted")
    half = "" if estimate.half is None else f"{_SPACE}±{_SPACE}{estimate.half:.{places}f}"
    return Cell(f"{estimate.mean:.{places}f}{half}", estimate.mean)


def difference_cells(difference: Estimate | None, result: Result, is_baseline: bool, places: int) -> list[Cell]:
    """``-0.0323 | [-0.0512, -0.0134] | 3 | better``."""
    if is_baseline or result.estimate is None:
        return [Cell("")] * 4
    if difference is None:
        return [Cell(""), Cell(""), Cell("0", 0), Cell("no seed in common", tone="muted")]
    tone = _TONES.get(result.judgement, "")
    interval = f"[{difference.low:+.{places}f},{_SPACE}{difference.high:+.{places}f}]"
    half = difference.half
    return [
        Cell(f"{difference.mean:+.{places}f}", difference.mean, tone),
        Cell(interval, difference.low, tone) if half is not None else Cell("", tone="muted"),
        Cell(str(difference.n), difference.n),
        Cell(result.judgement or "one pair has no interval", result.judgement or None, tone or "muted"),
    ]


def sentence(words: str) -> str:
    """Words with a capital in front, the others as they are."""
    return words[:1].upper() + words[1:]


def decimals(estimates: Iterable[Estimate | None]) -> int:
    """Decimals for a column: four for losses and shares, two for scores up to a hundred."""
    return 4 if max((abs(e.mean) for e in estimates if e is not None), default=0.0) < 20 else 2


def needs(outcomes: Sequence[Outcome], found: Sequence[Sequence[Reach]], baseline: Arm, caption: str) -> Table:
    """The budget each arm needs to end as well as the baseline, as a share of the baseline's."""
    columns = [Column("arm", False), Column("seeds")]
    columns += [Column(f"to the baseline's {outcome.label}") for outcome in outcomes]
    rows = []
    for place, reach in enumerate(found[0]):
        seeds = max(len(of[place].shares) + len(of[place].missed) for of in found)
        row = [arm_cell(reach.arm, baseline), Cell(str(seeds), seeds)]
        rows.append(row + [need_cell(of[place], reach.arm is baseline) for of in found])
    return Table(caption, columns, rows)


def need_cell(reach: Reach, is_baseline: bool) -> Cell:
    """``71.2 % ± 4.0 %``, ``not reached``, or by how many seeds it was."""
    got, missed = len(reach.shares), len(reach.missed)
    if not got and not missed:
        return Cell(ABSENT, tone="muted")
    if is_baseline:
        return Cell("100 %", 1.0, "muted")
    if not got:
        return Cell("not reached", 1e9, "worse")
    if missed:
        shares = ", ".join(f"{100 * share:.1f}{_SPACE}%" for share in reach.shares.values())
        others = "" if reach.known_at_end_only else f" (others: {shares})"
        return Cell(f"not reached by {missed} of {got + missed} seeds{others}", 1e8)
    assert reach.share is not None
    mean, half = reach.share.mean, reach.share.half
    if reach.known_at_end_only:
        return Cell(f"at most {100 * mean:.0f}{_SPACE}%", mean)
    text = f"{100 * mean:.1f}{_SPACE}%" + (f" ±{_SPACE}{100 * half:.1f}{_SPACE}%" if half is not None else "")
    beyond = half is not None and (reach.share.high < 1 or reach.share.low > 1)
    tone: Tone = ("better" if mean < 1 else "worse") if beyond else ""
    return Cell(text, mean, tone)


def ledgers(arms: Sequence[Arm], baseline: Arm | None, caption: str) -> Table:
    """Mean budget by account, what it bought, and what the wall clock said."""
    runs = [run for arm in arms for run in arm.runs]
    unit = runs[0].unit
    spent_on = {account for run in runs for account, spent in run.ledger.items() if spent}
    accounts = sorted(spent_on, key=lambda account: (account != "train", account))
    free = {account for run in runs for account in run.free}
    titles = [f"{account} (free)" if account in free else account for account in accounts]
    columns = [Column("arm", False), *(Column(title) for title in titles)]
    columns += [Column(title) for title in ("paid", "steps", "sequences", "tokens/s", "wall time")]
    rows = []
    for arm in arms:
        row = [arm_cell(arm, baseline)]
        for account in accounts:
            spent = fmean(run.ledger.get(account, 0.0) for run in arm.runs)
            share = spent / arm.runs[0].budget_s
            own = f" {'free' if all(account in run.free for run in arm.runs) else 'paid'}" if account in free else ""
            row.append(Cell(f"{_amount(spent, unit)} ({share:.1%}{own})" if spent else ABSENT, spent))
        row += [Cell(text, value) for text, value in (_paid(arm), *(_mean(arm, *key) for key in _BOUGHT))]
        wall = _numbers(arm, "wall_s")
        row.append(Cell(_amount(fmean(wall), "s") if wall else ABSENT, fmean(wall) if wall else None))
        rows.append(row)
    return Table(caption, columns, rows)


def settings(arms: Sequence[Arm], baseline: Arm | None, also: Sequence[str], caption: str) -> Table:
    """What every arm is."""
    keys = {
        "method": "method", "architecture": "arch", "layers": "arch.layers", "optimizer": "train.optim",
        "learning rate": "train.optim.lr", "weight decay": "train.optim.weight_decay", "schedule": "train.schedule",
        "batch": "train.batch_size", "free accounts": "free",
    }  # fmt: skip
    own = list(dict.fromkeys(key for arm in arms for key in (*arm.values, *also) if key not in keys.values()))
    titles = {**keys, **{key: key for key in own}}
    columns = [Column("arm", False), *(Column(title, False) for title in titles), Column("seeds", False)]
    rows = []
    for arm in arms:
        found = options(arm.runs[0])
        values = [found.get(key, ABSENT) for key in titles.values()]
        seeds = ", ".join(map(str, arm.by_seed))
        rows.append(
            [
                arm_cell(arm, baseline),
                *(Cell("none" if value == "[]" else value, value) for value in values),
                Cell(seeds, seeds),
            ]
        )
    return Table(caption, columns, rows)


_BOUGHT = (("steps", ",.0f"), ("sequences", ",.0f"), ("tokens_per_s", ",.0f"))


def _paid(arm: Arm) -> tuple[str, float]:
    spent = fmean(run.spent_s for run in arm.runs)
    return _amount(spent, arm.runs[0].unit), spent


def _amount(value: float, unit: Unit) -> str:
    """An amount of budget that stays on one line."""
    return amount(value, unit).replace(" ", _SPACE)


def _mean(arm: Arm, key: str, form: str) -> tuple[str, float | None]:
    values = _numbers(arm, key)
    return (format(fmean(values), form), fmean(values)) if values else (ABSENT, None)


def _numbers(arm: Arm, key: str) -> list[float]:
    return [float(run.summary[key]) for run in arm.runs if isinstance(run.summary.get(key), int | float)]
