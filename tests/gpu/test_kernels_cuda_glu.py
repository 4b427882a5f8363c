"""``block_diagonal_glu`` by compiled kernels on an NVIDIA GPU: M2-BERT's sizes, graphs, streams, several devices."""

import pytest
import torch

from cramming.kernels import block_diagonal_glu, cuda, cuda_glu
from cramming.kernels.operands import Glu
from tests.gpu.device_laws import replays_as_it_runs, waits_for_its_stream
from tests.kernels import laws
from tests.kernels.kernel_cases import BOUNDS, GluCase, hold_glu

pytestmark = pytest.mark.gpu

OP = laws.OPS[1]
WIDTHS = (192, 240, 384, 448)  # of a block's inputs and outputs in the models of 80M, 110M, 260M and 341M
CASES = (
    GluCase(1, 8, 16, 8),
    GluCase(17, 24, 72, 24, pairs=1, blocks=1),
    GluCase(64, 48, 40, 8, pairs=3, blocks=3, biased=False),
    GluCase(70, 8, 144, 24, strided=True),
    GluCase(333, 72, 208, 40, pairs=1, blocks=2),
    GluCase(129, cuda_glu.WIDEST_INPUTS, 64, cuda_glu.WIDEST_OUTPUTS),
)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips where there is no library and none can be made; small sizes are the kernels', too."""
    why = cuda.ensure_built("cuda")
    if why is not None:
        pytest.skip(why)
    monkeypatch.setattr(cuda_glu, "few", lambda given: False)


def sized(tokens: int, width: int = WIDTHS[0]) -> GluCase:
    """M2-BERT's proportions."""
    return GluCase(tokens, width, 8 * width, width)


def held(case: GluCase, dtype: torch.dtype, device: str = "cuda") -> None:
    """The definition, by this backend and no other, written where NaN was."""
    assert cuda_glu.glu_lacks(Glu(*case.operands(dtype, device))) is None  # type: ignore[arg-type]
    with laws.poisoned():
        hold_glu(case, dtype, "cuda", device)


@pytest.mark.parametrize("dtype", cuda_glu.DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", [1, 257, 2048])
def test_models_sizes(tokens: int, width: int, dtype: torch.dtype) -> None:
    held(sized(tokens, width), dtype)


@pytest.mark.parametrize("dtype", cuda_glu.DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_sizes(case: GluCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few 16-bit roundings most may go one way: bounds are twice as wide."""
    monkeypatch.setitem(BOUNDS, dtype, 2 * BOUNDS[dtype])
    held(case, dtype)


def test_laws_of_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """At sizes that this one takes."""
    monkeypatch.setattr(laws, "some", lambda op, dtype, device="cpu": CASES[1].operands(dtype, device))
    for dtype in cuda_glu.DTYPES:
        laws.does_the_same_twice(OP, dtype, "cuda", "cuda")
        laws.torch_finds_it_in_order(OP, dtype, "cuda", "cuda")
    laws.leaves_operands_alone(OP, torch.bfloat16, "cuda", "cuda")
    laws.takes_autocasts_type(OP, "cuda", "cuda")
    laws.can_be_compiled(OP, torch.bfloat16, "cuda", "cuda")
    laws.takes_nothing(OP, "cuda", "cuda")


def test_the_same_bits_for_many_tokens() -> None:
    operands = sized(65536).operands(torch.bfloat16, "cuda")
    first, again = (laws.slopes_of(OP, operands, "cuda") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_middle_is_the_same_for_many_tokens_and_for_few() -> None:
    """Thread blocks of 128 tokens and of 32, elements beyond what 32 bits can number: gates and values, bit for bit."""
    tokens = 400_000
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("takes 50 GB")
    others = [part.detach() for part in sized(1).operands(torch.bfloat16, "cuda")[1:] if part is not None]
    x = torch.randn(tokens, 4 * WIDTHS[0], dtype=torch.bfloat16, device="cuda")
    few = slice(tokens - 20, tokens)
    kept = cuda_glu.glu_forward(Glu(x, *others), True)[1]
    kept_of_few = cuda_glu.glu_forward(Glu(x[few].clone(), *others), True)[1]
    assert torch.equal(kept[few], kept_of_few)
    slope = torch.randn(tokens, 4 * WIDTHS[0], dtype=torch.bfloat16, device="cuda")
    of_x = cuda_glu.glu_back(Glu(x, *others), kept, slope).x
    of_few = cuda_glu.glu_back(Glu(x[few].clone(), *others), kept_of_few, slope[few]).x
    torch.testing.assert_close(of_x[few], of_few, rtol=0.02, atol=0.02)


def test_recorded_as_a_graph_and_replayed() -> None:
    replays_as_it_runs(block_diagonal_glu, sized(512).operands(torch.bfloat16, "cuda"), "cuda")


def test_on_a_second_stream() -> None:
    waits_for_its_stream(block_diagonal_glu, sized(4096).operands(torch.bfloat16, "cuda"), "cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device_than_the_current_one() -> None:
    assert torch.cuda.current_device() == 0
    held(sized(257), torch.bfloat16, "cuda:1")
