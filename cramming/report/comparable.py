"""Which runs may be averaged and compared: those of the same data, split, budget, precision and prices.

The budget is that of all devices together, so that runs on other numbers of devices are compared at equal device-hours.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cramming.report.runs import Run
from cramming.text import amount

# What must be equal, in the order the report names it.
FACTS = ("data", "tokenizer", "split", "budget", "precision", "cost table", "prices")
BUDGETS = frozenset({"budget"})  # what differs between studies of one design at several budgets


@dataclass(frozen=True)
class Group:
    """Runs that are comparable.

    Attributes:
        label: A, B, ... within a report.
        facts: what they share, by the names in ``FACTS``, in words.
        runs: those at their end.
        unfinished: the others.
    """

    label: str
    facts: Mapping[str, str]
    runs: Sequence[Run]
    unfinished: Sequence[Run]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Runs by what they share, the largest group first.

    An unfinished run may not say yet on which data it trains; it joins a group that agrees in all it does say.
    """
    described = _described(runs)
    finished: dict[tuple[tuple[str, str | None], ...], list[Run]] = {}
    for run, facts in described:
        if run.unfinished is None:
            finished.setdefault(tuple(facts.items()), []).append(run)
    shared = sorted(finished.items(), key=lambda item: (-len(item[1]), str(item[1][0].path)))
    places: list[tuple[dict[str, str | None], list[Run], list[Run]]] = [(dict(f), rs, []) for f, rs in shared]
    for run, facts in described:
        if run.unfinished is None:
            continue
        for known, _, others in places:
            if all(value is None or known[key] == value for key, value in facts.items()):
                others.append(run)
                break
        else:
            places.append((facts, [], [run]))
    return [
        Group(chr(ord("A") + i) if i < 26 else f"Z{i - 24}", {k: v or "not recorded" for k, v in facts.items()}, rs, us)
        for i, (facts, rs, us) in enumerate(places)
    ]


def differing(found: Sequence[Group]) -> list[str]:
    """The facts in which groups differ, in the order of ``FACTS``."""
    return [key for key in FACTS if len({group.facts[key] for group in found}) > 1]


def _described(runs: Sequence[Run]) -> list[tuple[Run, dict[str, str | None]]]:
    """Every run with its facts. Prices of one architecture must agree; the odd ones out are named by their digest.

    Tables of different architectures differ and are comparable all the same: one machine, measured alike.
    """
    together = any(run.devices != 1 for run in runs)
    described = [(run, facts(run, together)) for run in runs]
    digests: dict[tuple[object, ...], Counter[str]] = {}
    keys = [(*map(str, known.values()), _priced_for(run)) for run, known in described]
    for (run, _), key in zip(described, keys, strict=True):
        if digest := _prices(run):
            digests.setdefault(key, Counter())[digest] += 1
    for (run, known), key in zip(described, keys, strict=True):
        usual = digests.get(key, Counter()).most_common(1)
        digest = _prices(run)
        known["prices"] = "as usual" if not digest or digest == usual[0][0] else f"others, {digest}"
    return described


def facts(run: Run, together: bool = False) -> dict[str, str | None]:
    """What a run's results depend on besides its arm and its seed, in words that are equal where it is; None: unknown.

    ``prices`` is left to ``groups``, which sees the other runs.

    Args:
        run: one run.
        together: say budgets in device-hours, where some of the runs had several devices.
    """
    config, summary = run.config, run.summary
    fingerprint = summary.get("data_fingerprint") or run.manifest.get("data_fingerprint")
    tokenizer = summary.get("tokenizer_sha256") or run.manifest.get("tokenizer_sha256")
    data = config["data"]
    validated = summary.get("validation_sequences")
    heldout = f"{float(data.get('heldout_fraction') or 0):.4g} held out"
    known: dict[str, str | None] = dict.fromkeys(FACTS)
    known["data"] = f"{data.get('name')}, {fingerprint}" if fingerprint else None
    known["tokenizer"] = f"{data.get('tokenizer')}, {str(tokenizer)[:12]}" if tokenizer else None
    if summary:
        known["split"] = f"{heldout}, {validated:,} validated" if validated else f"{heldout}, none validated"
    known["budget"] = _budget(run, together)
    known["precision"] = (summary.get("fast_paths") or {}).get("precision") or _asked(config["impl"].get("precision"))
    known["cost table"] = _cost_table(run)
    return known


def _asked(precision: object) -> str | None:
    return None if precision in (None, "auto") else str(precision)


def _budget(run: Run, together: bool) -> str:
    if run.unit == "steps":
        return amount(run.budget_s, run.unit) + (f", ended at {run.stop_at}" if run.stop_at else "")
    if not together:
        ended = f", ended at {run.stop_at}" if run.stop_at else ""
        return f"{amount(run.budget_s, run.unit)} ({run.budget_s:.9g} s){ended}"
    ended = f", ended at {_device_hours(run.devices * run.stop_at_s)}" if run.stop_at_s else ""
    return f"{_device_hours(run.budget_s)}{ended}"


def _device_hours(seconds: float) -> str:
    return f"{seconds / 3600:.4g} device-hours ({seconds:.9g} s)"


def _cost_table(run: Run) -> str | None:
    kind = str(run.config["rst"]["kind"])
    if kind == "flops":
        return f"flops at {float(run.config['rst'].get('flops_per_s', 0)):.4g} per second"
    if kind == "wallclock":
        environment = run.summary.get("environment") or {}
        return f"wallclock of {environment.get('device')}, {environment.get('cpu')}" if environment else None
    if kind == "steps":
        return "steps"
    provenance = run.table.get("provenance")
    if not isinstance(provenance, dict):
        return None
    foreign = any("does not match" in str(note) for note in provenance.get("notes") or ())
    accepted = ", accepted for runs it was not made for" if foreign else ""
    return f"{kind}: {provenance.get('device')}{accepted}"


def _priced_for(run: Run) -> str:
    return str((run.table.get("provenance") or {}).get("architecture"))


def _prices(run: Run) -> str | None:
    """A digest of the prices of full-length passes; an optimizer's update and shorter lengths are measured beside."""
    length = str(run.config["data"].get("seq_length"))
    columns = [(run.table.get(kind) or {}).get(length) for kind in ("forward", "forward_backward")]
    if not any(columns):
        return None
    return hashlib.sha256(json.dumps([run.table.get("sequences"), columns], sort_keys=True).encode()).hexdigest()[:8]
