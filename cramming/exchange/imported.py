"""A released checkpoint as a folder beside our runs: every command that reads a run reads it too.

Its one checkpoint is step 0, and ``import.json`` says where it comes from. It has no corpus and no budget: training
goes on from it, under another name, with ``init_from=``.
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from cramming import checkpoint
from cramming.build import Parts
from cramming.cli import compose
from cramming.config import PretrainConfig, check_name
from cramming.data.config import OF_CHECKPOINT
from cramming.durable import replace as rename
from cramming.durable import sync, write_atomically
from cramming.errors import UserError
from cramming.exchange.weights import IMPORTED, Weights, is_imported


def write_run(weights: Weights, given: str, base_dir: str, name: str) -> Path:
    """Keep a checkpoint under ``base_dir`` as if a run had made it; whole, or not at all.

    Args:
        weights: with a tokenizer.
        given: what named the checkpoint.
        base_dir: where runs live.
        name: the new folder's name.

    Raises:
        UserError: the name is taken, there is no tokenizer, or the disk is full.
    """
    run_dir = free_place(base_dir, name)
    tokenizer = weights.tokenizer
    if tokenizer is None:
        raise UserError(f"{weights.title} has no tokenizer beside it: name its own with tokenizer=")
    config = _config(weights, given, base_dir, name)
    parts = Parts(config, weights.vocab_size, torch.device("cpu"))
    about = {
        "architecture": parts.architecture(),
        "tokenizer_sha256": tokenizer.sha256,
        "data_fingerprint": None,
        "spent_s": 0.0,
        "elapsed_s": 0.0,
        "imported": {"checkpoint": given, **weights.origin},
    }
    temporary = run_dir.with_name(f".importing-{name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        tokenizer.save(temporary / "tokenizer")
        state: dict[str, Any] = {"model": dict(weights.state), "step": 0}
        checkpoint.save(temporary / "checkpoints", 0, state, about, keep=1, kept_at_h=[])
        write_atomically(temporary / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(config))).encode())
        record = {"checkpoint": given, **weights.origin, "fresh": weights.fresh, "left_out": weights.left_out}
        write_atomically(temporary / IMPORTED, (json.dumps(record, indent=2) + "\n").encode())
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file, "import")
        rename(temporary, run_dir, "import")
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{run_dir} cannot be written: {error.strerror or error}") from error
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return run_dir


def free_place(base_dir: str, name: str) -> Path:
    """Where a run of that name goes.

    Raises:
        UserError: there is something.
    """
    run_dir = Path(base_dir) / check_name(name)
    if run_dir.exists():
        raise UserError(f"name={name} is taken: {run_dir} is there; choose another name, or remove that folder")
    return run_dir


def refuse_imported(run_dir: Path) -> None:
    """Keep an imported checkpoint from being trained under its own name.

    Raises:
        UserError: it is one.
    """
    if is_imported(run_dir):
        raise UserError(
            f"{run_dir.name} is an imported checkpoint, not a run: train on from it under another name with "
            f"init_from={run_dir.name}"
        )


def _config(weights: Weights, given: str, base_dir: str, name: str) -> PretrainConfig:
    """A configuration that says what the model is and names no corpus."""
    config = compose(["data=local", "data.path=none", f"data.seq_length={max(4, weights.seq_length)}", "rst=steps"])
    return replace(
        config,
        name=name,
        base_dir=base_dir,
        init_from=given,
        arch=weights.arch,
        data=replace(config.data, tokenizer=OF_CHECKPOINT),
        train=replace(config.train, batch_size=weights.arch.batch_size),
    )
