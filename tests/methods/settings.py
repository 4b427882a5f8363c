"""Every method at two settings: one that acts within a few steps, one that must be the baseline bit for bit.

A run in memory (``memory.run_of``) has batches of 8 sequences and two layers. Each method adds itself to both tables.
"""

from collections.abc import Callable

from irreducible_arrays import shared_array
from memory import small_model

from cramming.method import Method
from cramming.train import Run
from efficient_training.distillation import Distillation
from efficient_training.hessian import Hessian
from efficient_training.hutchinson import Hutchinson
from efficient_training.layer_dropping import LayerDropping
from efficient_training.layer_stacking import LayerStacking
from efficient_training.length_warmup import LengthWarmup
from efficient_training.progressive_batching import ProgressiveBatching
from efficient_training.rho_loss import RhoLoss
from efficient_training.schedule_free import ScheduleFree
from efficient_training.selective_backprop import SelectiveBackprop
from efficient_training.sharpness import Sharpness
from efficient_training.token_dropping import TokenDropping
from efficient_training.weight_averaging import WeightAveraging


class Taught(Distillation):
    """By a small model that is nowhere on disk, at the price of the student."""

    def add_teacher(self, run: Run) -> str:
        run.clock.costs["teacher"] = run.clock.costs["main"]
        run.engine.add_model("teacher", small_model(seed=7))  # type: ignore[arg-type]
        return "small_model"


ACTIVE: dict[str, Callable[[], Method]] = {
    "distillation": lambda: Taught("small", alpha=0.5),
    "hessian": lambda: Hessian(hessian_every_steps=2),
    "hutchinson": lambda: Hutchinson(hessian_every_steps=2),
    "layer_dropping": lambda: LayerDropping(theta=0.2, sequences_per_draw=4),
    "layer_stacking": lambda: LayerStacking(
        shares=[0.5, 1.0], at=[0.3], optimizer_state="copy", learning_rate_power=0.25, freeze_lower=0.3
    ),
    "length_warmup": lambda: LengthWarmup(start=8, multiple=8, until=0.5),
    "progressive_batching": lambda: ProgressiveBatching(theta=0.5, max_batches=3),
    "rho_loss": lambda: RhoLoss(mega_batch_size=20, irreducible=shared_array()),
    "selective_backprop": lambda: SelectiveBackprop(candidates_per_pass=6),
    "sharpness": Sharpness,
    "token_dropping": lambda: TokenDropping(from_depth=0.0, momentum=0.5),
    "weight_averaging": lambda: WeightAveraging(average="ema", decay=0.5),
}
NEUTRAL: dict[str, Callable[[], Method]] = {
    "distillation": lambda: Taught(alpha=0.0),
    "hessian": lambda: Hessian(hessian_every_steps=100),
    "layer_dropping": lambda: LayerDropping(theta=1.0),
    "layer_stacking": lambda: LayerStacking(shares=[1.0], at=[]),
    "length_warmup": lambda: LengthWarmup(start=24),
    "progressive_batching": lambda: ProgressiveBatching(min_batches=1),
    "rho_loss": lambda: RhoLoss(mega_batch_size=8, irreducible=shared_array()),
    "schedule_free": ScheduleFree,
    "selective_backprop": lambda: SelectiveBackprop(beta=0.0, candidates_per_pass=4),
    "sharpness": lambda: Sharpness(rho=0.0),
    "token_dropping": lambda: TokenDropping(share=0.0),
    "weight_averaging": lambda: WeightAveraging(average="ema", decay=0.0),
}
