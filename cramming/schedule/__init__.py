"""Schedules: pure functions of progress, the share of the budget that is spent.

A schedule is called with progress in [0, 1] and returns a factor in [0, 1] that multiplies every base learning rate.
It keeps no state and never sees a step number, so a run laid out to 24 hours follows the same curve on any machine,
after any resume. Warm-up and cool-down are shares of the budget too. ``Ramp`` is the same idea for a quantity that is
not a factor: a batch size, a mask rate.

Each class is schema, defaults and object: ``falls.py`` has those that fall smoothly, ``steps.py`` those that fall in
pieces, ``plateaus.py`` those that hold or rise; ``config/train/schedule/<kind>.yaml`` makes it
``train/schedule=<kind>``.
"""

from cramming.schedule.base import Cooled, Decaying, Phased, Schedule
from cramming.schedule.falls import (
    Cosine,
    CosineAnnealing,
    Exponential,
    InverseSqrt,
    InverseTime,
    Linear,
    Polynomial,
)
from cramming.schedule.plateaus import (
    Constant,
    Dive,
    InverseCosine,
    MultiCycle,
    OneCycle,
    Rise,
    Trapezoid,
    Triangle,
)
from cramming.schedule.ramp import Ramp
from cramming.schedule.steps import ElasticStepDecay, PiecewiseConstant, PiecewiseInverseTime, Steps

__all__ = [
    "Constant",
    "Cooled",
    "Cosine",
    "CosineAnnealing",
    "Decaying",
    "Dive",
    "ElasticStepDecay",
    "Exponential",
    "InverseCosine",
    "InverseSqrt",
    "InverseTime",
    "Linear",
    "MultiCycle",
    "OneCycle",
    "Phased",
    "PiecewiseConstant",
    "PiecewiseInverseTime",
    "Polynomial",
    "Ramp",
    "Rise",
    "Schedule",
    "Steps",
    "Trapezoid",
    "Triangle",
]
