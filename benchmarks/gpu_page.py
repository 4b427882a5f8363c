"""The page of a GPU report: machine, stages, and the headline numbers of whatever results lie in its folder."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.presentation import CONTENDED
from benchmarks.stages import PASSED, REPOSITORY, Outcome
from benchmarks.store import WANTED_TIMES
from cramming.errors import UserError
from cramming.scaling.command import Options, Table
from cramming.text import duration

MFU = """\
MFU = 3 N F / (t R): N sequences of a step, F operations of one sequence forward, t the median seconds of a step, R the
device's dense rate in the passes' precision by its data sheet (or measured, where the result says so).

F counts products only, a multiply-add as 2. With S positions, P of them predicted, H the hidden size, I the width of
the feed-forward part, V the vocabulary and s the positions that a position sees (S, or its window), a layer of `bert`
has 2 S (4 H^2 + 2 H I) + 4 S s H; in the last one queries, scores, output and feed-forward part are at the P positions
alone; the head has 2 P (H^2 + V H). A gate adds to the width, and M2's transforms count as operations (2.5 n log2 n
each). Backward is twice forward. What is computed again, the optimizer, norms and softmax are not counted. The code:
`flops` in `cramming/architectures/encoder.py` and `m2.py`; the idea: Chowdhery et al. 2022,
https://arxiv.org/abs/2204.02311, appendix B."""
_SIDES = {
    "limit": "share of limit",
    "autocast": "against autocast",
    "low": "against 16-bit weights",
    "scoring": "scoring / step",
}


def page(folder: Path, machine: Mapping[str, str], stages: Mapping[str, Outcome], title: str) -> str:
    """The report in Markdown.

    Args:
        folder: the results, a JSON file each, named for its stage.
        machine: what to say about it, in this order.
        stages: what became of each.
        title: the heading.
    """
    results = {name: _read(folder / f"{name}.json") for name in stages}
    steps = {name: found for name, found in results.items() if name.startswith("step_") and "rows" in found}
    parts = [f"# {title}", _table(("", ""), [(key, value) for key, value in machine.items()])]
    parts += ["## Stages", _stages(folder, stages)]
    if steps:
        parts += ["## Training steps", _steps(steps), *_notes(steps), f"## MFU\n\n{MFU}"]
    passes = {name: found for name, found in results.items() if name.startswith("forward_") and "rows" in found}
    if passes:
        parts += ["## Forward passes", _forward(passes)]
    others = _others(results, steps)
    if others:
        parts += ["## Other measurements", "\n".join(f"* {line}" for line in others)]
    scaled = _scaling(folder, steps)
    if scaled:
        parts += ["## Several devices, from these steps", *scaled]
    return "\n\n".join(parts) + "\n"


