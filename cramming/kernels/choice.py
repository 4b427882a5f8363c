"""``impl.kernels``: which backend does each operation of a model, settled when the model's engine is built.

``auto`` is ``torch`` on a processor. On a GPU it is the fastest of those that pass their test there
(``selftest.py``), forward and backward timed at the sizes of the run. A backend that is asked for by name and cannot
be had, or fails its test, gives way to the next of ``backends.FALLBACKS``. What was settled is said in one line for the
process and stored with the run, which is not timed again when it is resumed: ``auto`` keeps to it. A backend that is
asked for by name is tried again then, and if another comes out than before, the line says so.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from cramming.kernels import backends, cuda
from cramming.kernels.operands import Convolution
from cramming.kernels.selftest import ConvolutionSizes, GluSizes, Sizes, check_alive, self_test
from cramming.out_of_memory import is_out_of_memory

_log = logging.getLogger(__name__)
PREFERRED = ("cuda", "triton", "torch")  # of those that are as fast
TIE = 0.03  # share of time that is no difference
_WARM_UP, _ROUNDS = 2, 5
_CALLS = 4  # in a row, of which the time is taken
_AHEAD_CYCLES = 20_000_000  # about 10 ms, in which they are queued
_TIMED_TOKENS = 1 << 16  # of larger passes so many are timed
_USUAL_TOKENS = 1 << 14  # of a pass, where nobody says
_USUAL_LENGTH = 128
Timed = Callable[[Callable[[], None]], float]  # -> seconds that some work takes
_said: set[str] = set()


class Choice(NamedTuple):
    """A backend for an operation.

    Attributes:
        backend: of ``backends.NAMES``.
        why: what there is to say about it.
        missed: whether another was asked for.
    """

    backend: str
    why: str = ""
    missed: bool = False


def use(
    model: nn.Module,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    asked: str = backends.AUTO,
    *,
    known: Mapping[str, str] | None = None,
    length: int | None = None,
    sequences: int | None = None,
    said: bool = False,
) -> dict[str, str]:
    """Settle how a model's operations are computed, and tell the model: -> backend by operation, ``{}`` without any.

    Before the model is compiled or recorded, never meanwhile.

    Args:
        model: its ``kernel_ops`` are settled.
        device: where its passes run; None: where its weights are.
        dtype: of the passes; None: of its weights.
        asked: of ``impl.kernels``.
        known: what was settled before, which ``auto`` keeps to; nothing is compiled for that.
        length: tokens of a sequence, for timing; None: 128, or as many as it takes.
        sequences: of a pass, for timing; None: as is usual.
        said: say in the log what was settled. That something asked for cannot be had is said in any case.
    """
    ops: Sequence[str] = getattr(model, "kernel_ops", ())
    if not ops:
        return {}
    weights = next(model.parameters())
    where, dtype = torch.device(device or weights.device), dtype or weights.dtype
    known = {op: name for op, name in (known or {}).items() if op in ops and name in backends.NAMES}
    choices = {}
    for op in ops:
        sizes = sizes_of(model, op, length, sequences)
        if asked == backends.AUTO and op in known:
            choices[op] = choose(op, where, dtype, sizes, known[op], build=False)
        else:
            choices[op] = choose(op, where, dtype, sizes, asked)
    settled = {op: choice.backend for op, choice in choices.items()}
    missed = any(choice.missed for choice in choices.values())
    others = {op: name for op, name in known.items() if name != settled[op]}
    line = f"kernels: {_listed(settled, model, {op: choice.why for op, choice in choices.items()})}"
    if others:
        line += f"; this run began with {_listed(others)}: bitwise equality no longer holds"
    silent = where.type == "cpu" and set(settled.values()) == {"torch"}
    if (missed or others or (said and not silent)) and line not in _said:
        _said.add(line)
        _log.log(logging.WARNING if missed or others else logging.INFO, "%s", line)
    model.use_kernels(settled)  # type: ignore[operator]
    return settled


def described(settled: Mapping[str, str] | None, model: nn.Module | None = None) -> dict[str, str]:
    """For a summary: which backend does what, as ``kernels``; nothing for a model without these operations.

    Args:
        settled: backend by operation.
        model: with these operations; what it computes without them is said.
    """
    return {"kernels": _listed(settled, model)} if settled else {}


def choose(op: str, device: torch.device, dtype: torch.dtype, sizes: Sizes, asked: str, build: bool = True) -> Choice:
    """The backend of an operation.

    Args:
        op: ``gated_long_conv`` or ``block_diagonal_glu``.
        device: where.
        dtype: of the passes.
        sizes: of the run's operands.
        asked: of ``backends.NAMES``, or ``auto``.
        build: compile ``cuda`` if it is asked for and not there.
    """
    if asked == backends.AUTO:
        if device.type != "cuda":
            return Choice("torch")
        return fastest(op, device, dtype, sizes)
    if asked == backends.REFERENCE:
        square = op == "gated_long_conv"
        return Choice(asked, "the definition, whose time grows with the square of the length" if square else "")
    if asked == "cuda" and build and device.type == "cuda":
        cuda.ensure_built(device)  # who asks for it by name has it built; why it cannot be had is said below
    failed: dict[str, str] = {}
    for name in (asked, *backends.FALLBACKS[asked]):
        # All of the line are tested: what lacks some sizes gives way to the next one in the middle of the run.
        why = unusable(op, name, device, dtype, sizes)
        if why is not None:
            failed[name] = why
    chosen = next(name for name in (asked, *backends.FALLBACKS[asked]) if name not in failed)
    return Choice(chosen, _reasons(failed) if chosen != asked else "", missed=chosen != asked)


def unusable(op: str, name: str, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> str | None:
    """Why a backend cannot be had here, or not trusted; None: it can. torch, which the others give way to, always."""
    return None if name == "torch" else self_test(op, name, device, dtype, sizes.small())


@functools.cache
def fastest(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sizes,
    timed: Timed | None = None,
    names: Sequence[str] = PREFERRED,
) -> Choice:
    """The fastest of the backends that pass their test, forward and backward; asked once in a process.

    Args:
        op: ``gated_long_conv`` or ``block_diagonal_glu``.
        device: a GPU, unless ``timed`` is given.
        dtype: of the passes.
        sizes: of the run's operands.
        timed: seconds that work takes; None: as the GPU counts them.
        names: of backends, those first that are preferred where they take the same time.
    """
    failed = {name: why for name in names if (why := unusable(op, name, device, dtype, sizes)) is not None}
    usable = [name for name in names if name not in failed]
    seconds: dict[str, float] = {}
    if len(usable) > 1:
        seconds, stopped = _measured(op, usable, device, dtype, sizes, timed or _seconds_on(device))
        failed |= stopped
        usable = [name for name in usable if name not in stopped] or ["torch"]
    best = min((seconds[name] for name in usable if name in seconds), default=0.0)
    chosen = next(name for name in usable if seconds.get(name, 0.0) <= (1 + TIE) * best)
    parts = [] if chosen == "torch" else ["passed its test"]
    if chosen == "torch":
        slower = "; ".join(f"{seconds[name] / best:.1f} times as fast as {name}" for name in usable[:-1])
        parts += [f"{slower} at {_at(sizes)}"] if slower else []
    elif "torch" in seconds:
        parts.append(f"{seconds['torch'] / seconds[chosen]:.1f} times as fast as torch at {_at(sizes)}")
    parts += [_reasons(failed)] if failed else []
    return Choice(chosen, "; ".join(parts))


def sizes_of(model: Any, op: str, length: int | None = None, sequences: int | None = None) -> Sizes:
    """Sizes of an operation's operands in a pass of a model with ``M2Config``'s options.

    Args:
        model: built.
        op: ``gated_long_conv`` or ``block_diagonal_glu``.
        length: tokens of a sequence; None: 128, or as many as it takes.
        sequences: of a pass; None: as is usual.
    """
    config, longest = model.config, int(model.max_positions)
    length = min(length or _USUAL_LENGTH, longest)
    sequences = max(1, min(sequences or _USUAL_TOKENS // length, _TIMED_TOKENS // length))
    if op == "gated_long_conv":
        return ConvolutionSizes(
            config.hidden,
            sequences,
            length,
            min(config.filter_length or longest, 1 << (length - 1).bit_length()),  # more have no effect
            directions=2 if config.bidirectional else 1,
            residual=config.residual_convolution,
            kept=True,  # from one microbatch to the next, for those that use them
        )
    blocks = config.blocks
    inputs, width = config.hidden // blocks, 2 * config.intermediate // blocks
    return GluSizes(sequences * length, inputs, width, inputs, pairs=blocks // 2, blocks=blocks)


def _measured(
    op: str, names: Sequence[str], device: torch.device, dtype: torch.dtype, sizes: Sizes, timed: Timed
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds forward and backward, the median of some rounds in turns; and why some have none."""
    failed: dict[str, str] = {}
    rounds: dict[str, list[float]] = {}
    with torch.no_grad():
        try:
            given = sizes.operands(dtype, device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return {}, {}
        works = {name: _work(op, name, given) for name in names}
        for name, work in works.items():
            try:
                for _ in range(_WARM_UP):
                    work()
            except Exception as error:  # whatever it is: another backend does the work, and the log says why
                full = isinstance(error, RuntimeError) and is_out_of_memory(error)
                failed[name] = str(error).strip().partition("\n")[0]
                if not full:
                    if name == "torch":
                        raise
                    check_alive(op, name, device, failed[name])
                    backends.refuse(op, name, device, dtype, failed[name])
            else:
                rounds[name] = []
        for _ in range(_ROUNDS):
            for name, found in rounds.items():
                found.append(timed(works[name]))
    return {name: median(found) for name, found in rounds.items()}, failed


def _work(op: str, name: str, given: Any) -> Callable[[], None]:
    """A pass of a backend and its way back."""
    found, _ = backends.of(op, name)
    assert found is not None

    def convolved() -> None:
        found.convolve_back(given, found.convolve(given))

    def glued() -> None:
        made, kept = found.glu_forward(given, True)
        found.glu_back(given, kept, made)

    return convolved if isinstance(given, Convolution) else glued


def _seconds_on(device: torch.device) -> Timed:
    """As a GPU counts them: of several calls that wait in its queue, so that gaps between launches do not count."""

    def seconds(work: Callable[[], None]) -> float:
        with torch.cuda.device(device):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_AHEAD_CYCLES)
            began.record()
            for _ in range(_CALLS):
                work()
            ended.record()
            ended.synchronize()
            return float(began.elapsed_time(ended)) / 1000 / _CALLS

    return seconds


def _at(sizes: Sizes) -> str:
    """Where something holds: the length of sequences, or the tokens of a pass."""
    return f"{sizes.length if isinstance(sizes, ConvolutionSizes) else sizes.tokens:,} tokens"


def _listed(settled: Mapping[str, str], model: Any = None, why: Mapping[str, str] | None = None) -> str:
    """Operations by backends, and what there is to say about each."""
    parts = []
    for op, backend in settled.items():
        remarks = [(why or {}).get(op, "")]
        if op == "block_diagonal_glu" and model is not None and model.config.dropout:
            remarks.append("but for training with dropout")
        said = "; ".join(filter(None, remarks))
        parts.append(f"{op} by {backend}{f' ({said})' if said else ''}")
    return ", ".join(parts)


def _reasons(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in failed.items())
