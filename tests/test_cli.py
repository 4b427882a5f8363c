"""What a person types wrong ends with one line, exit code 2, no traceback, and nothing lost or left behind."""

import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cramming.cli import parse, pretraining
from cramming.config import PretrainConfig
from cramming.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN = str(ROOT / "pretrain_bert.py")

REFUSED = {
    "dta.path=x": "unknown option dta.path; did you mean 'data.path'?",
    "clip_norm=3": "unknown option clip_norm; did you mean 'train.clip_norm'?",
    "train.optim.lrr=1": "did you mean 'train.optim.lr'?",
    "+foo=1": "foo",
    "data=locall": "data has no option 'locall'; did you mean 'local'?",
    "arch=bert_smal": "did you mean 'bert_small'?",
    "method=foo": "method has no option 'foo'",
    "train.batch_size=x": "train.batch_size=x",
    "train.optim.lr=abc": "train.optim.lr=abc",
    "train.optim.lr=-1": "train.optim.lr=-1",
    "train.batch_size=0": "train.batch_size=0 must be above zero",
    "train.mask_rate=1.5": "must lie between 0 and 1",
    "train.clip_norm=-1": "null switches clipping off",
    "train.early_stop.after_h=1": "needs both",
    "budget=-1": "budget=-1 must be more than zero",
    "budget=0": "must be more than zero",
    "budget=nan": "must be more than zero and finite",
    "budget=inf": "must be more than zero and finite",
    "budget=soon": "is not an amount of time; give hours",
    "budget=10x": "unknown unit 'x'",
    "budget": "key=value",
    "stop_at=25": "lies after the end of budget=24",
    "name=../../x": "cannot be a run's name",
    "name=/x": "cannot be a run's name",
    "name=": "cannot be a run's name",
    "base_dir=": "base_dir is empty",
    "data_dir=": "data_dir is empty",
    "budget=a b": "is not an amount of time",
    "data.path=a,b": "data.path=a,b",
    "name=.": "cannot be a run's name",
    "impl.microbatch_size=48": "does not divide train.batch_size=64; the nearest that does is 64",
    "impl.microbatch_size=many": "must be auto or a whole number",
    "impl.precision=float8": "there are: auto, float32, bfloat16, float16",
    "impl.allocator=kept": "there are: auto, keep, system",
    "impl.kernels=tritan": "impl.kernels=tritan is unknown; did you mean 'triton'?",
    "impl.plain=[cross_entropie]": "impl.plain=[cross_entropie] is unknown; did you mean 'cross_entropy'?",
    "data.seq_length=2": "data.seq_length=2",
    "data.document=page": "line",
    "wandb.mode=of": "offline",
    "train.stacking.enabled=True": "belongs to an earlier system; here it is: method=layer_stacking",
    "impl.validate_every_hours=3": "impl.validate_every_h",
    "--bad-flag": "unknown flag --bad-flag",
}


@pytest.mark.parametrize(("word", "says"), REFUSED.items())
def test_one_line_that_says_what_is_wrong(word: str, says: str) -> None:
    def never(config: object) -> None:
        raise AssertionError("the job must not start")

    with pytest.raises(UserError) as caught:
        pretraining(never, ["data=local", "data.path=x", "arch=bert_small", word])
    message = str(caught.value)
    assert says in message
    assert len(message) < 400
    assert "\n" not in message


def test_the_earlier_systems_default_command_is_taken_as_it_was() -> None:
    """Its encoder on its corpus for 24 hours."""
    seen: list[PretrainConfig] = []
    pretraining(seen.append, ["name=x", "budget=24"])
    assert (seen[0].name, seen[0].arch.name, seen[0].data.name, seen[0].budget_s) == (
        "x", "crammed", "c4_subset", 24 * 3600
    )  # fmt: skip
    assert (seen[0].train.batch_size, seen[0].train.schedule.kind) == (1536, "one_cycle")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=local", "data.path=absent.txt"], "absent.txt"),
        (["data=local", "data.path=empty.txt"], "empty"),
        (["data=local", "data.path=few.txt"], "less than one batch of train.batch_size=64"),
        (["data=local", "data.path=few.txt", "data.vocab_size=8192"], "8192"),
        (["data=local", "data.path=rows.csv", "data.text_column=body"], "title"),
        (["data=local", "data.path=few.txt", "impl.precision=float16"], "float16"),
        (["data=local", "data.path=broken.txt"], "broken.txt"),
        (["data=local", "data.path=few.txt", "data.tokenizer=vocab.txt"], "mask"),
    ],
)
def test_bad_input_creates_nothing_outside_base_dir(
    tmp_path: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "few.txt").write_text("one two three four five six seven eight nine ten\n\n" * 40)
    (tmp_path / "rows.csv").write_text("title,year\na,1\n")
    (tmp_path / "broken.txt").write_bytes(b"good text " * 20 + b"\xff\xfe broken")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\n")
    before = set(tmp_path.iterdir())
    small = [] if "data.vocab_size=8192" in words else ["data.vocab_size=128"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [PRETRAIN, "name=a", "arch=bert_tiny", "budget=10s", *small, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(PRETRAIN, run_name="__main__")
    out, err = capsys.readouterr()
    assert ended.value.code == 2, err
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert says in error[0]
    assert "Traceback" not in err + out
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "outputs"}
    assert not (tmp_path / "outputs" / "a").exists()


def test_asking_for_a_run_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "first").mkdir(parents=True)
    (tmp_path / "outputs" / "first" / "config.yaml").write_text("name: first\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "validate_bert.py"), "name=frist"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no run 'frist'" in done.stderr
    assert "did you mean 'first'" in done.stderr


def test_help_is_quick_because_torch_is_not_imported() -> None:
    code = """
import runpy, sys
sys.argv = ["pretrain_bert.py", "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for group in ("arch", "data", "train/optim", "train/schedule", "method", "rst", "wandb", "experiment"):
        assert re.search(rf"^  {group} +\w", done.stdout, re.MULTILINE), group
    assert len(re.findall(r"^  [\w.]+=", done.stdout, re.MULTILINE)) == 10


@pytest.mark.parametrize("path", ["~/my texts", "it's; here", "100% (real)/x*.txt", "back\\slash"])
def test_paths_may_have_any_characters(path: str) -> None:
    seen: list[PretrainConfig] = []
    pretraining(seen.append, ["data=local", f"data.path={path}", "arch=bert_tiny"])
    assert seen[0].data.path == path


@dataclass
class Small:
    """Options of a small command."""

    name: str | None = None
    top: int = 5


def test_small_commands_take_options_and_words() -> None:
    options, words = parse(["name=a", "2 + 2 = [MASK]", "x=1 is [MASK]", "top=3"], Small, "")
    assert options == Small("a", 3)
    assert words == ["2 + 2 = [MASK]", "x=1 is [MASK]"]
    with pytest.raises(UserError, match="unknown option tops; did you mean 'top'"):
        parse(["tops=1"], Small, "")
    with pytest.raises(UserError, match="top=x"):
        parse(["top=x"], Small, "")
