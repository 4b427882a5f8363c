"""A checkpoint opened: which model it is of, its weights under our names, and its tokenizer, whatever form it had."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramming import folder
from cramming.architectures.configs import ArchConfig
from cramming.data.config import TRAINED_HERE, DataConfig
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.model import Model

IMPORTED = "import.json"  # in the folder of what is no run, but was imported: where it comes from
LONGEST = 512  # tokens of a sequence to lay a model out for that takes any length


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds.

    Attributes:
        title: what to call it in a message.
        arch: our options.
        vocab_size: token ids.
        seq_length: what ``arch.build`` gave the model its positions from, in tokens.
        state: tensors under our names; those in ``fresh`` as a model begins with them.
        tokenizer: whose ids they are; None: nobody said.
        origin: JSON values for a manifest: where they come from.
        fresh: parameters the checkpoint has nothing for, because it has no such head.
        left_out: tensors of the checkpoint that the head has no use for.
        data: the corpus it was trained on, as ``data=`` has it; None: it is not known, or not on this machine.
    """

    title: str
    arch: ArchConfig
    vocab_size: int
    seq_length: int
    state: Mapping[str, Tensor]
    tokenizer: Tokenizer | None
    origin: Mapping[str, Any]
    fresh: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    data: Mapping[str, Any] | None = None

    def model(self) -> Model:
        """The model with these weights, in evaluation mode.

        Raises:
            UserError: they are of another architecture.
        """
        model: Model = self.arch.build(self.vocab_size, self.seq_length)  # type: ignore[assignment]
        try:
            model.load_state_dict(dict(self.state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.title} is of another architecture: {reason}") from error
        return model.eval()

    def outline(self) -> Model:
        """The model without memory for its weights."""
        with torch.device("meta"):
            return self.arch.build(self.vocab_size, self.seq_length)  # type: ignore[return-value]


def of_run(found: folder.Found) -> Weights:
    """A checkpoint of one of our runs.

    Raises:
        UserError: it, or the run's tokenizer, is damaged or missing.
    """
    place = found.run_dir / "tokenizer"
    if not place.is_dir():
        raise UserError(f"{place} is missing: the run's tokenizer is needed to read text")
    tokenizer = Tokenizer.load(place)
    if tokenizer.sha256 != found.checkpoint.manifest().get("tokenizer_sha256"):
        raise UserError(f"{place} is not the tokenizer that checkpoint {found.checkpoint.folder} was trained with")
    state = found.checkpoint.read()["model"]
    origin = {"run": found.name, "step": found.checkpoint.step, "weights_sha256": sha256(state)}
    config = found.config
    return Weights(
        title=str(found),
        arch=config.arch,
        vocab_size=tokenizer.vocab_size,
        seq_length=int(config.data.seq_length),
        state=state,
        tokenizer=tokenizer,
        origin=origin,
        data=None if is_imported(found.run_dir) else corpus(config.data),
    )


def without_head(weights: Weights) -> Weights:
    """The same, its head taken for one that begins anew: what is called so, or else what a classifier does without."""
    head = [name for name in weights.state if name.startswith("head.")]
    if not head:
        with torch.device("meta"):
            classifier = weights.arch.build(weights.vocab_size, weights.seq_length, 2).state_dict()
        head = [name for name in weights.state if name not in classifier]
    return replace(weights, fresh=tuple(head))


def is_imported(run_dir: Path) -> bool:
    """Whether a run's folder holds an imported checkpoint."""
    return (run_dir / IMPORTED).is_file()


def corpus(data: DataConfig) -> dict[str, Any]:
    """The options of ``data`` for another run with the same tokenizer."""
    options = asdict(data)
    if options["tokenizer"] != type(data)().tokenizer:
        options |= {"tokenizer": TRAINED_HERE}
    return options | {"tokenizer_kind": "auto", "normalize": None}


def sha256(state: Mapping[str, Tensor]) -> str:
    """A hash of tensors by name, shape, type and value; the same from whatever file they came."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
