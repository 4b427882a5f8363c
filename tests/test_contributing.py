"""The files shown in CONTRIBUTING.md are complete and do what it says. They run in a process of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN = re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)

PREPARE = """
import sys
from pathlib import Path
import torch
from omegaconf import OmegaConf
from hydra import compose, initialize_config_dir
from cramming import cli
from cramming.config import typed

def config(*overrides):
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        mine = "hydra.searchpath=[file://" + str(Path("config").resolve()) + "]"
        return typed(compose("pretrain", [mine, *overrides]))

cli.load_schemas()
sys.path.insert(0, ".")
"""

CHECKS = {
    "method": """
import half_depth
from types import SimpleNamespace
from cramming.errors import UserError

method = config("data=python_docs", "method=half_depth", "method.half_depth.until=0.25").method["half_depth"]
run = SimpleNamespace(model=SimpleNamespace(layers=4, active_layers=()), clock=SimpleNamespace(progress=0.2))
method.before_step(run)
assert run.model.active_layers == (0, 1)
run.clock.progress = 0.25
method.before_step(run)
assert run.model.active_layers == (0, 1, 2, 3)
try:
    half_depth.HalfDepth(until=2)
except UserError:
    pass
else:
    raise AssertionError("an impossible share was taken")
""",
    "optimizer": """
import sign_sgd
from cramming.optim import for_model

optim = config("data=python_docs", "train/optim=sign_sgd", "train.optim.lr=0.5").train.optim
model = torch.nn.Linear(2, 1)
with torch.no_grad():
    model.weight.copy_(torch.tensor([[1.0, 2.0]]))
optimizer = for_model(optim, model)
model.weight.grad = torch.tensor([[3.0, -4.0]])
optimizer.step()
assert torch.allclose(model.weight, torch.tensor([[0.95 - 0.5, 1.9 + 0.5]]))
assert model.bias.grad is None and optimizer.param_groups[0]["base_lr"] == 0.5
""",
    "architecture": """
import bag
from cramming.batch import Batch

torch.manual_seed(0)
model = config("data=python_docs", "arch=bag", "arch.layers=3").arch.build(50, 8)
inputs = torch.randint(5, 50, (2, 8), generator=torch.Generator().manual_seed(0))
positions, lengths = torch.tensor([[1, 3], [0, 2]]), torch.tensor([8, 4])
labels = torch.tensor([[0, 1], [2, 3]])
def batch(tokens):
    weights = torch.ones(2, 2)
    ids = torch.arange(2)
    # labels that are not in the sequence: a bag that sees its label is so sure that the gradient rounds to zero
    return Batch(ids, ids, tokens, positions, labels, weights, lengths, weights.sum())
model.active_layers = (0, 2)
losses = model(batch(inputs))
logits = model(batch(inputs), logits=True)
expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
assert torch.allclose(losses.mean(), expected, atol=1e-6)
losses.sum().backward()
assert model.blocks[1].weight.grad is None and model.blocks[2].weight.grad.abs().sum() > 0
padded = inputs.clone()
padded[1, 4:] = 7
assert torch.equal(model(batch(padded)), losses)
assert torch.equal(model.hidden(batch(inputs))[1, 4:], torch.zeros(4, 128))
assert model.flops(8, 2, 3) == 2.0 * 128 * (3 * 8 * 128 + 2 * 50)
""",
    "data source": """
import zip_texts
from zipfile import ZipFile
from cramming.errors import UserError
from cramming.progress import Silent

def archive(name, *texts):
    with ZipFile(name, "w") as made:
        for number, text in enumerate(texts):
            made.writestr(f"{number}.txt", text)
        made.writestr("picture.png", b"no text")
    data = config("data=zip_texts", f"data.archive={name}").data
    return data.source(Path("."), 1, Silent())

first, other = archive("a.zip", "One.", "Two."), archive("c.zip", "One!", "Two.")
assert [piece.text for piece in first.pieces()] == ["One.", "Two."]
assert all(piece.last for piece in first.pieces()) and list(first.pieces())[-1].position == first.total == 8
assert first.fingerprint != other.fingerprint
assert first.glimpse(3) == (["One."], 4.0)
try:
    config("data=zip_texts", "data.archive=missing.zip").data.source(Path("."), 1, Silent())
except UserError as error:
    assert "missing.zip" in str(error)
else:
    raise AssertionError("a missing archive was taken")
""",
}


def test_each_kind_of_contribution_is_shown_with_its_config_file() -> None:
    folders = [str(Path(name).parent) for name, _ in SHOWN]
    assert folders == [
        "efficient_training",
        "config/method",
        "cramming/optim",
        "config/train/optim",
        "cramming/architectures",
        "config/arch",
        "cramming/data/sources",
        "config/data",
    ]


@pytest.mark.parametrize("kind", CHECKS)
def test_what_is_shown_works(kind: str, tmp_path: Path) -> None:
    for name, text in SHOWN:
        path = tmp_path / (name if name.startswith("config/") else Path(name).name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{PREPARE}{CHECKS[kind]}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
