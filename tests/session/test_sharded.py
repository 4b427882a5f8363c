"""Checkpoints that several ranks write: whole or not there, read by any number of ranks, converted to the ordinary."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from cramming import checkpoint, gather_checkpoint
from cramming.checkpoint import Checkpoint, checkpoints
from cramming.cli import compose
from cramming.errors import UserError
from cramming.saving import sharded, snapshot
from cramming.saving.exchange import Exchange
from cramming.saving.layout import chunk

from ..core.memory import same


class Together(Exchange):
    """Ranks that are threads of one process."""

    def __init__(self, rank: int, world: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world, self._table, self._barrier = rank, world, table, barrier
        self._group: Any = "threads"

    def each(self, value: Any) -> list[Any]:
        self._table[self.rank] = json.dumps(value)
        self._barrier.wait(60)
        told = [json.loads(one) for one in self._table]
        self._barrier.wait(60)
        return told


def on_ranks(world: int, work: Callable[[Exchange], Any]) -> list[Any]:
    """What ``work`` returns or raises on each of so many ranks."""
    table: list[Any] = [None] * world
    results: list[Any] = [None] * world
    barrier = threading.Barrier(world)

    def one(rank: int) -> None:
        try:
            results[rank] = work(Together(rank, world, table, barrier))
        except (UserError, TypeError) as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def state_at(step: int) -> dict[str, Any]:
    """A state that differs from step to step, with tensors that are cut, and kinds of all sorts."""
    draw = torch.Generator().manual_seed(step)
    return {
        "model": {"word.weight": torch.randn(700, 64, generator=draw), "bias": torch.tensor(step), "é": torch.ones(3)},
        "engine": {
            "optimizer": {"state": {0: {"m": torch.randn(700, 64, generator=draw), "step": torch.tensor(3.0)}}},
            "flags": torch.tensor([True, False]),
            "half": torch.randn(9, 3, generator=draw).bfloat16(),
            "none": torch.zeros(0, 4),
            "counts": torch.arange(20_000),
            "scale": float("inf"),
        },
        "step": step,
    }


def save_at(folder: Path, world: int, *steps: int, keep: int = 10) -> list[Any]:
    """A checkpoint of each of these steps, written by so many ranks."""
    results = []
    for step in steps:
        state = state_at(step)

        def one(exchange: Exchange, state: dict[str, Any] = state, step: int = step) -> Path:
            part = snapshot.share(state, world, exchange.rank)
            return sharded.write(folder, step, part, {"spent_s": 1.5}, keep=keep, kept_at_h=[], exchange=exchange)

        results = on_ranks(world, one)
    return results


def nowhere(name: str, shape: tuple[int, ...]) -> None:
    """Nothing is shared."""


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_what_ranks_wrote_together_is_read_whole(tmp_path: Path, world: int) -> None:
    save_at(tmp_path, world, 1, 2)
    assert [c.step for c in checkpoints(tmp_path)] == [1, 2]
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert same(newest[1], state_at(2))
    files = [file for file in newest[0].folder.iterdir() if file.name.startswith("rank-")]
    assert len(files) == world
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) - min(sizes) < 70_000


@pytest.mark.parametrize("writers", [1, 2, 5])
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_other_numbers_of_ranks_go_on(tmp_path: Path, writers: int, readers: int) -> None:
    save_at(tmp_path, writers, 1)
    for result in on_ranks(readers, lambda exchange: sharded.newest(tmp_path, exchange, nowhere)):
        assert same(result[1], state_at(1))


def test_ranks_read_only_their_rows_of_what_they_share(tmp_path: Path) -> None:
    """Of an ordinary checkpoint as well."""
    save_at(tmp_path, 3, 1)
    checkpoint.save(tmp_path, 2, state_at(2), {}, keep=2, kept_at_h=[])
    for found in checkpoints(tmp_path):
        parts = sharded.Parts(found.folder)
        state = state_at(found.step)["model"]["word.weight"]
        for rank in range(4):
            wanted = sharded.reading_plan(parts.index, 4, rank, ["model.word.weight"])
            read = parts.read({"model.word.weight": wanted["model.word.weight"]})["model.word.weight"]
            own = chunk(700, 4, rank)
            assert torch.equal(read, state[own.start : own.end])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ordinary_form_is_to_the_byte_what_one_process_writes(tmp_path: Path, world: int) -> None:
    save_at(tmp_path / "sharded", world, 1, 2)
    checkpoint.save(tmp_path / "whole", 2, state_at(2), {"spent_s": 1.5}, keep=1, kept_at_h=[])
    sharded.gather(checkpoints(tmp_path / "sharded")[-1])
    ours, theirs = (tmp_path / place / "step=00000002" for place in ("sharded", "whole"))
    assert [c.step for c in checkpoints(tmp_path / "sharded")] == [1, 2]
    assert sorted(file.name for file in ours.iterdir()) == sorted(file.name for file in theirs.iterdir())
    for file in ours.iterdir():
        assert file.read_bytes() == (theirs / file.name).read_bytes(), file.name
    assert set(load_file(ours / "model.safetensors")) == set(state_at(2)["model"])


def test_damage_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    save_at(tmp_path, 3, 1, 2)
    names = sorted(file.name for file in (tmp_path / "step=00000002").iterdir())
    assert len(names) == 6
    for name in names:
        file = tmp_path / "step=00000002" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=f"step=00000002 is damaged: .*{name}"):
            Checkpoint(file.parent).read()
        for result in on_ranks(2, lambda exchange: sharded.newest(tmp_path, exchange, nowhere)):
            assert result[0].step == 1
        file.write_bytes(whole)
    assert checkpoint.newest(tmp_path)[0].step == 2  # type: ignore[index]


def test_a_manifest_names_no_file_outside(tmp_path: Path) -> None:
    save_at(tmp_path, 2, 1)
    file = tmp_path / "step=00000001" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["sha256"]["../../secret"] = "0"
    file.write_text(json.dumps(checkpoint.sealed(manifest)))
    with pytest.raises(UserError, match=r"'\.\./\.\./secret' is no file of a checkpoint"):
        Checkpoint(file.parent).read()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_one_rank_is_said_on_all_and_loses_nothing(
    tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_at(tmp_path, 2, 1)
    original = sharded.save_file

    def full(tensors: Any, path: Path) -> None:
        if path.name.startswith(f"rank-0000{rank}"):
            raise OSError(28, "No space left on device")
        original(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(sharded, "save_file", full)
        results = save_at(tmp_path, 2, 2)
    assert all(isinstance(result, UserError) and f"on rank {rank}" in str(result) for result in results)
    assert "the last one saved is step=00000001" in str(results[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["step=00000001"]
    save_at(tmp_path, 2, 2)
    assert [c.step for c in checkpoints(tmp_path)] == [1, 2]


def test_ranks_that_do_not_see_the_folder_say_so(tmp_path: Path) -> None:
    save_at(tmp_path / "0", 1, 1)
    results = on_ranks(2, lambda exchange: sharded.newest(tmp_path / str(exchange.rank), exchange, nowhere))
    assert all("rank 1 does not see" in str(result) for result in results)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "first"
    save_at(run_dir / "checkpoints", 2, 1, 2)
    composed = compose(["name=first", "arch=bert_tiny", "data=python_docs", "budget=1"])
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(composed))))
    for which, step in (("first", 2), ("first@step=1", 1)):
        gather_checkpoint.command([f"base_dir={tmp_path}", f"checkpoint={which}"])
        assert f"step={step:08d} is an ordinary checkpoint now" in capsys.readouterr().out
        found = Checkpoint(run_dir / "checkpoints" / f"step={step:08d}")
        assert not found.in_parts
        assert same(found.read(), state_at(step))
        gather_checkpoint.command([f"base_dir={tmp_path}", f"checkpoint={which}"])
        assert "is an ordinary checkpoint already" in capsys.readouterr().out
    with pytest.raises(UserError, match="checkpoint= is needed"):
        gather_checkpoint.command([])
