"""Which operators a step's time goes to, from a trace in Chrome's format as ``torch.profiler`` writes it.

On a processor an operator's time is its own, without that of the operators it calls. Where there is a GPU it is the
time of the kernels it launches: what the host does meanwhile costs nothing, unless the device waits for it.

A trace makes small operators slower than they are, so it only says how the time of a phase (``phases.py``) divides
among operators; how long the phase takes is timed without it.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cramming.profiling.phases import DATA, OPTIMIZER, OTHER, PREFIX

PRODUCTS = "matrix products"
ATTENTION = "attention kernels"
FUSED = "fused kernels"
ELEMENTWISE = "element-wise operators"
NORMS = "normalization and softmax"
COPIES = "copies and casts"
INDEXING = "embedding and indexing"
RANDOM = "random numbers and dropout"
UPDATE = "optimizer"
READING = "reading and masking data"
REST = "other (views, Python, waiting)"  # also allocation and autograd; on a GPU, its waiting for the host
CLASSES = (PRODUCTS, ATTENTION, FUSED, ELEMENTWISE, NORMS, COPIES, INDEXING, RANDOM, UPDATE, READING, REST)
_OF_PHASE = {OPTIMIZER: UPDATE, DATA: READING, OTHER: REST}  # whatever the operators in them are
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")

# Operators by name, of torch (``aten::``) and of the kernels that libraries launch; the first that fits. Fourier
# transforms are counted among the products, as they are in the limit.
_BY_NAME = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (ATTENTION, r"scaled_dot_product|flash|fmha|efficient_attention|flex_attention|cudnn_attention"),
        (FUSED, r"^triton_(?!tem)|CompiledFxGraph"),
        (PRODUCTS, r"^aten::(_?add)?(b?mm|bmm|mv|_scaled_mm|_grouped_mm|_addmm_activation|baddbmm|dot)$|^aten::_fft_"),
        (PRODUCTS, r"gemm|cutlass|nvjet|xmma|cublas|^triton_tem|cufft|_fft|mkldnn.*linear"),
        (RANDOM, r"dropout|bernoulli|aten::(rand|normal|uniform|exponential)|distribution_|philox"),
        (NORMS, r"softmax|layer_?norm|rms_?norm|group_norm|logsumexp|nll_loss|GammaBeta|cross_entropy"),
        (UPDATE, r"_fused_(adam|sgd|adagrad)|multi_tensor_apply.*(adam|sgd)|FusedAdam"),
        (INDEXING, r"embedding|index|gather|scatter|aten::(take|masked_select|nonzero|sort|argsort|topk|_?unique)"),
        (INDEXING, r"RadixSort|SortKV"),
        (COPIES, r"copy|aten::(clone|cat|stack|fill|zero|repeat|constant_pad)|(slice|select)_backward|Memcpy|Memset"),
        (COPIES, r"CatArray|FillFunctor"),
        (ELEMENTWISE, r"elementwise|vectorized|multi_tensor_apply|reduce_kernel|convolution|conv_depthwise"),
    )
)
_AUTOGRAD = re.compile(r"^(torch::)?autograd::|^\w+Backwards?\d*$")  # which calls what it has to do by other names
_ARITHMETIC = re.compile(
    r"abs|add|addcdiv|addcmul|all|amax|amin|any|argmax|bitwise_and|bitwise_or|bitwise_xor|"
    r"ceil|clamp|clamp_min|cos|cumsum|div|eq|erf|exp|expm1|floor|floor_divide|ge|gelu|"
    r"gelu_backward|gt|isfinite|isnan|le|leaky_relu|lerp|linalg_vector_norm|log|logical_and|"
    r"logical_not|lt|masked_fill|max|maximum|mean|min|minimum|mul|ne|neg|norm|pow|reciprocal|"
    r"relu|remainder|round|rsqrt|rsub|sigmoid|sigmoid_backward|sign|silu|silu_backward|sin|"
    r"sqrt|sub|sum|tanh|tanh_backward|threshold_backward|triu|tril|where"
)


@dataclass(frozen=True)
class Operator:
    """What an operator took in a trace.

    Attributes:
        name: as the trace has it.
        kind: its class.
        seconds: its own time.
        calls: how often it ran.
    """

    name: str
    kind: str
    seconds: float
    calls: int


Traced = Mapping[str, Sequence[Operator]]
"""Phase -> its operators, in no order."""


def kind_of(name: str) -> str:
    """The class of an operator or of a kernel, by its name."""
    if _AUTOGRAD.search(name):
        return REST
    for kind, pattern in _BY_NAME:
        if pattern.search(name):
            return kind
    plain = name.removeprefix("aten::")
    if plain != name and _ARITHMETIC.fullmatch(plain.removeprefix("_foreach_").rstrip("_")):
        return ELEMENTWISE
    return REST


def traced(events: Iterable[Mapping[str, Any]]) -> Traced:
    """The operators of each phase, from a trace's events; what lies outside of phases is left out."""
    whole = [event for event in events if event.get("ph") == "X"]
    phases = [event for event in whole if _is_phase(event) and event.get("cat") == "user_annotation"]
    if not phases:
        return {}
    if any(event.get("cat") in _ON_DEVICE for event in whole):
        return _on_device(whole, phases)
    thread = phases[0]["tid"]
    return _on_host([e for e in whole if e.get("tid") == thread and e.get("cat") in ("cpu_op", "user_annotation")])


