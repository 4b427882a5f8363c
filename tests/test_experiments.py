"""The recipes under config/experiment: what each fixes, that a command line may change it, and that they run."""

import json
import math
import random
from itertools import permutations
from pathlib import Path

import pytest
import torch

from cramming.build import Parts
from cramming.cli import compose, pretraining
from cramming.costs import RTX3090
from cramming.errors import UserError
from cramming.priced import target_of
from cramming.session import pretrain
from rst import CostTable, Work

STUDY = ("ntng_baseline", "ntng_baseline_bf16", "ntng_lion", "ntng_sophia")


@pytest.mark.parametrize("name", STUDY)
def test_the_studys_recipes_are_the_studys(name: str) -> None:
    """https://arxiv.org/abs/2307.06440; norms were decayed there by accident."""
    config = compose([f"experiment={name}"])
    train, data = config.train, config.data
    assert (config.arch.name, data.name, config.rst.kind, config.budget_s) == ("crammed", "c4_subset", "rtx3090", 86400)
    assert (train.batch_size, train.mask_rate, train.clip_norm, train.schedule.kind) == (1536, 0.15, 0.5, "one_cycle")
    assert (data.seq_length, data.row_cls, data.heldout_fraction, data.vocab_size) == (128, False, 0.005, 32768)
    assert (train.mask_rate_initial, train.batch_size_initial, train.lengths, config.method) == (None, None, [], {})
    assert config.impl.precision == ("float16" if name == "ntng_baseline" else "bfloat16")
    optim = train.optim
    assert optim.decay_norms is True
    if name == "ntng_lion":
        assert (optim.kind, optim.lr, optim.weight_decay, optim.betas) == ("lion", 7e-4, 0.1, [0.9, 0.99])
    elif name == "ntng_sophia":
        assert (optim.kind, optim.lr, optim.weight_decay, optim.rho) == ("sophiag", 4e-4, 0.015, 0.01)
        assert (optim.hessian_every_steps, optim.hessian_sequences) == (10, 768)
    else:
        assert (optim.kind, optim.lr, optim.weight_decay) == ("adamw", 1e-3, 0.01)
        assert (optim.betas, optim.eps) == ([0.9, 0.98], 1e-12)


@pytest.mark.parametrize("name", STUDY)
def test_the_inherited_table_is_for_the_studys_recipes(name: str) -> None:
    """So a budget of 24 hours is as many steps as it was there: 31,957 (arithmetic of its table)."""
    config = compose([f"experiment={name}"])
    target = target_of(Parts(config, config.data.vocab_size, torch.device("cpu")), config.impl.precision)
    table = CostTable.load(RTX3090)
    assert table.differences(target.architecture, target.layers, target.lengths, target.precision) == []
    step_s = table.seconds(Work("forward_backward", 1536, 128, 16)) + table.seconds(Work("update"))
    assert config.budget_s // step_s == 31957


def test_crammings_recipe_is_crammings() -> None:
    """https://github.com/JonasGeiping/cramming, ``train=bert-o4``: norms not decayed, a quarter masked."""
    config = compose(["experiment=crammed_2023"])
    train = config.train
    assert (config.arch.name, config.data.row_cls, config.rst.kind) == ("crammed_2023", False, "calibrate")
    assert (train.mask_rate, train.clip_norm, train.optim.kind, train.optim.decay_norms) == (0.25, 0.5, "adamw", False)
    assert (train.optim.lr, train.optim.betas, train.optim.eps, train.optim.weight_decay) == (
        1e-3, [0.9, 0.98], 1e-12, 0.01
    )  # fmt: skip
    assert (train.schedule.kind, train.schedule.start, train.schedule.peak) == ("triangle", 0.25, 0.75)
    sizes = [config.batch_size(progress) for progress in (0.0, 0.0094, 0.3, 0.5999, 0.6, 1.0)]
    assert sizes == [128, 256, 4224, 8192, 8192, 8192]


@pytest.mark.parametrize(
    "words", list(permutations(["experiment=laptop", "data=local", "arch=bert_small", "budget=3m"]))
)
def test_what_a_person_chooses_stays_whatever_the_order(words: tuple[str, ...]) -> None:
    config = compose([*words, "data.path=x"])
    assert (config.arch.name, config.data.name, config.data.path) == ("bert_small", "local", "x")
    assert (config.budget_s, config.data.vocab_size, config.train.batch_size) == (180, config.arch.vocab_size, 32)


def test_a_recipe_may_be_changed_in_any_part() -> None:
    config = compose(["train/optim=adamw", "experiment=ntng_lion", "data=c4_subset_published", "rst=calibrate"])
    assert (config.train.optim.kind, config.train.optim.lr, config.data.kind) == ("adamw", 1e-3, "published")
    assert (config.rst.kind, config.impl.precision) == ("calibrate", "bfloat16")
    assert compose(["experiment=crammed_2023", "train/schedule=linear"]).train.schedule.kind == "linear"
    assert compose(["experiment=laptop"]).data.name == "python_docs", "and by itself it needs nothing"


def test_a_processor_says_what_to_use_for_float16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cramming.resolve.device", lambda: torch.device("cpu"))
    monkeypatch.setattr("cramming.resolve._cpu_has_bfloat16", lambda: True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"impl\.precision=float16: .*; use impl\.precision=bfloat16 or auto"):
        pretraining(pretrain, ["experiment=ntng_baseline", "name=a"])
    assert list(tmp_path.iterdir()) == []


def test_the_inherited_prices_are_refused_for_another_model_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten\n\n" * 300)
    monkeypatch.chdir(tmp_path)
    words = ["experiment=ntng_baseline", "name=a", "arch=crammed_tiny", "data=local", f"data.path={text}"]
    small = ["data.vocab_size=128", "train.batch_size=2", "impl.precision=float32", "impl.microbatch_size=2"]
    with pytest.raises(UserError) as refused:
        pretraining(pretrain, [*words, *small])
    command = "python -m cramming.calibrate arch=crammed_tiny data.vocab_size=128 relative_to=rtx3090"
    assert f"`{command}`" in str(refused.value)
    assert "rst=table" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_clone_checks_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other words than its own, which take longer to collect: it learns, and ends with all a run leaves."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    words = ["".join(draw.choices("bdfgklmnprstaeiou", k=draw.randint(2, 7))) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(800)))
    own = ["data.vocab_size=300", "impl.threads=1", "impl.precision=float32", "impl.microbatch_size=16"]
    pretraining(pretrain, ["name=check", "experiment=test", "data=local", "data.path=text.txt", *own])
    summary = json.loads((tmp_path / "outputs" / "check" / "summary.json").read_text())
    assert (summary["steps"], summary["end_reason"]) == (40, "budget spent")
    assert summary["validation_loss"] < math.log(300) - 0.2
    assert (tmp_path / "outputs" / "check" / "curves.png").is_file()
