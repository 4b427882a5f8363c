"""The contract between the loop and every architecture.

Shape legend: B sequences, S positions, P prediction slots, H hidden, L layers, V vocabulary.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from cramming.batch import Batch


class Model(nn.Module):
    """A masked language model of L layers, any ascending subset of which may be active.

    Every layer is allocated from the start, so that growing or dropping never changes the shape of a checkpoint;
    parameters of layers that are not active stay out of the graph and keep the gradient None. Padding
    (``batch.lengths``) and documents to keep apart (``batch.starts``) are honoured, and only predicted positions go
    through the vocabulary projection.

    Attributes:
        blocks: the L layers, compiled one by one if compiling is asked for.
        active_layers: indices of the layers that run, ascending; ``()`` runs none.
        vocab_size: V.
        max_positions: the longest sequence it takes, in tokens.
        gradient_checkpointing: keep a layer's input only and compute the layer again in backward: less memory, more
            time, the same gradients (https://arxiv.org/abs/1604.06174).
    """

    blocks: nn.ModuleList
    active_layers: tuple[int, ...]
    vocab_size: int
    max_positions: int
    gradient_checkpointing: bool = False

    @property
    def layers(self) -> int:
        """L, the number of layers allocated."""
        return len(self.blocks)

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

    def fast_paths(self, length: int | None = None) -> dict[str, str]:
        """Which implementation was chosen for what, for the run's summary; sequences have ``length`` tokens at most."""
        raise NotImplementedError

    def parameter_options(self) -> Mapping[str, Mapping[str, float]]:
        """Learning rates and weight decay that parameters have of their own, whatever the optimizer's are.

        By name of the parameter: ``lr`` where the schedule's factor is 1, ``weight_decay``, and ``norm``: it is decayed
        where weights of norms are, as by default one-dimensional parameters are, and only those.
        """
        return {}
