"""The page of a GPU report: machine, stages, and the headline numbers of whatever results lie in its folder."""

import json
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
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
    passes = {name: found for name, found in results.items() if name.startswith("forward_") and "rows" in found}
    sections: dict[str, Callable[[], Sequence[str]]] = {
        "Stages": lambda: [_stages(stages)],
        "Training steps": lambda: [_steps(steps), *_notes(steps)] if steps else [],
        "MFU": lambda: [MFU] if steps else [],
        "Forward passes": lambda: [_forward(passes)] if passes else [],
        "Attention by length": lambda: _attention(folder, results),
        "Other measurements": lambda: _others(results, steps),
        "Several devices, from these steps": lambda: _scaling(folder, steps),
    }
    parts = [f"# {title}", _table(("", ""), [(key, value) for key, value in machine.items()])]
    for heading, section in sections.items():
        try:
            found = section()
        except Exception as error:  # a result of a form nobody thought of must not cost the rest of the report
            traceback.print_exception(error)
            found = [f"Not shown: {type(error).__name__}: {error}. The results lie beside this page."]
        parts += [f"## {heading}", *found] if found else []
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


def _stages(stages: Mapping[str, Outcome]) -> str:
    rows = []
    for name, outcome in stages.items():
        said = outcome.why or ("" if outcome.state == PASSED else outcome.state)
        rows.append(
            (
                name,
                outcome.state,
                duration(outcome.took_s) if outcome.took_s else "",
                said,
                f"`{shlex.join(outcome.command)}`" if outcome.command else "",
            )
        )
    return _table(("stage", "", "took", "what was said", "command"), rows)


def _steps(steps: Mapping[str, dict[str, Any]]) -> str:
    rows = []
    for found in steps.values():
        size = found["options"]["size"] + (", compiled" if found["options"]["compile"] else "")
        size += ", CUDA graphs" if found["options"].get("cuda_graphs") else ""
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
    """Seconds of a side over ours, or why there are none."""
    found = row["ratios"].get(side)
    return str(row["unfit"].get(side, "")) if found is None else _trusted(found)


def _trusted(ratio: Mapping[str, Any]) -> str:
    """Median and quartiles; a word where they are not to be trusted."""
    low, high = ratio["wall"]["quartiles"]
    return CONTENDED if ratio["busy"] else f"{ratio['wall']['median']:.2f} ({low:.2f}-{high:.2f})"


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


def _attention(folder: Path, results: Mapping[str, dict[str, Any]]) -> list[str]:
    """Lengths are stages of their own; here they come together in a table and a plot."""
    rows = [row for name, found in results.items() if name.startswith("attention_") for row in found.get("rows", [])]
    if not rows:
        return []
    from benchmarks import attention_scaling

    rows.sort(key=lambda row: int(row["length"]))
    shown = attention_scaling.page(rows)
    attention_scaling.plot(rows, folder / "attention.png")
    return [_table(shown.columns, shown.rows), *(f"* {note}" for note in shown.notes), "![plot](attention.png)"]


def _others(results: Mapping[str, dict[str, Any]], steps: Mapping[str, dict[str, Any]]) -> list[str]:
    """A list of what the other results say."""
    lines = []
    for name, found in results.items():
        if found.get("printed"):
            lines.append(f"{name}: {found['printed'][-1]}")
    for found in steps.values():
        for row in found["rows"]:
            if launched := _ratio(row, "launched"):
                what = f"{row['arch']} ({found['options']['size']}) with {row['length']} tokens"
                lines.append(f"{what}: seconds of a step without CUDA graphs over one with them: {launched}")
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
    for name, found in results.items():
        if name.startswith("finetuning") and "training" in found:
            lines += _finetuning(name, found)
    return ["\n".join(f"* {line}" for line in lines)] if lines else []


def _finetuning(name: str, found: Mapping[str, Any]) -> list[str]:
    """What ``finetuning.py`` found: against Trainer, training and evaluation."""
    of_training = found["training"]
    memory = ", ".join(f"{side} {megabytes / 1024:.1f} GB" for side, megabytes in of_training["peak_mb"].items())
    compared = {"training": of_training}
    compared |= {f"evaluation, {side}": row for side, row in found["evaluation"].items() if isinstance(row, dict)}
    lines = []
    for what, row in compared.items():
        ours = (of_training if row is of_training else found["evaluation"])["our_examples_per_s_median"]
        lines.append(f"{name}, {what}: {_trusted(row)} times Trainer's speed, {ours:,.0f} examples/s")
    return [f"{lines[0]}; {memory}", *lines[1:]]


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
