"""How the ranks of a run train together where nobody says it, and what cannot be trained so."""

import logging

import torch

from cramming.config import PretrainConfig
from cramming.errors import UserError
from cramming.parallel.environment import launched

_log = logging.getLogger(__name__)
_BYTES = 16  # of a parameter: its weight, its gradient and two means of AdamW's, in float32
_SHARE = 0.8  # of a device's memory; the rest is for a low-precision copy and what passes keep


def refuse(config: PretrainConfig) -> None:
    """Refuse what several ranks cannot do by FSDP.

    Raises:
        UserError: an optimizer that works on whole tensors.
    """
    if config.impl.parallel == "fsdp" and launched().world > 1 and not config.train.optim.shards:
        raise UserError(
            f"train/optim={config.train.optim.kind} needs each parameter whole, and impl.parallel=fsdp spreads it over "
            "ranks: use impl.parallel=ddp, or another optimizer such as adamw"
        )


def fits(parameters: int, where: torch.device) -> bool:
    """Whether one device can hold weights, gradients and the optimizer's state; a processor is not asked."""
    if where.type != "cuda":
        return True
    return parameters * _BYTES <= _SHARE * torch.cuda.get_device_properties(where).total_memory


def choose(config: PretrainConfig, parameters: int, where: torch.device) -> str:
    """``ddp``, or ``fsdp`` for a model that does not fit one device with its optimizer; a line of the log says why."""
    if fits(parameters, where):
        return "ddp"
    needs = f"{parameters:,} parameters need {parameters * _BYTES / 2**30:.0f} GiB while they are trained"
    if not config.train.optim.shards:
        _log.warning("%s, and train/optim=%s cannot be spread over ranks by FSDP", needs, config.train.optim.kind)
        return "ddp"
    _log.info("%s: ranks share them (impl.parallel=fsdp)", needs)
    return "fsdp"
