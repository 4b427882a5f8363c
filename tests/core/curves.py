"""Loss curves of tiny models, trained for 50 steps in ways that must not matter.

The rows are those of ``memory.py``: 24 tokens of a vocabulary of 64, or documents of 3 to 24 tokens and padding.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from memory import LENGTH, VOCABULARY, endless_clock, store, stream

from cramming.build import fast_ways
from cramming.engine import Engine
from cramming.method import Method
from cramming.optim import for_model
from cramming.optim.config import AdamW
from tests.architectures.families import arch

STEPS, BATCH = 50, 8
LR = 1e-3
_SMALL: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 64}
# What lets every way of a family matter in rows so short.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": _SMALL,
    "crammed": _SMALL,
    "mosaic": _SMALL,
    "modern": {**_SMALL, "window": 4},
    "m2": {"layers": 2, "hidden": 32, "intermediate": 64, "filter_order": 16},
    "albert": {**_SMALL, "embedding_dim": 16},
    "24hbert": _SMALL,
    "roberta": _SMALL,
    "neobert": _SMALL,
    "deberta": _SMALL,
}


def engine(
    family: str,
    plain: Iterable[str] = (),
    *,
    precision: str = "float32",
    microbatch_size: int = BATCH,
    attention: str = "auto",
    checkpointing: bool = False,
    lr: float = LR,
    **options: Any,
) -> Engine:
    """A small model of a family, always with the same weights, and its engine; ``options`` are the architecture's."""
    torch.manual_seed(0)
    config = arch(f"{family}_tiny", **{**FAMILIES[family], **options})
    model: Any = config.build(VOCABULARY, LENGTH)
    with torch.no_grad():  # weights large enough that all of it matters
        for name, parameter in model.named_parameters():
            if "filters" not in name:  # which are multiplied by ten inside a sine
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.train(config.drops_out)
    model.attention, model.gradient_checkpointing = attention, checkpointing
    names = frozenset(plain)
    model.compute_plainly(names)
    optimizer = for_model(AdamW(lr=lr), model, fused="fused_optimizer" not in names)
    return Engine(
        model, optimizer, endless_clock(), precision=precision, microbatch_size=microbatch_size, clip_norm=0.5
    )


def losses(made: Engine, layout: str = "packed") -> list[float]:
    """Train, and give the loss of every step."""
    rows, found = stream(store(layout)), []
    torch.manual_seed(1)  # dropout's
    for _ in range(STEPS):
        for part in rows.draw(BATCH).split(made.microbatch_size):
            made.backward(part, Method().objective)
        made.step(1.0)
        found.append(made.loss)
    return found


def curve(family: str, plain: Iterable[str] = (), layout: str = "packed", **how: Any) -> list[float]:
    """The losses of a model, see ``engine``."""
    return losses(engine(family, plain, **how), layout)


@cache
def fast(family: str, layout: str = "packed", precision: str = "float32", microbatch_size: int = BATCH) -> list[float]:
    """The curve with everything fast."""
    return curve(family, layout=layout, precision=precision, microbatch_size=microbatch_size)


@cache
def ways(family: str, precision: str = "float32") -> frozenset[str]:
    """What can be had plainly."""
    return fast_ways(engine(family, precision=precision))


def distance(one: list[float], other: list[float]) -> float:
    """The largest difference of two curves, as a share of the loss."""
    return max(abs(a - b) / b for a, b in zip(one, other, strict=True))
