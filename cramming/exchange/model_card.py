"""``README.md`` of an exported model: what it is, how it was trained, how to load it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cramming.config import PretrainConfig
from cramming.exchange.weights import Weights
from cramming.text import amount

_NOT_SIZES = ("kind", "name", "batch_size", "vocab_size", "init_std", "classification_head")


def card(
    weights: Weights,
    facts: Mapping[str, Any],
    *,
    name: str,
    parameters: int,
    family: str,
    library: str | None,
    onnx: bool,
) -> str:
    """The text of a model card.

    Args:
        weights: what is exported.
        facts: how it was trained, see ``trained``; may be empty.
        name: the model's.
        parameters: how many it has.
        family: whose names its tensors have.
        library: the transformers class that loads it; None: none does.
        onnx: whether ``encoder.onnx`` is beside it.
    """
    sizes = {
        k: v for k, v in asdict(weights.arch).items() if k not in _NOT_SIZES and v not in (None, False, "", {}, [])
    }
    lines = [
        "---",
        *(["library_name: transformers"] if library else []),
        "pipeline_tag: fill-mask",
        "tags:",
        "- fill-mask",
        f"- {weights.arch.kind}",
        "---",
        "",
        f"# {name}",
        "",
        f"A masked language model of {parameters:,} parameters, architecture `{weights.arch.kind}`.",
        "",
        "## Sizes",
        "",
        "| option | value |",
        "|---|---|",
        *(f"| {key} | {_plain(value)} |" for key, value in sizes.items()),
        f"| vocabulary | {weights.vocab_size:,} |",
        f"| longest sequence in training, tokens | {weights.seq_length:,} |",
        "",
        "## Training",
        "",
        *([f"* {key}: {value}" for key, value in facts.items()] or ["Not trained here."]),
        "",
        "## How to load it",
        "",
        "```python",
        *_loading(library, family),
        "```",
        "",
    ]
    if library is None:
        lines += [
            f"`model.safetensors` has the tensor names of the reference system ({family}), `config.json` is its",
            "config; the tokenizer loads with `AutoTokenizer.from_pretrained`.",
            "",
        ]
    if onnx:
        lines += [
            "`encoder.onnx`: `input_ids`, `attention_mask` (batch, length; int64) -> `hidden_states`",
            "(batch, length, width); padding is attended to by nothing, its own rows are not meaningful.",
            "",
        ]
    return "\n".join(lines)


def trained(config: PretrainConfig, manifest: Mapping[str, Any], run_dir: Path) -> dict[str, str]:
    """How a run was trained, for its card: data, budget, steps, losses, what it began with."""
    unit: Any = "steps" if config.rst.unit_s == 1 else "s"
    facts = {
        "data": f"{config.data.name}, sequences of {config.data.seq_length} tokens, layout {config.data.layout}",
        "budget": f"{amount(manifest.get('spent_s'), unit)} of {amount(config.budget_s, unit)} ({config.rst.kind})",
        "steps": f"{manifest['step']:,} of {config.train.batch_size} sequences",
        "optimizer": f"{config.train.optim.kind}, learning rate {config.train.optim.lr:g}, "
        f"schedule {config.train.schedule.kind}",
        "method": "+".join(config.method) or "none",
        "seed": str(config.seed),
    }
    if manifest.get("init_from"):
        facts["began with"] = str(manifest["init_from"].get("checkpoint"))
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    if summary.get("steps") == manifest["step"] and summary.get("validation_loss") is not None:
        facts["held-out loss"] = f"{summary['validation_loss']:.4f} (natural logarithm, 15 % of tokens masked)"
        if summary.get("validation_accuracy") is not None:
            facts["held-out accuracy at masked tokens"] = f"{summary['validation_accuracy']:.2%}"
    return facts


def _loading(library: str | None, family: str) -> list[str]:
    if library is not None:
        return [
            "from transformers import AutoModelForMaskedLM, AutoTokenizer",
            "",
            "model = AutoModelForMaskedLM.from_pretrained(<this folder>)",
            "tokenizer = AutoTokenizer.from_pretrained(<this folder>)",
        ]
    return [
        "import json",
        "from safetensors.torch import load_file",
        "from cramming.architectures import from_reference",
        "",
        'config = json.load(open("config.json"))',
        f'model = from_reference("{family}", config, load_file("model.safetensors"), "mlm")',
    ]


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
