"""The contract between the loop and every architecture.

Shape legend: B sequences, S positions, P prediction slots, H hidden, L layers, V vocabulary.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cramming.batch import Batch
from cramming.errors import UserError
from rst.work import Kind, Work


class Model(nn.Module):
    """A masked language model of L layers, any ascending subset of which may be active.

    Every layer is allocated from the start, so that growing or dropping never changes the shape of a checkpoint;
    parameters of layers that are not active stay out of the graph and keep the gradient None. Padding
    (``batch.lengths``) and documents to keep apart (``batch.starts``) are honoured, and only predicted positions go
    through the vocabulary projection.

    Attributes:
        blocks: the L layers, compiled one by one if compiling is asked for.
        active_layers: indices of the layers that run, ascending; ``()`` runs none.
        scales_layers: whether ``layer_scales`` has an effect.
        layer_scales: by layer, what its change is multiplied by: layer(x) becomes x + scale (layer(x) - x); None, or
            no entry: as it is.
        vocab_size: V.
        max_positions: the longest sequence it takes, in tokens.
        gradient_checkpointing: keep a layer's input only and compute the layer again in backward: less memory, more
            time, the same gradients (https://arxiv.org/abs/1604.06174).
        attention: how attention is computed (``cramming.config.ATTENTION``), where that can be chosen.
        drops_tokens: whether some layers can run on part of a sequence's tokens only (``batch.kept``).
        ways: of ``cramming.plain.WAYS``, those that the model itself decides about; modules in it may have some, too.
        plain: those that are to be plain, see ``compute_plainly``.
    """

    blocks: nn.ModuleList
    active_layers: tuple[int, ...]
    scales_layers: bool = False
    layer_scales: Mapping[int, float] | None = None
    vocab_size: int
    max_positions: int
    gradient_checkpointing: bool = False
    attention: str = "auto"
    drops_tokens: bool = False
    ways: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()

    @property
    def layers(self) -> int:
        """L, the number of layers allocated."""
        return len(self.blocks)

    @property
    def separable_layers(self) -> bool:
        """Whether every layer has weights of its own and runs, or not, by itself."""
        parameters = [id(parameter) for block in self.blocks for parameter in block.parameters()]
        return len(self.blocks) == self.layers and len(parameters) == len(set(parameters))

    @property
    def read_apart(self) -> tuple[nn.Module, ...]:
        """Modules in blocks whose parameters are read before their block runs, which sharded training has to know."""
        return ()

    def forward(self, batch: Batch, logits: bool = False) -> Tensor:
        """Cross entropy at the predicted positions, (B, P) float32; with ``logits`` the logits there, (B, P, V).

        Empty prediction slots (weight 0) hold any finite number.
        """
        raise NotImplementedError

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states, (B, S, H), zero at padding."""
        raise NotImplementedError

    def flops(self, length: int, predicted: int, layers: int) -> float:
        """Floating-point operations of one sequence's forward pass, a multiplication with its addition counted as two.

        Args:
            length: S.
            predicted: P.
            layers: how many layers are active.
        """
        raise NotImplementedError

    def work(self, kind: Kind, batch: Batch, of: str = "main") -> Work:
        """What a pass over ``batch`` is to the clock; ``of`` is the name of this model there."""
        return Work(kind, len(batch), batch.length, len(self.active_layers), of)

    def fast_paths(self, length: int | None = None) -> dict[str, str]:
        """Which implementation was chosen for what, for the run's summary; sequences have ``length`` tokens at most."""
        raise NotImplementedError

    @property
    def kernel_ops(self) -> tuple[str, ...]:
        """The operations of ``cramming.kernels`` that it computes with."""
        return ()

    def use_kernels(self, chosen: Mapping[str, str]) -> None:
        """Compute operations by these backends from now on; those not named stay as they are.

        Args:
            chosen: by operation, of ``kernel_ops``, a backend of ``cramming.kernels.backends.NAMES``, or ``auto``.

        Raises:
            ValueError: there is no such backend, or no such operation in the model.
        """

    def attention_lacks(self, form: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why attention cannot be computed in a form, on a device in a precision; None if it can, as ``auto`` always.

        Args:
            form: of ``cramming.config.ATTENTION``.
            device: where.
            dtype: of the passes.
        """
        return None if form == "auto" else f"{type(self).__name__} computes it in its own way"

    @property
    def all_ways(self) -> frozenset[str]:
        """The ways of the model and of every module in it."""
        return frozenset().union(*(getattr(module, "ways", ()) for module in self.modules()))

    def compute_plainly(self, names: Iterable[str]) -> None:
        """Compute in these ways plainly, in all others fast; before an engine makes a copy of the model.

        Args:
            names: of ``cramming.plain.WAYS``; those that the model does not have change nothing.
        """
        plain = frozenset(names)
        for module in self.modules():
            if hasattr(module, "ways"):
                module.plain = plain  # type: ignore[assignment]

    def parameter_options(self) -> Mapping[str, Mapping[str, float]]:
        """Learning rates and weight decay that parameters have of their own, whatever the optimizer's are.

        By name of the parameter: ``lr`` where the schedule's factor is 1, ``weight_decay``, and ``norm``: it is decayed
        where weights of norms are, as by default one-dimensional parameters are, and only those.
        """
        return {}


def require_separable_layers(model: Model, method: str) -> None:
    """Keep a method that adds or leaves out single layers from models that have none.

    Raises:
        UserError: layers share their weights, or run all together only.
    """
    if not model.separable_layers:
        why = "are one and the same" if len(model.blocks) == model.layers else "only run all together"
        raise UserError(
            f"method={method} needs layers that are each their own, and those of {type(model).__name__} {why}: choose "
            "another arch, or leave the method out"
        )
