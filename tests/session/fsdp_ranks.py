"""Ranks in processes of their own that share a small model by FSDP, for tests of what they save."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from cramming import checkpoint, faults
from cramming.saving import sharded, snapshot
from cramming.saving.exchange import Exchange
from cramming.saving.placing import placing

_CONTEXT = multiprocessing.get_context("forkserver")


def run(
    world: int, place: Path, work: Callable[..., None], *args: Any, kill: dict[int, str] | None = None
) -> list[int]:
    """Let so many ranks work on ``place``; a rank may be killed at a named point. Their exit codes."""
    meeting = place / f"meeting-{os.urandom(4).hex()}"
    calls = [(rank, world, (kill or {}).get(rank, ""), (work, meeting, place, *args)) for rank in range(world)]
    processes = [_CONTEXT.Process(target=_rank, args=call) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [-1 if process.exitcode is None else process.exitcode for process in processes]


def _rank(rank: int, world: int, kill_at: str, call: tuple[Any, ...]) -> None:
    work, meeting, *args = call
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    faults.arm(kill_at)
    work(*args)
    dist.destroy_process_group()


def built(shared: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose rows do not divide by the ranks, and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(51, 8), nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    if shared:
        fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step on the same input everywhere."""
    model(torch.arange(51)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As a run's."""
    kept = {name: parameter.detach() * 2 for name, parameter in model.named_parameters()}
    return {
        "model": model.state_dict(),
        "engine": {"optimizer": optimizer.state_dict()},
        "method": {"a": {"kept": kept}},
    }


def save(place: Path, number: int, both: bool = True) -> None:
    """Save after a step, sharded and whole; then take another step and save that whole."""
    model, optimizer = built(shared=True)
    exchange = Exchange()
    for _ in range(number):
        step(model, optimizer)
    state = state_of(model, optimizer)
    part = snapshot.share(state, exchange.world, exchange.rank)
    sharded.write(place / "sharded", number, part, {}, keep=9, kept_at_h=[], exchange=exchange)
    if both:
        write_whole(place / "whole", number, state, exchange)
        step(model, optimizer)
        write_whole(place / "next", number + 1, state_of(model, optimizer), exchange)


def go_on(place: Path, source: str, target: str) -> None:
    """Take a state up, and save it again; then another step, and save that."""
    model, optimizer = built(shared=dist.get_world_size() > 1)
    exchange = Exchange()
    found = sharded.newest(place / source, exchange, placing(model, optimizer))
    assert found is not None
    saved, state = found
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["engine"]["optimizer"])
    if exchange.world > 1:
        assert all(snapshot.is_shared(tensor) for tensor in state["method"]["a"]["kept"].values())
    write_whole(place / target, saved.step, state, exchange)
    step(model, optimizer)
    write_whole(place / target, saved.step + 1, state_of(model, optimizer), exchange)


def write_whole(folder: Path, number: int, state: dict[str, Any], exchange: Exchange) -> None:
    """The ordinary form, by the main rank."""
    together = snapshot.whole(state, kept=exchange.main)
    if exchange.main:
        checkpoint.write(folder, number, together, {}, keep=9, kept_at_h=[])
