"""What ranks that share a model by FSDP save: taken up by the same number to the bit, by others, and by one alone."""

import signal
from pathlib import Path

import pytest
import torch

from cramming import checkpoint
from cramming.checkpoint import Checkpoint, checkpoints
from cramming.saving import sharded

from ..core.memory import same
from . import fsdp_ranks

STEPS = ("sharded/step=00000002", "whole/step=00000002", "next/step=00000003")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks' state after two steps, sharded and whole, and after a third one."""
    place = tmp_path_factory.mktemp("ranks")
    assert fsdp_ranks.run(2, place, fsdp_ranks.save, 2) == [0, 0]
    return place


def test_both_forms_hold_the_same_and_one_becomes_the_other(saved: Path) -> None:
    in_parts, whole, _ = (Checkpoint(saved / name) for name in STEPS)
    assert same(in_parts.read(), whole.read())
    index = sharded.Parts(in_parts.folder).index
    assert index["model.0.weight"].outline.sharded
    assert [piece.length for piece in index["model.0.weight"].runs] == [26, 25]
    assert not index["engine.optimizer.state.0.step"].outline.sharded


@pytest.mark.parametrize("source", ["sharded", "whole"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_go_on(saved: Path, source: str, world: int) -> None:
    target = f"{source}-{world}"
    assert fsdp_ranks.run(world, saved, fsdp_ranks.go_on, source, target) == [0] * world
    again, after = checkpoints(saved / target)
    before, expected = Checkpoint(saved / STEPS[1]).read(), Checkpoint(saved / STEPS[2]).read()
    assert same(again.read(), before), "what is taken up is what was saved"
    if world == 2:
        assert same(after.read(), expected)
    for name, tensor in after.read()["model"].items():
        torch.testing.assert_close(tensor, expected["model"][name], rtol=1e-5, atol=1e-6)


def test_one_process_goes_on(saved: Path) -> None:
    model, optimizer = fsdp_ranks.built(shared=False)
    found = checkpoint.newest(saved / "sharded")
    assert found is not None
    model.load_state_dict(found[1]["model"])
    optimizer.load_state_dict(found[1]["engine"]["optimizer"])
    fsdp_ranks.step(model, optimizer)
    expected = Checkpoint(saved / STEPS[2]).read()["model"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_the_gathered_files_are_those_of_a_whole_save(saved: Path, tmp_path: Path) -> None:
    assert fsdp_ranks.run(2, tmp_path, fsdp_ranks.save, 2) == [0, 0]
    sharded.gather(Checkpoint(tmp_path / STEPS[0]))
    for file in (saved / STEPS[1]).iterdir():
        assert (tmp_path / STEPS[0] / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("rank", "point"),
    [
        (1, "checkpoint-rank:1"),
        *(pytest.param(0, point, marks=pytest.mark.full) for point in ("checkpoint-rank:1", "checkpoint-rename:1")),
    ],
)
def test_a_killed_rank_leaves_the_checkpoint_before(tmp_path: Path, rank: int, point: str) -> None:
    assert fsdp_ranks.run(2, tmp_path, fsdp_ranks.save, 1, False) == [0, 0]
    before = Checkpoint(tmp_path / "sharded" / "step=00000001").read()
    codes = fsdp_ranks.run(2, tmp_path, fsdp_ranks.save, 2, False, kill={rank: point})
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] != 0, "the other one hears of it"
    found = checkpoint.newest(tmp_path / "sharded")
    assert found is not None
    assert found[0].step == 1
    assert same(found[1], before)
    assert fsdp_ranks.run(2, tmp_path, fsdp_ranks.save, 2, False) == [0, 0]
    assert [c.step for c in checkpoints(tmp_path / "sharded")] == [1, 2]
    assert not list((tmp_path / "sharded").glob(".*"))
