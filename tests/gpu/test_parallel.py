"""DDP and FSDP2 on NVIDIA GPUs: as one of one rank, and with a rank for each GPU where there are several."""

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from cramming import optim
from cramming.architectures.configs.bert import BertConfig
from cramming.batch import Batch
from cramming.engine import Engine
from cramming.method import Method
from cramming.parallel import ranks
from cramming.parallel.ranks import Ranks
from cramming.parallel.spreading import share_out
from rst.clock import Clock
from rst.costs import StepsCost
from tests.architectures.families import TINY, arch

pytestmark = pytest.mark.gpu

VOCABULARY, LENGTH, PREDICTED, STEPS = 512, 64, 10, 20
SEQUENCES = 16
BOUND = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2}  # of a loss; products are added up in another order


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    meeting = tmp_path_factory.mktemp("ranks") / "meeting"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def engine(parallel: str, precision: str, *, family: str = "", compile: bool = False, **options: Any) -> Engine:
    """Two small layers and their engine, the same weights at every call."""
    torch.manual_seed(0)
    config: Any = BertConfig(layers=2, hidden=64, heads=2, intermediate=128, dropout=0.0, attention_dropout=0.0)
    model: Any = (arch(family) if family else config).build(VOCABULARY, LENGTH).train(False).cuda()
    share_out(model, precision, parallel)
    optimizer = optim.build(options.pop("optimizer", "adam"), optim.parameter_groups(model), lr=1e-3)
    clock = Clock({"main": StepsCost()}, sys.float_info.max)
    how = {"precision": precision, "parallel": parallel, "compile": compile, "clip_norm": 1.0, **options}
    return Engine(model, optimizer, clock, **how)


def batch(seed: int) -> Batch:
    """Tokens of which few are frequent."""
    random = torch.Generator().manual_seed(seed)
    tokens = 5 + (torch.rand((SEQUENCES, LENGTH), generator=random) ** 3 * (VOCABULARY - 5)).long()
    positions = torch.rand(tokens.shape, generator=random).argsort(1)[:, :PREDICTED]
    ids, weights = torch.arange(SEQUENCES), torch.ones(positions.shape)
    labels = tokens.gather(1, positions)
    made = Batch(ids, ids * 0, tokens.scatter(1, positions, 4), positions, labels, weights, None, weights.sum())
    return made.to(torch.device("cuda"))


def losses(made: Engine) -> list[float]:
    """Of some steps of several passes each."""
    found = []
    for step in range(STEPS):
        for part in batch(step).shared().split(4):
            made.backward(part, Method().objective)
        made.step(1.0)
        found.append(made.loss)
    return found


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_rank_of_one_trains_as_a_process_alone(parallel: str, precision: str) -> None:
    made = engine(parallel, precision)
    assert losses(made) == pytest.approx(losses(engine("none", precision)), rel=BOUND[precision])
    if parallel == "fsdp":
        assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in made.model.parameters())


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_every_family(parallel: str, family: str) -> None:
    expected = losses(engine("none", "bfloat16", family=family))
    assert losses(engine(parallel, "bfloat16", family=family)) == pytest.approx(expected, rel=BOUND["bfloat16"])


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("optimizer", ["lion", "sophiag", "muon"])
def test_optimizers_of_shards(optimizer: str) -> None:
    expected = losses(engine("none", "float32", optimizer=optimizer))
    assert losses(engine("fsdp", "float32", optimizer=optimizer)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_blocks_are_compiled(parallel: str, precision: str) -> None:
    torch._dynamo.reset()
    made = engine(parallel, precision, compile=True, cuda_graphs=True)
    assert made.cuda_graphs == "none: ranks exchange gradients in the middle of the way back"
    assert losses(made) == pytest.approx(losses(engine("none", precision)), rel=max(1e-3, BOUND[precision]))


def _rank(rank: int, world: int, folder: Path, parallel: str) -> None:
    torch.cuda.set_device(rank)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=meeting, rank=rank, world_size=world)
    with ranks.standing_for(Ranks(rank, world, rank, world)):
        found = losses(engine(parallel, "float32"))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_for_each_gpu(parallel: str, tmp_path: Path) -> None:
    world = next((n for n in (4, 2) if torch.cuda.device_count() >= n), 1)
    if world == 1:
        pytest.skip("needs two GPUs")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(rank, world, tmp_path, parallel)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    expected = losses(engine("none", "float32"))
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == pytest.approx(expected, rel=BOUND["float32"])
