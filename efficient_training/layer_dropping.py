"""Progressive layer dropping: leave out more layers as training goes on (Zhang & He 2020, "Accelerating Training of
Transformer-Based Language Models with Progressive Layer Dropping", https://arxiv.org/abs/2010.13369).

theta(t) = theta + (1 - theta) exp(-gamma t) at progress t; of n active layers the i-th from below, i = 1 to n, is left
out with probability (1 - theta(t)) i / n, independently of the others, for all sequences of a draw group at once (the
paper's section 4.2, as in No Train No Gain, https://arxiv.org/abs/2307.06440). All layers are there in validation.

Costs what the layers cost that are kept, none of them being possible; at the study's prices and defaults a budget buys
1.330 times the steps.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import torch

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.method import Method
from cramming.model import require_separable_layers
from cramming.registry import register

if TYPE_CHECKING:
    from cramming.train import Run


@register("method", "layer_dropping")
@dataclass
class LayerDropping(Method):
    """Leave layers out, the upper ones more often; theta 1 leaves out none and is the baseline.

    It composes with layer stacking: n counts the layers that are active at the time. A parameter of a layer that no
    group of a step kept has no gradient, and so neither an update nor decay. A step's probabilities are those of the
    progress at its beginning. Batches that another method gathers for one step (progressive batching) draw alike.

    Attributes:
        theta: what theta(t) falls to: the probability with which the last layer is then kept.
        gamma: how fast; with 100 it is there to 1 % after 4.6 % of the budget.
        sequences_per_draw: sequences that share a draw, the study's 128; a smaller batch is one group, as is any with
            null. A pass may hold fewer, which changes nothing but the speed.
        rescale: a layer kept with probability p changes its input by 1 / p times as much, layer(x) becoming
            x + (layer(x) - x) / p, so that on average over the draws it is layer(x). The paper scales each sublayer's
            branch, which is the same but for what the feed-forward part then sees of the attention's share. Layers that
            end with a norm (post-norm BERT, MosaicBERT, M2) give something that is no longer normed. Networks whose own
            loop runs the layers (transformers', as deberta and hf) are refused.

    Raises:
        UserError: an option outside its range.
    """

    theta: float = 0.5
    gamma: float = 100.0
    sequences_per_draw: Optional[int] = 128  # noqa: UP045 (OmegaConf reads this form)
    rescale: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.theta <= 1:
            raise UserError(
                f"method.layer_dropping.theta={self.theta} is the last layer's probability of being kept; give 0 to 1"
            )
        if not 0 <= self.gamma < math.inf:
            raise UserError(f"method.layer_dropping.gamma={self.gamma} must be a finite number from 0, such as 100")
        if self.sequences_per_draw is not None and self.sequences_per_draw < 1:
            raise UserError(
                f"method.layer_dropping.sequences_per_draw={self.sequences_per_draw} must be at least 1, or null for "
                "the whole batch"
            )
        self._drop = 0.0  # of the last layer, in the step under way
        self._layers = 0  # kept, added up over sequences ...
        self._sequences = 0  # ... of which there were so many

    def drop_probability(self, progress: float) -> float:
        """1 - theta(t), with which the last layer is left out."""
        return (1 - self.theta) * -math.expm1(-self.gamma * progress)

    def setup(self, run: "Run") -> None:
        require_separable_layers(run.model, "layer_dropping")
        if self.rescale and not run.model.scales_layers:
            raise UserError(
                f"method.layer_dropping.rescale=true has no way into the loop of {type(run.model).__name__}: leave it "
                "out, or choose another arch"
            )

    def before_step(self, run: "Run") -> None:
        # Once for a step: the clock goes on between its groups, and a second pass over them must draw the same layers.
        self._drop = self.drop_probability(run.clock.progress)

    @contextmanager
    def thinned(self, run: "Run", group: Batch) -> Iterator[None]:
        model = run.model
        layers, scales = model.active_layers, model.layer_scales
        drops = {layer: self._drop * place / len(layers) for place, layer in enumerate(layers, start=1)}
        draws = torch.rand(
            len(layers), dtype=torch.float64, generator=run.generator("layer_dropping", run.step, group.index)
        )
        kept = tuple(layer for layer, draw in zip(layers, draws.tolist(), strict=True) if draw >= drops[layer])
        self._layers += len(kept) * group.sequences
        self._sequences += group.sequences
        model.active_layers = kept
        if self.rescale:
            model.layer_scales = {layer: 1 / (1 - drops[layer]) for layer in kept if drops[layer]}
        try:
            yield
        finally:
            model.active_layers, model.layer_scales = layers, scales

    def columns(self) -> dict[str, float]:
        """The last layer's drop probability, and the layers a sequence went through, on average since the beginning."""
        if not self._sequences:
            return {}
        return {"drop_probability": self._drop, "mean_layers": self._layers / self._sequences}

    def state_dict(self) -> dict[str, Any]:
        return {"drop": self._drop, "layers": self._layers, "sequences": self._sequences}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drop, self._layers, self._sequences = state["drop"], state["layers"], state["sequences"]
