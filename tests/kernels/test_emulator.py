"""The emulator that compiled kernels are proved on: it computes what a GPU does and finds what one would not forgive.

The kernels are those of emulated.cu; ``mistaken`` has one mistake for each number.
"""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.emulation import fenced, flag, library, pointer, run, seeded, size

SEEDS = range(1, 6)


@pytest.fixture(scope="module")
def made() -> ctypes.CDLL:
    """The kernels of these tests."""
    return library(("emulated",), Path(__file__).parent)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_shuffles_and_votes(made: ctypes.CDLL) -> None:
    x = torch.randperm(32, generator=torch.Generator().manual_seed(0)).int()
    out = torch.full((240,), -1, dtype=torch.int32)
    run(made.shuffles_launch, pointer(x), pointer(out), None)
    lanes = torch.arange(32)
    assert out[:32].tolist() == [x[5]] * 32
    assert out[32:64].equal(x[lanes ^ 3])
    assert out[64:96].equal(x[torch.where(lanes < 2, lanes, lanes - 2)])
    assert out[96:128].equal(x[torch.where(lanes > 29, lanes, lanes + 2)])
    assert out[128:160].equal(x[torch.where(lanes % 8 == 7, lanes, lanes + 1)])
    assert set(out[160:192].tolist()) == {sum(1 << lane for lane in range(0, 31, 3))}
    assert out[192:208].equal(x[:16].flip(0))
    assert out[208:].equal(4 * x[lanes // 2] + 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_order_threads_however_they_take_turns(made: ctypes.CDLL, seed: int) -> None:
    x = normal(3, 256)
    out = torch.full((3,), float("nan"))
    with seeded(made, seed):
        run(made.tree_launch, pointer(x), pointer(out), size(3), flag(0), None)
    expected = x
    while expected.shape[1] > 1:
        expected = expected[:, : expected.shape[1] // 2] + expected[:, expected.shape[1] // 2 :]
    assert out.equal(expected[:, 0])


@pytest.mark.parametrize("left_out", [1, 4, 8])
def test_a_barrier_left_out_is_found(made: ctypes.CDLL, left_out: int) -> None:
    """Even between threads of one warp, which a GPU may well run in step."""
    x, out = normal(3, 256), torch.empty(3)
    with pytest.raises(AssertionError, match=r"shared memory \(emulated.cu:\d+\) that .* nothing stands between"):
        run(made.tree_launch, pointer(x), pointer(out), size(3), flag(left_out), None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrix_products(made: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Every element another: none can stand in another's place."""
    a = (torch.randperm(256, generator=torch.Generator().manual_seed(1)) - 100).to(dtype).view(16, 16)
    b = (torch.randperm(128, generator=torch.Generator().manual_seed(2)) - 60).to(dtype).view(16, 8)
    c = torch.arange(128.0).view(16, 8) * 1000
    d = torch.full((16, 8), float("nan"))
    run(made.product_launch, *map(pointer, (a, b, c, d)), flag(dtype == torch.float16), None)
    assert d.equal((c.double() + a.double() @ b.double()).float())


def test_matrices_read_from_shared_memory_plainly_and_transposed(made: ctypes.CDLL) -> None:
    a = (torch.randperm(256, generator=torch.Generator().manual_seed(3)) - 128).bfloat16().view(16, 16)
    b = (torch.randperm(128, generator=torch.Generator().manual_seed(4)) - 64).bfloat16().view(16, 8)
    d = torch.full((16, 8), float("nan"))
    run(made.loaded_product_launch, *map(pointer, (a, b, d)), None)
    assert d.equal((a.double() @ b.double()).float())


def test_copies_under_way_come_when_they_are_waited_for(made: ctypes.CDLL) -> None:
    tiles, threads, n = 5, 32, 130  # of four numbers; the last tile has two, zeros behind
    x = fenced(made, normal(n, 4))
    out = torch.full((threads,), float("nan"))
    run(made.pipelined_launch, pointer(x), pointer(out), size(n), flag(threads), flag(tiles), flag(0), None)
    padded = torch.zeros(tiles * threads, 4)
    padded[:n] = x
    sums = (padded[:, 0] + padded[:, 1]) + (padded[:, 2] + padded[:, 3])
    expected = torch.zeros(threads)
    for tile in sums.view(tiles, threads):
        expected = expected + tile.roll(-1)
    assert out.equal(expected)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (1, r"reads byte \d+ of shared memory \(emulated.cu:\d+\) that .* copies there without having waited"),
        (2, r"(reads|writes) byte \d+ of shared memory .* that .* (wrote|read|copies)"),
        (3, r"copies there without having waited|never waited for"),
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_read_too_early_is_found(made: ctypes.CDLL, mistake: int, message: str, seed: int) -> None:
    x, out = normal(160, 4), torch.empty(32)
    with seeded(made, seed), pytest.raises(AssertionError, match=message):
        run(made.pipelined_launch, pointer(x), pointer(out), size(160), flag(32), flag(5), flag(mistake), None)


MISTAKES = {
    0: r"fine",  # on today's GPUs threads that have returned are not waited for
    1: r"waits at __syncthreads.*waits at __syncwarp|waits at __syncwarp.*waits at __syncthreads",
    2: r"has returned",
    3: r"is not in the mask 0x0000ffff",
    4: r"left the shared memory: byte \d+ of 256 \(emulated.cu:\d+\)",
    5: r"left the shared memory: byte -\d+ of 256 \(emulated.cu:\d+\)",
    6: r"touched an address that belongs to no buffer \(emulated.cu:\d+\)",
    7: r"without a meaning .* \(emulated.cu:\d+\)",
    8: r"without a meaning .* \(emulated.cu:\d+\)",
    9: r"reached a barrier while block .* waits at __syncthreads",
    11: r"(reads|writes) byte \d+ of shared memory .* nothing stands between them",
    12: r"writes byte \d+ of shared memory .* wrote .* nothing stands between them",
}


@pytest.mark.parametrize("which", MISTAKES)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_mistake_ends_the_launch_with_a_message(made: ctypes.CDLL, which: int, seed: int) -> None:
    out = fenced(made, torch.zeros(64))
    with seeded(made, seed):
        if MISTAKES[which] == "fine":
            run(made.mistaken_launch, flag(which), pointer(out), size(64), None)
            return
        with pytest.raises(AssertionError, match=MISTAKES[which]) as caught:
            run(made.mistaken_launch, flag(which), pointer(out), size(64), None)
        assert re.search(r"block \(\d, 0, 0\) thread \(\d+, 0, 0\)", str(caught.value))
        # The next launch is none the worse for it.
        x, sums = torch.ones(1, 256), torch.empty(1)
        run(made.tree_launch, pointer(x), pointer(sums), size(1), flag(0), None)
    assert sums.item() == 256


def test_shared_memory_nobody_has_written_is_nan_in_every_block(made: ctypes.CDLL) -> None:
    out = torch.zeros(64)
    run(made.mistaken_launch, flag(10), pointer(out), size(64), None)
    assert out.isnan().all()


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "message"),
    [(0, 32, 0, "no grid"), (1, 0, 0, "no block"), (1, 1056, 0, "no block"), (1, 32, 232449, "232448 are there")],
)
def test_a_launch_that_no_gpu_takes_is_refused(
    made: ctypes.CDLL, grid: int, block: int, shared_bytes: int, message: str
) -> None:
    out = torch.zeros(64)
    with pytest.raises(AssertionError, match=message):
        run(made.sized_launch, size(grid), size(block), size(shared_bytes), pointer(out), None)


def test_conversions_are_torchs(made: ctypes.CDLL) -> None:
    """To nearest, ties to even, below the smallest normal and above the largest too."""
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=torch.Generator().manual_seed(5)).int()
    near = normal(4096) * 10 ** (8 * torch.rand(4096, generator=torch.Generator().manual_seed(6)) - 8)
    ties = torch.arange(-70000, 70000, 13).float() / 2
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65519.9, 65520.0, 2**-24, 2**-25])
    x = torch.cat([bits.view(torch.float32), near, ties, special, special * 1.0000001])
    b, h = (torch.empty(len(x), dtype=dtype) for dtype in (torch.bfloat16, torch.float16))
    back, packed = torch.empty(len(x), 2), torch.empty(len(x), dtype=torch.int32)
    run(made.converted_launch, *map(pointer, (x, b, h, back, packed)), size(len(x)), None)
    assert torch.equal(b.isnan(), x.isnan())
    assert torch.equal(h.isnan(), x.isnan())
    known = ~x.isnan()
    assert b[known].view(torch.int16).equal(x.bfloat16()[known].view(torch.int16))
    assert h[known].view(torch.int16).equal(x.half()[known].view(torch.int16))
    assert back[known].equal(torch.stack([b.float(), h.float()], 1)[known])
    pairs = packed.view(torch.float16).view(-1, 2)
    assert pairs[known, 0].equal(h[known])
    assert (pairs[:, 1] == 1).all()


def test_the_same_bits_whatever_the_seed(made: ctypes.CDLL) -> None:
    x = normal(160, 4)
    outs = []
    for seed in SEEDS:
        out = torch.full((32,), float("nan"))
        with seeded(made, seed):
            run(made.pipelined_launch, pointer(x), pointer(out), size(160), flag(32), flag(5), flag(0), None)
        outs.append(out)
    assert all(out.equal(outs[0]) for out in outs)
