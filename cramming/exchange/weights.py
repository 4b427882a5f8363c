"""A checkpoint opened: which model it is of, its weights under our names, and its tokenizer, whatever form it had."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramming import folder
from cramming.architectures.configs import ArchConfig
from cramming.config import PretrainConfig
from cramming.data.config import TRAINED_HERE, DataConfig
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.model import Model

INIT = "init.json"  # in a run's folder: where its first weights came from
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
        active_layers: those that ran when it was saved, where a method adds layers as it goes; None: all of them.
        one_type: all its pretraining took tokens for type 0, as ours does; other rows of its table are as drawn.
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
    active_layers: tuple[int, ...] | None = None
    one_type: bool = False

    def model(self) -> Model:
        """The model with these weights and the layers that are active, in evaluation mode.

        Raises:
            UserError: they are of another architecture.
        """
        model: Model = self.arch.build(self.vocab_size, self.seq_length)  # type: ignore[assignment]
        try:
            model.load_state_dict(dict(self.state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.title} is of another architecture: {reason}") from error
        if self.active_layers is not None:
            model.active_layers = self.active_layers
        return model.eval()

    def trained(self) -> "Weights":
        """The model that the active layers are alone: layers that no method has put to use yet are no part of it.

        Raises:
            UserError: they are not the first ones, or no options of the architecture describe them.
        """
        layers = self.active_layers
        if layers is None or len(layers) == self.outline().layers:
            return self
        way_out = "take a checkpoint with all layers active"
        if layers != tuple(range(len(layers))):
            raise UserError(f"{self.title}: no arch describes layers {', '.join(map(str, layers))} alone; {way_out}")
        try:
            arch = self.arch.shortened(len(layers))
        except UserError as error:
            raise UserError(f"{self.title}: {error}; {way_out}") from error
        alone = replace(self, arch=arch, active_layers=None)
        return replace(alone, state={name: self.state[name] for name in alone.outline().state_dict()})

    def outline(self) -> Model:
        """The model without memory for its weights."""
        with torch.device("meta"):
            return self.arch.build(self.vocab_size, self.seq_length)  # type: ignore[return-value]


def of_run(found: folder.Found, averaged: bool = True) -> Weights:
    """A checkpoint of one of our runs.

    Args:
        found: the run and its checkpoint.
        averaged: with the weights that its method lends the model for evaluation, such as an average, if it does.

    Raises:
        UserError: it, or the run's tokenizer, is damaged or missing.
    """
    place = found.run_dir / "tokenizer"
    if not place.is_dir():
        raise UserError(f"{place} is missing: the run's tokenizer is needed to read text")
    tokenizer = Tokenizer.load(place)
    if tokenizer.sha256 != found.checkpoint.manifest().get("tokenizer_sha256"):
        raise UserError(f"{place} is not the tokenizer that checkpoint {found.checkpoint.folder} was trained with")
    saved = found.checkpoint.read()
    state: dict[str, Tensor] = saved["model"]
    layers = saved.get("active_layers")  # an imported model has all of its own
    config = found.config
    weights = Weights(
        title=str(found),
        arch=config.arch,
        vocab_size=tokenizer.vocab_size,
        seq_length=int(config.data.seq_length),
        state=state,
        tokenizer=tokenizer,
        origin={"run": found.name, "step": found.checkpoint.step},
        data=None if is_imported(found.run_dir) else corpus(config.data),
        active_layers=None if layers is None else tuple(layers),
        one_type=_one_type(found.run_dir),
    )
    lent = _lent(config, saved) if averaged else {}
    if lent:
        parameters = list(weights.outline().named_parameters(remove_duplicate=False))  # one may go by several names
        values = {id(parameter): lent[name] for name, parameter in parameters if name in lent}
        state = {**state, **{name: values[id(p)] for name, p in parameters if id(p) in values}}
    origin = {**weights.origin, "weights_sha256": sha256(state), **({"averaged": True} if lent else {})}
    return replace(weights, state=state, origin=origin)


def _one_type(run_dir: Path) -> bool:
    """Whether a run, and those it began with, were pretrained here from the start."""
    if is_imported(run_dir):
        return False
    try:
        record = json.loads((run_dir / INIT).read_text())
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir / INIT} is damaged ({error})") from error
    return bool(isinstance(record, dict) and record.get("one_type"))


def _lent(config: PretrainConfig, saved: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Weights that the run's method would lend the model for evaluation, such as an average."""
    from cramming.build import build_method  # it knows everything a run is made of, this module too

    return build_method(config.method, config.train.optim).lent(saved["method"]) if "method" in saved else {}


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
