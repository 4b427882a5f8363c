"""Reference system time (RST): what training work costs on a reference machine.

Kaddour et al., "No Train No Gain: Revisiting Efficient Training Algorithms For Transformer-based Language Models"
(https://arxiv.org/abs/2307.06440), section 2: a budget is counted in the seconds a reference machine would need for the
work done, not in the seconds this machine happens to take, so that results carry over from one machine to another.

``work`` names a piece of work, ``costs`` and ``table`` price it, ``clock`` adds prices up against a budget,
``calibration`` measures prices and ``relative`` carries them over to another model. Nothing here knows a model, a
configuration or torch.
"""

from rst.calibration import CalibrationError, Timing, build_table, measure, probe_depths, probe_works
from rst.clock import Clock, CostModel
from rst.costs import FlopsCost, StepsCost, WallClockCost
from rst.relative import scale_table
from rst.table import CostTable, Provenance, TableError
from rst.work import KINDS, Kind, Work

__all__ = [
    "KINDS",
    "CalibrationError",
    "Clock",
    "CostModel",
    "CostTable",
    "FlopsCost",
    "Kind",
    "Provenance",
    "StepsCost",
    "TableError",
    "Timing",
    "WallClockCost",
    "Work",
    "build_table",
    "measure",
    "probe_depths",
    "probe_works",
    "scale_table",
]
