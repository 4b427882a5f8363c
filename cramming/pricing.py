"""Another model for a run to ask, such as a teacher: at its own architecture's price, by the run's own ``rst=``."""

from dataclasses import replace
from pathlib import Path

import torch

from cramming import resolve
from cramming.build import Parts
from cramming.costs import Setting
from cramming.errors import UserError
from cramming.exchange.weights import Weights
from cramming.kernels import choice
from cramming.precision import DTYPES
from cramming.priced import calibrate_command, flops_of, probes, target_of
from cramming.train import Run


def add_model(run: Run, name: str, weights: Weights) -> None:
    """Let ``run.engine.logits(..., of=name)`` ask a model, and the clock charge for it.

    A table of its prices is kept in the run's folder as ``rst-<name>.json`` and is used again when the run goes on.

    Args:
        run: built; its clock knows the prices of its own model.
        name: what to call the model.
        weights: the model, in the layers that are active.

    Raises:
        UserError: it takes no sequences as long as the run's, or has no price there.
    """
    weights = weights.trained()
    model, device = weights.model(), run.engine.device
    longest, asked = int(model.max_positions), run.stream.store.seq_length
    if longest < asked:
        raise UserError(f"{weights.title} takes sequences of up to {longest} tokens and data.seq_length is {asked}")
    config = replace(run.config, arch=weights.arch, init_from=None)
    parts, precision = Parts(config, weights.vocab_size, device), run.engine.precision
    setting = Setting(
        target=target_of(parts, precision),
        base_dir=Path(config.base_dir),
        run_dir=Path(config.base_dir) / str(config.name),
        probes=lambda lengths: probes(parts, precision, lengths),
        flops=flops_of(parts, model),
        synchronize=torch.cuda.synchronize if device.type == "cuda" else None,
        calibrate_command=calibrate_command(parts),
        own_table=f"rst-{name}.json",
        subject=f"the {name}, {weights.title}",
    )
    with resolve.whole_machine():  # as the prices of the run's own model
        run.clock.costs[name] = config.rst.build_other(setting, run.clock.costs["main"])
    choice.use(model, device, DTYPES[precision], config.impl.kernels, length=asked)
    run.engine.add_model(name, model)
