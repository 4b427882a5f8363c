"""``gated_long_conv`` by Triton, compiled, on an NVIDIA GPU: sizes of models, graphs, streams, several devices."""

import pytest
import torch
from torch import Tensor

from cramming.kernels import gated_long_conv
from tests.gpu.device_laws import replays_as_it_runs, waits_for_its_stream
from tests.kernels import laws
from tests.kernels.kernel_cases import ConvolutionCase, hold_convolution
from tests.kernels.whole_numbers import all_of, hold_exactly

pytest.importorskip("triton")

pytestmark = pytest.mark.gpu

OP = laws.OPS[0]
KINDS = (torch.bfloat16, torch.float16, torch.float32)
LENGTHS = (1, 2, 15, 16, 17, 33, 127, 128, 129, 200, 256, 257, 512, 513, 1000, 1024)
MODEL = ConvolutionCase(channels=96, sequences=70, length=128, taps=128, masked=True)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("sequences", [1, 3, 17, 130])
@pytest.mark.parametrize("length", LENGTHS)
def test_whole_numbers_come_out_exactly(length: int, sequences: int, dtype: torch.dtype) -> None:
    for case in (
        ConvolutionCase(3, sequences, length, length, masked=True),
        ConvolutionCase(2, sequences, length, max(1, length // 3), strided=True),
        ConvolutionCase(2, sequences, length, 2 * length, directions=1, residual=False),
    ):
        with laws.poisoned():
            hold_exactly(case, dtype, "triton", "cuda", oracle="torch")


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("length", [2048, 16384])
def test_long_ones_as_well(length: int, dtype: torch.dtype) -> None:
    hold_exactly(ConvolutionCase(2, 2, length, length, masked=True), dtype, "triton", "cuda", oracle="torch")
    hold_exactly(ConvolutionCase(1, 1, length - 1, 100, directions=1), dtype, "triton", "cuda", oracle="torch")


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("length", [1, 33, 128, 129, 512, 1000])
def test_it_is_the_definition(length: int, dtype: torch.dtype) -> None:
    hold_convolution(ConvolutionCase(32, 20, length, length, masked=True), dtype, "triton", "cuda")


@pytest.mark.parametrize("case", laws.CONVOLUTIONS, ids=str)
def test_the_sizes_of_every_backend(case: ConvolutionCase) -> None:
    laws.writes_everything(case, torch.float32, "triton", "cuda")


def test_laws_of_every_backend() -> None:
    for dtype in KINDS:
        laws.does_the_same_twice(OP, dtype, "triton", "cuda")
        laws.torch_finds_it_in_order(OP, dtype, "triton", "cuda")
    laws.leaves_operands_alone(OP, torch.bfloat16, "triton", "cuda")
    laws.takes_autocasts_type(OP, "triton", "cuda")
    laws.can_be_compiled(OP, torch.bfloat16, "triton", "cuda")
    laws.can_be_differentiated_twice(OP, "triton", "cuda")
    laws.takes_nothing(OP, "triton", "cuda")


@pytest.mark.parametrize("length", [128, 512, 1024])
def test_the_same_bits_for_many_sequences(length: int) -> None:
    operands = MODEL._replace(length=length, taps=length).operands(torch.bfloat16, "cuda")
    first, again = (laws.slopes_of(OP, operands, "triton") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_more_elements_than_32_bits_can_number() -> None:
    """The last channels of 2.4e9 numbers are as those of few channels."""
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("takes 40 GB")
    few = ConvolutionCase(2, 48, 128, 128, residual=False).operands(torch.bfloat16, "cuda")
    channels = 130_000
    assert 3 * channels * 48 * 128 > 2**31
    many: list[Tensor | None] = []
    for place, part in enumerate(few):
        if part is None:
            many.append(None)
            continue
        kept = part.detach()
        if place in (0, 6, 7):  # three thirds
            thirds = kept.unflatten(0, (3, 2)).repeat(1, channels // 2, *(1,) * (kept.dim() - 1))
            many.append(thirds.flatten(0, 1))
        elif place == 2:
            many.append(kept.repeat(1, channels // 2, 1))
        else:
            many.append(kept.repeat(channels // 2))
    incoming = torch.ones(2, 48, 128, device="cuda")
    expected = all_of(few, "triton", incoming)
    leaves = [None if part is None else part.requires_grad_() for part in many]
    found = all_of(leaves, "triton", incoming.repeat(channels // 2, 1, 1).bfloat16())
    assert torch.equal(found[0][-2:], expected[0])
    assert torch.equal(found[1].unflatten(0, (3, -1))[:, -2:].flatten(0, 1), expected[1])
    assert torch.equal(found[2][:, -2:], expected[2])


def test_recorded_as_a_graph_and_replayed() -> None:
    replays_as_it_runs(gated_long_conv, MODEL.operands(torch.bfloat16, "cuda"), "triton")


def test_on_a_second_stream() -> None:
    waits_for_its_stream(gated_long_conv, MODEL.operands(torch.bfloat16, "cuda"), "triton")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device_than_the_current_one() -> None:
    assert torch.cuda.current_device() == 0
    hold_convolution(MODEL, torch.bfloat16, "triton", "cuda:1")