def _read(file: Path) -> dict[str, Any]:
    """A result; nothing where there is none, or only a part of one."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _stages(folder: Path, stages: Mapping[str, Outcome]) -> str:
    rows = []
    for name, outcome in stages.items():
        words = [word.replace(f"{folder}/", "").replace(f"{REPOSITORY}/", "") for word in outcome.command]
        command = shlex.join(["python", *words[1:]] if words and words[0] != "make" else words)
        said = outcome.why or ("" if outcome.state == PASSED else outcome.state)
        rows.append(
            (
                name,
                outcome.state,
                duration(outcome.took_s) if outcome.took_s else "",
                said,
                f"`{command}`" if words else "",
            )
        )
    return _table(("stage", "", "took", "what was said", "command"), rows)


def _steps(steps: Mapping[str, dict[str, Any]]) -> str:
    rows = []
    for found in steps.values():
        size = found["options"]["size"] + (", compiled" if found["options"]["compile"] else "")
        for row in found["rows"]:
            speed, mfu = row["tokens_per_s"].get("ours"), row.get("our_mfu")
            cells = [f"{row['arch']} ({size})", str(row["length"]), str(row["sequences"])]
            cells += [f"{speed:,.0f}" if speed else row["refused"] or row["unfit"].get("ours", "")]
            cells += [f"{mfu:.1%}" if mfu else "", *(_ratio(row, side) for side in _SIDES)]
            rows.append(
                [*cells, f"{row['peak_mb'].get('ours', 0) / 1024:.1f}", f"{row['first_block_s'].get('ours', 0):.1f}"]
            )
    columns = ["model", "tokens", "sequences", "tokens/s", "MFU", *_SIDES.values(), "peak GB", "first step, s"]
    return _table(columns, rows)


def _ratio(row: Mapping[str, Any], side: str) -> str:
    """Seconds of a side over ours: median and quartiles; a word where there is no number to be trusted."""
    found = row["ratios"].get(side)
    if found is None:
        return str(row["unfit"].get(side, ""))
    low, high = found["wall"]["quartiles"]
    return CONTENDED if found["busy"] else f"{found['wall']['median']:.2f} ({low:.2f}-{high:.2f})"


def _notes(steps: Mapping[str, dict[str, Any]]) -> list[str]:
    """What the steps are measured against."""
    rates = {
        (rate, source)
        for found in steps.values()
        for rate, source in [found.get("peak_flops_per_s") or (0, "")]
        if rate
    }
    notes = [f"The device's rate: {rate / 1e12:,.1f} TFLOP/s, {source}." for rate, source in sorted(rates)]
    notes.append(
        "Ratios are seconds of the other side over ours, median and quartiles of the pairs; the share of the limit is "
        "that of a replay of the step's products alone, and a scoring pass is the losses of the same batch."
    )
    return ["\n".join(notes)]


def _forward(passes: Mapping[str, dict[str, Any]]) -> str:
    rows = []
    for found in passes.values():
        for row in found["rows"]:
            speed = row["tokens_per_s"].get("ours")
            cells = [
                row["arch"],
                str(row["length"]),
                f"{speed:,.0f}" if speed else row["refused"] or row["unfit"].get("ours", ""),
            ]
            rows.append([*cells, *(_ratio(row, side) for side in ("autocast", "low", "predicted"))])
    return _table(("model", "tokens", "tokens/s", "against autocast", "16-bit weights", "at predicted positions"), rows)


def _others(results: Mapping[str, dict[str, Any]], steps: Mapping[str, dict[str, Any]]) -> list[str]:
    """A line for each of the other results."""
    lines = []
    for name, found in results.items():
        if found.get("printed"):
            lines.append(f"{name}: {found['printed'][-1]}")
    store = results.get("store", {})
    if store:
        speeds = [row["tokens_per_s"].get("ours", 0.0) for found in steps.values() for row in found["rows"]]
        fastest = max(speeds, default=0.0)
        opening = f"store: {store['gigabytes']:.3g} GB open in {store['open_s']['median']:.3f} s"
        for what, rate in store["tokens_per_s"].items():
            times = (
                f", {rate['median'] / fastest:.0f} times the fastest step here (wanted: {WANTED_TIMES:g})"
                if fastest
                else ""
            )
            lines.append(f"{opening}; {what}: {rate['median']:,.0f} tokens/s{times}")
    for row in results.get("optimizers", {}).get("rows", []):
        if row.get("over_adamw"):
            lines.append(f"a step of {row['optimizer']} takes {row['over_adamw']['wall']['median']:.2f} times AdamW's")
    if "rows" in results.get("attention_scaling", {}):
        lines.append("attention by length: [table](attention_scaling.md), [plot](attention_scaling.png)")
    return lines


def _scaling(folder: Path, steps: Mapping[str, dict[str, Any]]) -> list[str]:
    """What is predicted for several devices (docs/scaling.md) from each step of a model that ``config/arch`` has."""
    found = []
    for name, result in steps.items():
        for row in result["rows"]:
            family, size = row["arch"], result["options"]["size"]
            for arch in (f"{family}_{size}", family):
                asked = {"arch": arch, "seq_length": row["length"], "measured": str(folder / f"{name}.json")}
                try:
                    table = Table.of(Options(**asked)).markdown()
                except UserError:  # no such architecture, or not of these sizes: it is not predicted from this step
                    continue
                words = " ".join(f"{key}={value}" for key, value in asked.items()).replace(f"{REPOSITORY}/", "")
                found.append(f"    python -m cramming.scaling {words}\n\n{table}")
                break
    return found
