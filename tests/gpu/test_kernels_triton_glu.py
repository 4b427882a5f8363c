"""``block_diagonal_glu`` by Triton, compiled, on an NVIDIA GPU: M2-BERT's sizes, graphs, streams, several devices."""

import pytest
import torch

pytest.importorskip("triton")

from cramming.kernels import block_diagonal_glu, triton_glu
from cramming.kernels.operands import Glu
from tests.gpu.device_laws import replays_as_it_runs, waits_for_its_stream
from tests.kernels import laws
from tests.kernels.kernel_cases import GluCase, hold_glu

pytestmark = pytest.mark.gpu

OP = laws.OPS[1]
WIDTHS = (192, 240, 384, 448)  # of a block's inputs and outputs in the models of 80M, 110M, 260M and 341M
KINDS = (torch.bfloat16, torch.float16, torch.float32)


def sized(tokens: int, width: int = WIDTHS[0]) -> GluCase:
    """M2-BERT's proportions."""
    return GluCase(tokens, width, 8 * width, width)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", [1, 257, 2048])
def test_models_sizes(tokens: int, width: int, dtype: torch.dtype) -> None:
    hold_glu(sized(tokens, width), dtype, "triton", "cuda")


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("case", laws.GLUS, ids=str)
def test_sizes_that_divide_nothing(case: GluCase, dtype: torch.dtype) -> None:
    laws.writes_everything(case, dtype, "triton", "cuda")


@pytest.mark.parametrize("width", WIDTHS[:2])
def test_one_pass_and_two_agree(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = sized(300, width)
    given = Glu(*(None if part is None else part.detach() for part in case.operands(torch.bfloat16, "cuda")))
    assert all(triton_glu.one_pass(given, keep) for keep in (False, True)), "they fit on GPUs that this runs on"
    hold_glu(case, torch.bfloat16, "triton", "cuda")
    monkeypatch.setattr(triton_glu, "one_pass", lambda given, keep: None)
    hold_glu(case, torch.bfloat16, "triton", "cuda")


def test_laws_of_every_backend() -> None:
    for dtype in KINDS:
        laws.does_the_same_twice(OP, dtype, "triton", "cuda")
        laws.torch_finds_it_in_order(OP, dtype, "triton", "cuda")
    laws.leaves_operands_alone(OP, torch.bfloat16, "triton", "cuda")
    laws.takes_autocasts_type(OP, "triton", "cuda")
    laws.can_be_compiled(OP, torch.bfloat16, "triton", "cuda")
    laws.can_be_differentiated_twice(OP, "triton", "cuda")
    laws.takes_nothing(OP, "triton", "cuda")


def test_the_same_bits_for_many_tokens() -> None:
    operands = sized(65536).operands(torch.bfloat16, "cuda")
    first, again = (laws.slopes_of(OP, operands, "triton") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_more_elements_than_32_bits_can_number() -> None:
    """Gates and values of 400,000 tokens are 2.4e9 numbers: the last tokens' rows are as those of few tokens."""
    tokens = 400_000
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("takes 50 GB")
    *weights, bias = (part.detach() for part in sized(1).operands(torch.bfloat16, "cuda")[1:] if part is not None)
    x = torch.randn(tokens, 4 * WIDTHS[0], dtype=torch.bfloat16, device="cuda")
    last = slice(tokens - 128, tokens)
    found, kept = triton_glu.glu_forward(Glu(x, *weights, bias), True)
    few, few_kept = triton_glu.glu_forward(Glu(x[last], *weights, bias), True)
    torch.testing.assert_close(found[last], few, rtol=0.02, atol=0.02)
    torch.testing.assert_close(kept[last], few_kept, rtol=0.02, atol=0.02)
    slope = torch.randn_like(found)
    of_x = triton_glu.glu_back(Glu(x, *weights, bias), kept, slope).x
    of_few = triton_glu.glu_back(Glu(x[last], *weights, bias), few_kept, slope[last]).x
    torch.testing.assert_close(of_x[last], of_few, rtol=0.02, atol=0.02)


def test_recorded_as_a_graph_and_replayed() -> None:
    replays_as_it_runs(block_diagonal_glu, sized(512).operands(torch.bfloat16, "cuda"), "triton")


def test_on_a_second_stream() -> None:
    waits_for_its_stream(block_diagonal_glu, sized(4096).operands(torch.bfloat16, "cuda"), "triton")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device_than_the_current_one() -> None:
    assert torch.cuda.current_device() == 0
    hold_glu(sized(257), torch.bfloat16, "triton", "cuda:1")
