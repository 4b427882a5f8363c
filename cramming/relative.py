"""``python -m cramming.calibrate ... relative_to=rtx3090``: a table of another machine, scaled to another architecture.

The machine of the table is not here. Its own architecture (the base) and the one that is asked for are measured here in
turns, and the table's prices are scaled with the ratio (``rst.relative``). The result is a table for ``rst=table``.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cramming.build import Parts
from cramming.calibration import measured, this_machine
from cramming.cli import compose
from cramming.config import PretrainConfig
from cramming.costs import RTX3090
from cramming.errors import UserError
from cramming.priced import flops_of, probes, target_of
from rst.calibration import CalibrationError, Timing
from rst.relative import scale_table
from rst.table import CostTable, TableError
from rst.work import Work

NAMED = {"rtx3090": RTX3090}
# How the base of a named table was trained, in this project's words; its fingerprint must come out as the table's.
_RECIPES: dict[str, tuple[str, ...]] = {
    "rtx3090": ("arch=crammed", "data.vocab_size=32768", "data.seq_length=128", "train.mask_rate=0.15")
}
# Tokens in a pass of the base. A processor takes a second for so many; a GPU is only full with as many as for a table.
_BASE_TOKENS = {"cpu": 1024, "cuda": 16384}
_MOST_TOKENS = {"cpu": 4096, "cuda": 16384}  # in a pass of a smaller model: so many that it is as much work
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """A table to scale, and what its prices are for.

    Attributes:
        name: as it was asked for.
        table: the prices.
        config: a configuration whose architecture is the table's.
    """

    name: str
    table: CostTable
    config: PretrainConfig


def base_of(relative_to: str, base_arch: str | None) -> Base:
    """The table ``relative_to`` names, with the configuration of its architecture.

    Args:
        relative_to: a named table, or a file.
        base_arch: the option of ``arch`` that a file's prices are for.

    Raises:
        UserError: no such table, or a base that is not what the table was made for.
    """
    recipe = _RECIPES.get(relative_to)
    if recipe is None and not Path(relative_to).is_file():
        raise UserError(
            f"relative_to={relative_to}: there is no such table; there is {', '.join(NAMED)}, "
            "or give a table's file and the option of arch it was made for, base_arch=..."
        )
    try:
        table = CostTable.load(NAMED.get(relative_to, Path(relative_to)))
    except TableError as error:
        raise UserError(f"relative_to: {error}") from error
    if recipe is None:
        if base_arch is None:
            raise UserError(f"relative_to={relative_to} needs base_arch=..., the option of arch it was made for")
        recipe = (f"arch={base_arch}", f"data.seq_length={max(table.forward)}")
    return Base(relative_to, table, compose(["data=local", "data.path=none", *recipe]))


def scaled(
    base: Base,
    parts: Parts,
    precision: str,
    *,
    within_s: float,
    synchronize: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> CostTable:
    """The base's table scaled to the architecture of ``parts``, by costs measured on this machine in one run.

    Args:
        base: what to scale.
        parts: a configuration with the architecture to scale to.
        precision: to measure in; the table keeps the precisions it has.
        within_s: about how long to measure.
        synchronize: waits for the device.
        progress: told the share done, in [0, 1].

    Raises:
        UserError: the base is not what the table was made for, or the machine is too busy to be measured.
    """
    base_parts = Parts(
        replace(base.config, train=replace(base.config.train, optim=parts.config.train.optim)),
        int(base.config.data.vocab_size),
        parts.device,
    )
    made_for = base.table.differences(
        base_parts.architecture(), base.config.arch.layers, [base_parts.seq_length], base.table.provenance.precisions[0]
    )
    if made_for:
        raise UserError(f"relative_to={base.name}: {'; '.join(made_for)}: give the base_arch the table was made for")
    target = target_of(parts, precision)
    base_tokens, most = _BASE_TOKENS[parts.device.type], _MOST_TOKENS[parts.device.type]
    tokens = round(base_tokens * max(1.0, min(most / base_tokens, _work(base_parts) / _work(parts))))
    callables: dict[tuple[str, Work], Callable[[], None]] = {}
    for name, made in (
        ("base", probes(base_parts, precision, [base_parts.seq_length], base_tokens)),
        ("model", probes(parts, precision, target.lengths, tokens)),
    ):
        for work, call in made.items():
            if work.kind != "update" or base.table.update_s > 0:
                callables[name, work] = call
    device = f"{this_machine().device} in {precision}"

    def build(timings: Mapping[tuple[str, Work], Timing]) -> CostTable:
        of = {name: {work: t for (owner, work), t in timings.items() if owner == name} for name in ("base", "model")}
        return scale_table(base.table, of["base"], of["model"], target.architecture, device)

    log.info("measuring %s against %s (about %.0f s)", parts.config.arch.name, base.config.arch.name, within_s)
    try:
        return measured(callables, build, within_s, synchronize, progress)
    except (CalibrationError, TableError) as error:
        raise UserError(f"relative_to={base.name}: {error}") from error


def _work(parts: Parts) -> float:
    """Floating-point operations of a token forward through the whole model."""
    with torch.device("meta"):  # sizes only, no weights
        model = parts.config.arch.build(parts.vocab_size, parts.seq_length)
    whole = Work("forward", 1, parts.seq_length, model.layers)
    return flops_of(parts, model)(whole) / parts.seq_length
