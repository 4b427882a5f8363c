"""Folders of runs that never trained, as a run writes them: what a report reads, with numbers a test chooses.

``test_report_real_run`` holds the format: it compares the keys with those of a run that did train.
"""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

CONFIG: dict[str, Any] = {
    "name": "x", "base_dir": "outputs", "data_dir": "outputs/_data", "budget": "100s", "stop_at": None, "seed": 0,
    "resume": True, "free": [], "from_run": None, "init_from": None,
    "arch": {"kind": "bert", "name": "bert_tiny", "batch_size": 16, "layers": 2, "hidden": 64},
    "data": {"kind": "local", "name": "local", "seq_length": 64, "tokenizer": "train", "vocab_size": 2000,
             "heldout_fraction": 0.02, "path": "text.txt"},
    "train": {"batch_size": 16, "mask_rate": 0.15,
              "optim": {"kind": "adamw", "lr": 0.001, "weight_decay": 0.01, "betas": [0.9, 0.98]},
              "schedule": {"kind": "one_cycle"}},
    "impl": {"microbatch_size": "auto", "precision": "float32", "threads": 1, "validate_every_h": 0.01},
    "method": {}, "rst": {"kind": "calibrate", "refresh": False}, "wandb": {"mode": "disabled", "tags": []},
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """What the command left behind."""

    out: Path
    printed: str

    @property
    def html(self) -> str:
        return self.out.read_text(encoding="utf-8")

    @property
    def files(self) -> Path:
        return self.out.with_name(f"{self.out.stem}_files")


PACKAGES = {"torch": "2.13.0", "numpy": "2.4.6"}
TABLE: dict[str, Any] = {
    "format": 1, "sequences": 64, "forward": {"64": {"0": 0.01, "1": 0.02, "2": 0.03}},
    "forward_backward": {"64": {"0": 0.03, "1": 0.06, "2": 0.09}}, "update_s": 0.001,
    "provenance": {"device": "some CPU, 2 threads", "architecture": "bert layers=2", "precisions": ["float32"],
                   "software": {}, "date": "2026-11-01", "source": "measured", "notes": []},
}  # fmt: skip


def changed(tree: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted options set."""
    tree = copy.deepcopy(tree)
    for key, value in options.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def loss_at(progress: float, final: float, start: float = 8.0) -> float:
    """A curve from ``start`` to ``final`` that falls all the way."""
    return final + (start - final) * (math.exp(-5 * progress) - math.exp(-5)) / (1 - math.exp(-5))


def run(
    base: Path,
    name: str,
    *,
    final: float = 6.0,
    budget_s: float = 100.0,
    options: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    ledger: dict[str, float] | None = None,
    validations: int = 10,
    rows: int = 40,
    until: float = 1.0,
    columns: dict[str, Any] | None = None,
    scores: dict[str, dict[str, Any]] | None = None,
    table: dict[str, Any] | None = None,
    end: bool = True,
) -> Path:
    """A run's folder.

    Args:
        base: where runs live.
        name: its name.
        final: the validation loss at the end of the budget; the way there is ``loss_at``.
        budget_s: the budget.
        options: dotted options of the configuration that differ from ``CONFIG``.
        summary: keys of the summary that differ.
        ledger: budget by account; by default all of it in ``train``.
        validations: at equal distances, the last at the end.
        rows: of ``metrics.jsonl``.
        until: the share of the budget that is spent.
        columns: further columns of the metrics: name -> function of progress.
        scores: folder below ``eval`` -> document of ``results.json``, such as ``scored`` makes.
        table: options of the cost table that differ.
        end: write a summary.
    """
    folder = base / name
    folder.mkdir(parents=True)
    config = changed(CONFIG, {"name": name, "budget": f"{budget_s}s", **(options or {})})
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    if config["rst"]["kind"] in ("calibrate", "table", "rtx3090"):
        (folder / "rst.json").write_text(json.dumps(changed(TABLE, table or {})))
    steps = [(i, (i + 1) / rows) for i in range(rows) if (i + 1) / rows <= until]
    every = max(1, rows // validations) if validations else 0
    lines = [_row(i, progress, final, budget_s, every) for i, progress in steps]
    for line in lines:
        line |= {key: value(line["progress"]) for key, value in (columns or {}).items()}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    if end:
        last = lines[-1]
        (folder / "summary.json").write_text(json.dumps({
            "name": name, "end_reason": "budget spent", "steps": last["step"], "unit": "s", "budget_s": budget_s,
            "spent_s": last["spent_s"], "wall_s": last["elapsed_s"], "train_wall_s": 0.9 * last["elapsed_s"],
            "ledger": ledger or {"train": last["spent_s"]}, "tokens": 1000 * last["step"], "tokens_per_s": 12345.6,
            "sequences": 16 * last["step"], "loss": last["loss"], "validation_loss": last.get("validation_loss"),
            "validation_accuracy": last.get("validation_accuracy"), "validation_sequences": 194,
            "data_fingerprint": "e8f10e301b41fb4701e5", "tokenizer_sha256": "ab" * 32, "free": [],
            "cost_table": config["rst"]["kind"], "fast_paths": {"precision": config["impl"]["precision"]},
            "git_revision": "eadcd3969f6ea858bf33c1125be355adcf29c451", "work": {}, "skipped_steps": 0,
            "environment": {"device": "cpu", "cpu": "some CPU", "cpu_cores": 2, "python": "3.11.7",
                            "packages": PACKAGES, "command": f"pretrain_bert.py name={name} seed={config['seed']}"},
            **(summary or {}),
        }))  # fmt: skip
    evaluated(folder, scores or {})
    return folder


def evaluated(folder: Path, scores: dict[str, dict[str, Any]]) -> Path:
    """Documents of ``results.json`` in a folder, a run's or not."""
    for suite, document in scores.items():
        (folder / "eval" / suite).mkdir(parents=True)
        (folder / "eval" / suite / "results.json").write_text(json.dumps(document))
    return folder


def scored(
    tasks: dict[str, dict[str, list[float]]],
    *,
    name: str = "glue",
    suite: str = "",
    rule: str = "mean of tasks",
    average: float | None = None,
    majority: dict[str, dict[str, float]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What ``results.json`` says of these fractions.

    Args:
        tasks: task -> outcome -> fraction of each fine-tuning seed; the first outcome is the headline.
        name: of the suite's configuration.
        suite: its title; by default its name.
        rule: of the average.
        average: if there is one; by default the mean over headlines of each seed.
        majority: task -> outcome -> what the most frequent class gets.
        more: what else differs in the document.
    """
    heads = [next(iter(outcomes.values())) for outcomes in tasks.values()]
    alike = bool(heads) and len({len(values) for values in heads}) == 1
    by_seed = [fmean(values) for values in zip(*heads, strict=True)] if alike else None
    return {
        "format": 1, "suite": suite or name, "name": name,
        "tasks": {task: {outcome: _score(values) for outcome, values in outcomes.items()}
                  for task, outcomes in tasks.items()},
        "average": average if average is not None or by_seed is None else fmean(by_seed), "average_rule": rule,
        "average_of": [f"{task}.{next(iter(outcomes))}" for task, outcomes in tasks.items()], "average_missing": [],
        "average_std": None, "average_ci95": None, "average_seeds": by_seed if average is None else None,
        "details": {
            task: {
                "title": task, "headline": next(iter(outcomes)), "trained_by": None, "stopped_early_seeds": [],
                "seeds": list(range(len(next(iter(outcomes.values()))))), "absent_seeds": [], "selection": None,
                "baselines": {"majority": majority[task]} if majority and task in majority else {},
                "rows": {"train": 100, "validation": 50}, "cut": {}, "setting": {"lr": 4e-5, "epochs": 5},
            }
            for task, outcomes in tasks.items()
        },
        "failed": [], "remarks": [], "cost": {"jobs": 1, "steps": 10}, "provenance": {"title": "x"}, **more,
    }  # fmt: skip


def _score(values: list[float]) -> dict[str, Any]:
    spread = stdev(values) if len(values) > 1 else None
    return {"mean": fmean(values), "std": spread, "ci95": None, "best_mean": max(values), "seeds": values}


def _row(i: int, progress: float, final: float, budget_s: float, every: int) -> dict[str, Any]:
    loss = loss_at(progress, final)
    row = {
        "step": 10 * (i + 1), "progress": progress, "loss": loss + 0.02 * math.sin(7 * i), "lr": 1e-3 * (1 - progress),
        "spent_s": budget_s * progress, "elapsed_s": 1.1 * budget_s * progress, "tokens_per_s": 12000.0 + 100 * (i % 7),
        "layers": 2, "batch_size": 16, "grad_norm": 1.0, "mfu": 0.3,
    }  # fmt: skip
    if every and (i + 1) % every == 0:
        row |= {"validation_loss": loss, "validation_accuracy": 1 / (1 + loss)}
    return row
