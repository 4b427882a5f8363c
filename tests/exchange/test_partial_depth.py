"""A checkpoint saved while layers are still being added is the model of its active layers, whoever looks at it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cramming import export
from cramming.cli import compose, load_schemas, pretraining
from cramming.errors import UserError
from cramming.evaluation.trained import Selection, load_run, selected, with_data
from cramming.exchange.opening import opened
from cramming.exchange.weights import Weights
from cramming.fill_mask import fill
from cramming.folder import find
from cramming.session import pretrain
from cramming.validation import validate

from .models import POSITIONS, arch_of, kinds, logits, weights_of

LAYERS = 4


def words(letters: Path, base_dir: Path, *more: str) -> list[str]:
    """A run of eight steps on the letters: one layer, two from the third step on, four from the fifth."""
    return [
        f"base_dir={base_dir}", f"data_dir={letters}/stores", "data=local", f"data.path={letters}/text.txt",
        "data.seq_length=16", "data.heldout_fraction=0.05", "rst=steps", "budget=8", "train.batch_size=8",
        "impl.precision=float32", "impl.threads=1", "impl.microbatch_size=8", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def base_dir(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run ``half`` lies, stopped with two of its four layers active."""
    folder, before = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    load_schemas()
    more = ["name=half", "arch=bert_tiny", f"arch.layers={LAYERS}", "data.vocab_size=128", "method=layer_stacking"]
    plan = ["method.layer_stacking.shares=[0.25,0.5,1.0]", "method.layer_stacking.at=[0.25,0.5]"]
    pretraining(pretrain, words(letters, folder, *more, *plan, "stop_at=4"))
    torch.set_num_threads(before)
    return folder


@pytest.fixture
def half(base_dir: Path) -> Weights:
    """The run's last checkpoint."""
    return selected(Selection("half", str(base_dir)))[0]


def test_the_run_and_its_weights_have_the_active_layers(base_dir: Path, half: Weights) -> None:
    assert load_run(find(str(base_dir), "half")).model.active_layers == (0, 1)
    assert half.model().active_layers == half.active_layers == (0, 1)
    assert half.model().layers == LAYERS


def test_what_the_other_layers_are_does_not_matter(half: Weights) -> None:
    spoilt = {
        name: torch.full_like(t, torch.nan) if re.match(r"blocks\.[23]", name) else t for name, t in half.state.items()
    }
    text = "ab [MASK] cd"
    assert half.tokenizer is not None
    assert fill(replace(half, state=spoilt).model(), half.tokenizer, text) == fill(half.model(), half.tokenizer, text)


def test_everybody_measures_the_same_loss(letters: Path, base_dir: Path, tmp_path: Path) -> None:
    found = find(str(base_dir), "half")
    run = validate(load_run(found))
    weights, _ = selected(Selection("half", str(base_dir)))
    data = [word for word in words(letters, base_dir) if word.startswith(("data", "impl"))]
    with_own_choice = validate(with_data(weights, found, data))
    export.command(["name=half", f"base_dir={base_dir}", f"to={tmp_path}/out"])
    exported = opened(str(tmp_path / "out"), "")
    assert exported.arch == replace(weights.arch, layers=2)
    elsewhere = validate(with_data(exported, None, data))
    assert run is not None
    for other in (with_own_choice, elsewhere):
        assert other is not None
        assert other.loss == pytest.approx(run.loss, rel=1e-6)
    whole = replace(weights, active_layers=None)
    untrained = validate(with_data(whole, found, data))
    assert untrained is not None
    assert untrained.loss != pytest.approx(run.loss, rel=1e-6), "or it would not matter"


def test_a_run_that_begins_with_it_begins_with_those(letters: Path, base_dir: Path, tmp_path: Path) -> None:
    begins = [word for word in words(letters, base_dir) if not word.startswith("data.vocab")]
    config = compose([*begins, "init_from=half"])
    assert config.arch.layers == 2
    pretraining(pretrain, [*begins, "init_from=half", "name=two", "stop_at=1"])
    first = opened("two@step=0", str(base_dir))
    half = opened("half", str(base_dir)).trained()
    assert all(torch.equal(first.state[name], half.state[name]) for name in half.state)
    assert first.state.keys() == half.state.keys()
    with pytest.raises(UserError, match="the checkpoint has 2 layers and the model 4: give init_depth=stack"):
        pretraining(pretrain, [*begins, "init_from=half", "name=four", "arch=bert_tiny", "arch.layers=4"])


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind not in ("albert", "hf")])
def test_the_first_layers_of_any_family_alone_are_what_they_are_in_the_whole(kind: str) -> None:
    part = replace(weights_of(replace(arch_of(kind), layers=LAYERS)), active_layers=(0, 1))
    alone = part.trained()
    assert alone.model().layers == 2
    assert alone.seq_length == POSITIONS
    torch.testing.assert_close(logits(alone.model()), logits(part.model()))
    assert not torch.allclose(logits(replace(part, active_layers=None).model()), logits(part.model()), atol=1e-3)


def test_a_checkpoint_with_all_layers_is_left_as_it_is() -> None:
    weights = weights_of(arch_of("bert"))
    assert weights.trained() is weights
    complete = replace(weights, active_layers=(0, 1))
    assert complete.trained() is complete


def test_what_no_options_describe_is_refused_and_can_still_be_asked() -> None:
    scaled = replace(weights_of(replace(arch_of("crammed"), deepnorm_scaling=True)), active_layers=(0,))
    assert logits(scaled.model()).isfinite().all()
    with pytest.raises(UserError, match=r"random: 1 of 2 layers are no model .* with arch.deepnorm_scaling=true"):
        scaled.trained()
    upper = replace(weights_of(arch_of("bert")), active_layers=(1,))
    assert logits(upper.model()).isfinite().all()
    with pytest.raises(UserError, match="no arch describes layers 1 alone; take a checkpoint with all layers active"):
        upper.trained()
    library = replace(weights_of(arch_of("hf")), active_layers=(0,))
    with pytest.raises(UserError, match="1 of 2 layers of arch=hf are not known to be a model of their own"):
        library.trained()