def shares(of_step: Mapping[str, float], found: Traced, traced_s: Mapping[str, float]) -> list[tuple[Operator, float]]:
    """Operators and their shares of a step; what a phase spends on none of them is an operator of its own.

    Args:
        of_step: share of a step that each phase takes, timed without a trace.
        found: the operators of each phase.
        traced_s: seconds of each phase while it was traced, if operators do not fill it (kernels on a GPU).
    """
    result: list[tuple[Operator, float]] = []
    for phase, share in of_step.items():
        operators = found.get(phase, ())
        busy_s = sum(operator.seconds for operator in operators)
        whole_s = max(busy_s, traced_s.get(phase, 0.0))
        for operator in operators:
            result.append((operator, share * operator.seconds / whole_s if whole_s else 0.0))
        idle = share * (1 - busy_s / whole_s) if whole_s else share
        if idle > 0:
            result.append((Operator(f"({phase})", _OF_PHASE.get(phase, REST), idle * whole_s, 0), idle))
    return result


def by_kind(operators: Iterable[tuple[Operator, float]]) -> dict[str, float]:
    """Class -> share of a step, the largest first."""
    sums: dict[str, float] = {}
    for operator, share in operators:
        sums[operator.kind] = sums.get(operator.kind, 0.0) + share
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _is_phase(event: Mapping[str, Any]) -> bool:
    return str(event.get("name", "")).startswith(PREFIX)


def _on_host(events: list[Mapping[str, Any]]) -> Traced:
    """Of events that enclose each other on one thread."""
    sums = _Sums()
    stack: list[_Open] = []

    def close(until: float) -> None:
        while stack and stack[-1].end <= until:
            one = stack.pop()
            if one.phase is not None:
                sums.add(one.phase, one.name, one.own)

    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        close(event["ts"])
        phase = event["name"].removeprefix(PREFIX) if _is_phase(event) else (stack[-1].phase if stack else None)
        if stack:
            stack[-1].own -= event["dur"]
        stack.append(_Open(event["name"], phase, event["ts"] + event["dur"], event["dur"]))
    close(float("inf"))
    return sums.operators()


def _on_device(events: list[Mapping[str, Any]], phases: list[Mapping[str, Any]]) -> Traced:
    """Of kernels, each in the phase in which the host launched it."""
    launched = {_argument(event, "correlation"): event["ts"] for event in events if event.get("cat") == "cuda_runtime"}
    launched |= {_argument(event, "correlation"): event["ts"] for event in events if event.get("cat") == "cuda_driver"}
    operators = {_argument(event, "External id"): event["name"] for event in events if event.get("cat") == "cpu_op"}
    starts, names = _changes(phases)
    sums = _Sums()
    for event in events:
        if event.get("cat") not in _ON_DEVICE:
            continue
        at = launched.get(_argument(event, "correlation"), event["ts"])
        place = bisect_right(starts, at) - 1
        phase = names[place] if place >= 0 else None
        if phase is None:
            continue
        operator, kernel = operators.get(_argument(event, "External id"), ""), str(event["name"])
        own = kind_of(kernel)
        kind = own if own in (ATTENTION, FUSED, PRODUCTS) or kind_of(operator) == REST else kind_of(operator)
        sums.add(phase, kernel, event["dur"], kind)
    return sums.operators()


def _changes(phases: list[Mapping[str, Any]]) -> tuple[list[float], list[str | None]]:
    """When which phase begins or goes on, of phases that may lie inside each other; None: outside of all."""
    starts: list[float] = []
    names: list[str | None] = []
    stack: list[tuple[float, str]] = []

    def close(until: float) -> None:
        while stack and stack[-1][0] <= until:
            starts.append(stack.pop()[0])
            names.append(stack[-1][1] if stack else None)

    for event in sorted(phases, key=lambda event: (event["ts"], -event["dur"])):
        close(event["ts"])
        stack.append((event["ts"] + event["dur"], event["name"].removeprefix(PREFIX)))
        starts.append(event["ts"])
        names.append(stack[-1][1])
    close(float("inf"))
    return starts, names


def _argument(event: Mapping[str, Any], key: str) -> Any:
    return (event.get("args") or {}).get(key)


@dataclass
class _Open:
    """An event whose end lies ahead: microseconds."""

    name: str
    phase: str | None
    end: float
    own: float


class _Sums:
    """Microseconds and calls by phase, operator and class."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], tuple[float, int]] = {}

    def add(self, phase: str, name: str, microseconds: float, kind: str | None = None) -> None:
        """One call."""
        kind = _OF_PHASE.get(phase) or (REST if name.startswith(PREFIX) else kind or kind_of(name))
        spent, calls = self._found.get((phase, name, kind), (0.0, 0))
        self._found[phase, name, kind] = (spent + max(0.0, microseconds), calls + 1)

    def operators(self) -> Traced:
        """All of them."""
        result: dict[str, list[Operator]] = {}
        for (phase, name, kind), (microseconds, calls) in self._found.items():
            shown = "(Python and what else is between operators)" if name.startswith(PREFIX) else name
            result.setdefault(phase, []).append(Operator(shown, kind, microseconds / 1e6, calls))
        return result
