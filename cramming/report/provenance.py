"""What was run: commands that repeat it, commits, versions, machines, data and cost tables."""

import json
import re
from collections.abc import Sequence

from cramming.report.document import Block, Cell, Code, Column, Folded, Heading, Table, Text
from cramming.report.runs import Run
from cramming.report.study import Comparison
from cramming.text import amount, number

_OF_HYDRA = re.compile(r" '?hydra\.job\.config\.override_dirname\.exclude_keys=\[[^\]]*\]'?")
_UNKNOWN = "not recorded"
# What every summary says; whatever else is there a method said of itself, such as which files it used.
_USUAL = frozenset((
    "name", "end_reason", "steps", "unit", "budget_s", "spent_s", "wall_s", "train_wall_s", "ledger", "work",
    "sequences", "tokens", "tokens_per_s", "loss", "validation_loss", "validation_accuracy", "validation_sequences",
    "skipped_steps", "data_fingerprint", "tokenizer_sha256", "cost_table", "free", "fast_paths", "git_revision",
    "environment", "mfu", "ranks", "device_hours",
))  # fmt: skip
_LONGEST = 400  # letters of what a method says


def what_was_run(comparisons: Sequence[Comparison]) -> list[Block]:
    """The last part of a report."""
    runs = [run for c in comparisons for run in (*c.group.runs, *c.group.unfinished)]
    blocks: list[Block] = [Heading(2, "What was run")]
    by_command: dict[str, list[Run]] = {}
    for run in runs:
        by_command.setdefault(command(run), []).append(run)
    known = {words: of for words, of in by_command.items() if words != _UNKNOWN}
    if known:
        blocks += [
            Text("The same commands in a checkout of the commit below repeat the runs; a single one is repeated under "
                 "another name by `python pretrain_bert.py from_run=<run> name=<another>`, from its `config.yaml`."),
            Code("\n\n".join(f"# {_counted(of)}\n{words}" for words, of in known.items())),
        ]  # fmt: skip
    blocks += [Folded("Every run", [_every_run(comparisons)]), _versions(runs)]
    return blocks


def command(run: Run) -> str:
    """What was typed, without what the sweeper added."""
    words = (run.summary.get("environment") or {}).get("command")
    if not words:
        return _UNKNOWN
    plain = _OF_HYDRA.sub("", str(words))
    return f"python {plain}" if plain.split(" ", 1)[0].endswith(".py") else plain


def revision(run: Run) -> str:
    """The commit, shortened; ``+changes`` behind it where the sources were changed."""
    whole = run.summary.get("git_revision")
    if not whole:
        return _UNKNOWN
    commit, plus, changes = str(whole).partition("+")
    return commit[:12] + plus + changes


def machine(run: Run) -> str:
    """The device and the processor."""
    environment = run.summary.get("environment") or {}
    parts = [environment.get("device"), environment.get("cpu")]
    if environment.get("cpu_cores"):
        parts.append(f"{environment['cpu_cores']} cores")
    return ", ".join(str(part) for part in parts if part) or _UNKNOWN


def versions(run: Run) -> str:
    """Python and the packages that can change a number."""
    environment = run.summary.get("environment") or {}
    packages = environment.get("packages") or {}
    named = [f"python {environment['python']}"] if environment.get("python") else []
    return ", ".join(named + [f"{name} {version}" for name, version in packages.items()]) or _UNKNOWN


def cost_table(run: Run) -> str:
    """The cost model, and where a table's numbers come from."""
    kind = str(run.config["rst"]["kind"])
    provenance = run.table.get("provenance")
    if not isinstance(provenance, dict):
        return kind
    said = [f"{kind}: {provenance.get('device')}", str(provenance.get("date")), str(provenance.get("source"))]
    return ", ".join(said)


def _counted(runs: Sequence[Run]) -> str:
    names = ", ".join(run.name for run in runs[:3])
    return f"{len(runs)} runs: {names}, ..." if len(runs) > 3 else names


def _every_run(comparisons: Sequence[Comparison]) -> Table:
    several = len(comparisons) > 1
    titles = ["run", *(["group"] if several else []), "arm", "seed", "ended", "steps", "spent"]
    titles += ["devices", "device-hours", "wall time", "commit"]
    rows = []
    for c in comparisons:
        for run in (*c.group.runs, *c.group.unfinished):
            wall_s = run.summary.get("wall_s")
            steps = run.summary.get("steps")
            label = c.name.label(run)
            row = [Cell(run.name, run.name, code=True), *([Cell(c.group.label, c.group.label)] if several else [])]
            row += [
                Cell(label, label, arm=label),
                Cell(str(run.seed), run.seed),
                Cell(run.unfinished or str(run.summary.get("end_reason") or ""), run.unfinished or "", tone="muted"),
                Cell("" if steps is None else f"{steps:,}", steps),
                Cell(amount(run.spent_s, run.unit), run.spent_s),
                Cell(f"{run.devices:.4g}", run.devices),
                Cell(number(run.device_hours, ".4g"), run.device_hours),
                Cell(amount(wall_s, "s"), wall_s),
                Cell(revision(run), revision(run), code=True),
            ]
            rows.append(row)
    numbers = ("seed", "steps", "spent", "devices", "device-hours", "wall time")
    return Table("", [Column(title, title in numbers) for title in titles], rows)


def _versions(runs: Sequence[Run]) -> Table:
    facts = {
        "commit": [str(run.summary.get("git_revision") or _UNKNOWN) for run in runs],
        "versions": [versions(run) for run in runs],
        "machine": [machine(run) for run in runs],
        "data": [f"{run.config['data'].get('name')}, fingerprint {run.summary.get('data_fingerprint') or _UNKNOWN}"
                 for run in runs],
        "cost table": [cost_table(run) for run in runs],
    }  # fmt: skip
    for key in sorted({key for run in runs for key in run.summary} - _USUAL):
        facts[key.replace("_", " ")] = [_said(run.summary[key]) for run in runs if key in run.summary]
    rows = []
    for fact, values in facts.items():
        for value in dict.fromkeys(values):
            where = values.count(value)
            rows.append([Cell(fact, fact), Cell(value, value), Cell(f"{where} of {len(runs)}", where)])
    return Table("", [Column("fact", False), Column("value", False), Column("runs")], rows)


def _said(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
