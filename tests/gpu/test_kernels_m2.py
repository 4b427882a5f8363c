"""M2-BERT on an NVIDIA GPU by each backend: stored outputs; loss curves, compiled and replayed as CUDA graphs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cramming.batch import Batch
from cramming.engine import Engine
from cramming.kernels import backends
from cramming.method import Method
from cramming.optim import for_model
from cramming.optim.config import AdamW
from rst.clock import Clock
from rst.costs import StepsCost
from tests.architectures.families import arch
from tests.architectures.test_m2_reference import CASES, hold_to_what_is_stored

pytestmark = pytest.mark.gpu

BACKENDS = ("torch", "triton", "cuda")
VOCABULARY, LENGTH, PREDICTED, STEPS = 512, 128, 20, 20
CURVES = 0.02  # of a loss: 16 bits round to 0.4 %


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Those that can be had here."""
    for op in ("gated_long_conv", "block_diagonal_glu"):
        found, why = backends.of(op, request.param)
        if found is None:
            pytest.skip(f"{op} by {request.param}: {why}")
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
def test_stored_outputs_and_gradients(shared: Path, case: str, backend: str) -> None:
    hold_to_what_is_stored(shared, case, backend, "cuda")


def batch(seed: int, sequences: int = 16) -> Batch:
    """Tokens of which few are frequent, so that there is something to learn."""
    random = torch.Generator().manual_seed(seed)
    tokens = (VOCABULARY * torch.rand(sequences, LENGTH, generator=random) ** 4).long()
    positions = torch.rand(sequences, LENGTH, generator=random).argsort(1)[:, :PREDICTED]
    labels, weights = tokens.gather(1, positions), torch.ones(positions.shape)
    ids, inputs = torch.arange(sequences), tokens.scatter(1, positions, VOCABULARY - 1)
    return Batch(ids, ids, inputs, positions, labels, weights, None, weights.sum()).to(torch.device("cuda"))


def curve(backend: str, *, compile: bool = False, cuda_graphs: bool = False) -> list[float]:
    """Losses of a small model, two microbatches a step, in bfloat16."""
    torch.manual_seed(0)
    model: Any = arch("m2_tiny", layers=3, dropout=0.0).build(VOCABULARY, LENGTH).cuda()
    model.use_kernels(dict.fromkeys(model.kernel_ops, backend))
    engine = Engine(
        model,
        for_model(AdamW(lr=1e-3), model),
        Clock({"main": StepsCost()}, 1e9),
        precision="bfloat16",
        microbatch_size=8,
        compile=compile,
        cuda_graphs=cuda_graphs,
    )
    found = []
    for step in range(STEPS):
        for part in batch(step).split(8):
            engine.backward(part, Method().objective)
        engine.step(1.0)
        found.append(engine.loss)
    if cuda_graphs:
        assert engine.cuda_graphs == "replayed"
    return found


@pytest.mark.parametrize("how", [{}, {"compile": True}, {"compile": True, "cuda_graphs": True}], ids=str)
def test_a_model_learns_the_same_by_every_backend(backend: str, how: dict[str, bool]) -> None:
    torch._dynamo.reset()
    expected, found = curve("torch"), curve(backend, **how)
    torch._dynamo.reset()
    assert expected[-1] < expected[0] - 0.1
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=CURVES, atol=0)
