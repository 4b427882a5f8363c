"""How weights move in fine-tuning: AdamW over the model's parameters, and its rate by step."""

from collections.abc import Callable

import torch
from torch import nn

from cramming import optim, schedule
from cramming.errors import UserError
from cramming.evaluation.config import Setting


def optimizer(model: nn.Module, setting: Setting) -> torch.optim.Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101); biases and weights of norms undecayed unless ``decay_all``.

    ``adamw`` takes p <- p (1 - lr_t wd), where lr_t is the rate of the step; ``decoupled_adamw`` takes
    p <- p (1 - (lr_t / lr) wd), whatever the peak lr is, as MosaicBERT's does
    (https://docs.mosaicml.com/projects/composer, DecoupledAdamW). The second is the first with wd / lr.

    Args:
        model: its parameters; ``parameter_options`` may say which of them are like norms.
        setting: the job's.

    Returns:
        The optimizer; every group carries ``base_lr``, which the schedule's factor multiplies.
    """
    decay = setting.weight_decay / setting.lr if setting.optimizer == "decoupled_adamw" else setting.weight_decay
    groups = optim.parameter_groups(model, decay_norms=setting.decay_all, decay_biases=setting.decay_all)
    return optim.build("adamw", groups, lr=setting.lr, betas=list(setting.betas), eps=setting.eps, weight_decay=decay)


def factors(setting: Setting, steps: int) -> Callable[[int], float]:
    """What the peak rate is multiplied by in step i, counted from 0, of ``steps``.

    With w the steps of warm-up (``warmup``, or its share of all steps, not rounded; all of them at most) and
    s = (i - w) / (steps - w):

    * i < w: i / w, so that the first step of a warm-up moves nothing but the optimizer's averages;
    * constant: 1;
    * linear: e + (1 - e) (1 - s), e being ``end_factor``;
    * polynomial: e + (1 - e) (1 - s)^power;
    * cosine: e + (1 - e) (1 + cos(pi s)) / 2.

    These are transformers' schedules, and pretraining's with i / steps for its progress.
    """
    share = setting.warmup if setting.warmup < 1 else min(1.0, setting.warmup / steps)
    end = setting.end_factor
    match setting.schedule:
        case "constant":
            shape: schedule.Schedule = schedule.Constant(warmup=share)
        case "linear":
            shape = schedule.Linear(warmup=share, end=end)
        case "cosine":
            shape = schedule.Cosine(warmup=share, end=end)
        case "polynomial":
            shape = schedule.Polynomial(warmup=share, end=end, power=setting.power)
        case other:
            raise UserError(f"schedule={other} is not known")
    return lambda step: shape(step / steps)
