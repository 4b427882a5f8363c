"""How the ranks of a run train one model together: ``impl.parallel``.

* ``none``: one process; passes run on the model, or on its low-precision copy (``cramming/precision.py``).
* ``ddp``: the model whole on every rank (``replicas.py``).
* ``fsdp``: each rank has some rows of every parameter, and the optimizer's state for these (``shards.py``).

All have the interface of ``WorkingCopy``, and the engine knows nothing else of them. Gradients that the optimizer sees
are float32 and those of the whole batch: losses are normalized by all ranks' predicted tokens and multiplied by their
number, because torch averages.
"""

from cramming.model import Model
from cramming.parallel.replicas import Replicas
from cramming.parallel.shards import Shards, shard
from cramming.precision import WorkingCopy


def share_out(model: Model, precision: str, parallel: str) -> None:
    """What has to be done to a model's weights before there is an optimizer over them.

    Args:
        model: with its first weights, the same on all ranks.
        precision: of the passes.
        parallel: ``none``, ``ddp`` or ``fsdp``.
    """
    if parallel == "fsdp":
        shard(model, precision)


def spread(model: Model, precision: str, parallel: str, *, once: bool = True) -> "WorkingCopy[Model] | Shards":
    """What passes run on.

    Args:
        model: float32 weights, on its device; ``share_out`` was called.
        precision: of the passes.
        parallel: ``none``, ``ddp`` or ``fsdp``.
        once: cast the weights once for each step, not for each microbatch; ``fsdp`` casts when it gathers them.
    """
    if parallel == "fsdp":
        return Shards(model)
    kind = Replicas if parallel == "ddp" else WorkingCopy
    return kind(model, precision, once=once)
