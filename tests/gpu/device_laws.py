"""What a backend's kernels must obey on a GPU beside ``tests/kernels/laws.py``: graphs and streams."""

from typing import Any

import torch
from torch import Tensor

Operands = list[Tensor | None]


def both_ways(op: Any, operands: Operands, backend: str) -> list[Tensor]:
    """Output of a public operation and the gradients of all floating-point operands, ones coming in."""
    made = op(*operands, backend=backend)
    leaves = [part for part in operands if part is not None and part.is_floating_point()]
    return [made, *torch.autograd.grad(made, leaves, torch.ones_like(made))]


def replays_as_it_runs(op: Any, operands: Operands, backend: str) -> None:
    """Recorded as a CUDA graph, it computes what it does when called, whatever the first operand holds."""
    first = operands[0]
    assert first is not None
    both_ways(op, operands, backend)  # compiled, and torch's libraries loaded
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        both_ways(op, operands, backend)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = both_ways(op, operands, backend)
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            first.copy_(torch.randn_like(first))
        graph.replay()
        eager = both_ways(op, operands, backend)
        assert all(torch.equal(one, other) for one, other in zip(recorded, eager, strict=True))


def waits_for_its_stream(op: Any, operands: Operands, backend: str) -> None:
    """What a stream has before it is waited for, and what it does is on it: a long pause, then the operands."""
    expected = both_ways(op, operands, backend)
    late = [
        part if part is None or not part.is_floating_point() else torch.full_like(part, torch.nan).requires_grad_()
        for part in operands
    ]
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            for place, part in zip(late, operands, strict=True):
                if place is not None and part is not None:
                    place.copy_(part)
        found = both_ways(op, late, backend)
    beside.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
