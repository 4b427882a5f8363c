"""What a checkpoint says about the run it is of, and what must fit when it is read."""

from typing import Any

import torch

from cramming import checkpoint
from cramming.build import Parts
from cramming.errors import UserError
from cramming.train import Run


def about(run: Run) -> dict[str, Any]:
    """What a checkpoint says about itself and what must fit when it is read."""
    parts = Parts(run.config, run.stream.store.tokenizer.vocab_size, torch.device("cpu"))
    return {
        "architecture": parts.architecture(),
        "tokenizer_sha256": run.stream.store.tokenizer.sha256,
        "data_fingerprint": run.stream.store.fingerprint,
    }


def check_fits(saved: checkpoint.Checkpoint, expected: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model, tokenizer or corpus.

    Raises:
        UserError: naming what differs.
    """
    manifest = saved.manifest()
    for key, words in (
        ("architecture", "of another architecture"),
        ("tokenizer_sha256", "of another tokenizer"),
        ("data_fingerprint", "of another corpus (its text, or how it is prepared, has changed)"),
    ):
        if manifest.get(key) != expected[key]:
            raise UserError(
                f"checkpoint {saved.folder} is {words}: it has {manifest.get(key)}, this run has {expected[key]}; "
                "choose another name, or start over with resume=false"
            )
