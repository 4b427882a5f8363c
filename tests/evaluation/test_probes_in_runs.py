"""Probes where they are asked: inside pretraining, which must not notice, and by ``validate_bert.py``."""

import json
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import run_of, trained

from cramming.cli import pretraining
from cramming.config import ImplConfig
from cramming.errors import UserError
from cramming.evaluation import heldout
from cramming.evaluation.probes import during, probing
from cramming.evaluation.probes.config import PROBES, ProbeOptions, check
from cramming.evaluation.probes.grammar import Pair
from cramming.evaluation.probes.reader import Reader
from cramming.progress import Silent
from cramming.session import pretrain
from tests.exchange.models import arch_of as tiny_arch
from tests.exchange.models import kinds, tokenizer, weights_of
from tests.session import runs

ALL = f"[{','.join(PROBES)}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of made-up words and files for the probes that need some."""
    folder = tmp_path_factory.mktemp("probes")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 4))) for _ in range(200)]
    documents = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(200)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    for name, count in (("train", 40), ("dev", 20)):
        rows = [f"{' '.join(draw.choices(words, k=5))} {'xyz' * (row % 2)},{row % 2}" for row in range(count)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    rated = [f"{' '.join(draw.choices(words, k=3))},{' '.join(draw.choices(words, k=3))},{row}" for row in range(9)]
    (folder / "rated.csv").write_text("\n".join(["sentence1,sentence2,score", *rated]) + "\n")
    return folder


def options(place: Path, prefix: str) -> list[str]:
    """Words for all probes, on few rows."""
    return [
        f"{prefix}.task=mood", f"{prefix}.train_file={place / 'train.csv'}",
        f"{prefix}.validation_file={place / 'dev.csv'}", f"{prefix}.sts={place / 'rated.csv'}",
        f"{prefix}.max_eval_rows=16", f"{prefix}.max_length=16",
    ]  # fmt: skip


def train(place: Path, *words: str) -> None:
    """A small run in this process."""
    given = ["data.seq_length=48", "budget=6", "impl.validate_every_h=3", *words]
    pretraining(pretrain, runs.command(place, *given))


def rows_of(place: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "outputs" / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=["averaged", pytest.param("adamw", marks=pytest.mark.full)])
def probed_run(request: pytest.FixtureRequest, place: Path) -> str:
    """The name of a run that was probed twice; as ``plain-<name>`` there is one that was not.

    The second kind of run lends other weights to validation, and draws random numbers for dropout.
    """
    torch.set_num_threads(1)
    name: str = request.param
    averaged = ["method=weight_averaging", "method.weight_averaging.average=ema", "arch.dropout=0.1"]
    more = averaged if name == "averaged" else []
    train(place, f"name=plain-{name}", *more)
    train(place, f"name={name}", *more, f"impl.probes={ALL}", *options(place, "impl.probe"))
    return name


def test_a_run_with_probes_is_the_run_without_them_to_the_last_bit(place: Path, probed_run: str) -> None:
    assert runs.same(runs.weights(place, probed_run), runs.weights(place, f"plain-{probed_run}"))
    same_in_both = ("step", "loss", "lr", "spent_s", "grad_norm", "validation_loss", "validation_accuracy")
    with_probes, without = (
        [{key: row.get(key) for key in same_in_both} for row in rows_of(place, name)]
        for name in (probed_run, f"plain-{probed_run}")
    )
    assert with_probes == without


def test_every_validation_has_a_row_with_all_probes(place: Path, probed_run: str) -> None:
    labels = {
        "probe/linear/mood", "probe/knn/mood", "probe/frequency/held-out", "probe/minimal_pairs/embedded",
        "probe/sts/rated", "probe/retrieval/held-out",
    }  # fmt: skip
    for row in rows_of(place, probed_run):
        found = {key for key in row if key.startswith("probe/")}
        assert found == (labels if "validation_loss" in row else set())
    assert not any(key.startswith("probe/") for row in rows_of(place, f"plain-{probed_run}") for key in row)
    kept = json.loads((place / "outputs" / probed_run / "probes.json").read_text())["steps"]
    assert list(kept) == ["3", "6"]
    for row in rows_of(place, probed_run):
        for label in labels if "validation_loss" in row else ():
            answer = kept[str(row["step"])][label.removeprefix("probe/")]
            assert answer["score"] == row[label]
            assert answer["chance"] is not None
            assert answer["examples"] > 0


def test_validate_bert_gives_what_the_run_gave(
    place: Path, probed_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = place / "outputs" / probed_run
    before = json.loads((run_dir / "probes.json").read_text())
    (run_dir / "probes.json").unlink()
    words = [f"name={probed_run}", f"base_dir={place / 'outputs'}", f"probes={ALL}", *options(place, "probe")]
    heldout.command(words)
    said = capsys.readouterr().out
    assert "held-out loss" in said
    assert "minimal_pairs/embedded" in said
    assert str(run_dir / "probes.json") in said.replace("\n", "")
    after = json.loads((run_dir / "probes.json").read_text())
    assert after["steps"]["6"] == before["steps"]["6"]
    heldout.command([*words, "weights=last"])
    last = json.loads((run_dir / "probes-last.json").read_text())
    assert (last == after) == (probed_run == "adamw"), "averaged weights answer otherwise than the last ones"
    assert json.loads((run_dir / "probes.json").read_text()) == after
    (run_dir / "probes.json").write_text(json.dumps(before))


def test_starting_over_forgets_the_answers(place: Path) -> None:
    train(place, "name=again", "impl.probes=[retrieval]", "budget=2")
    assert (place / "outputs" / "again" / "probes.json").exists()
    train(place, "name=again", "budget=2", "resume=false")
    assert not (place / "outputs" / "again" / "probes.json").exists()


def test_a_probe_that_breaks_ends_no_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("cramming.evaluation.probes.retrieval.probe", broken)
    with caplog.at_level(logging.WARNING):
        train(place, "name=broken", "impl.probes=[retrieval,frequency]", "budget=2")
    assert "probe retrieval has no answer at step 2: RuntimeError: out of memory" in caplog.text
    assert (place / "outputs" / "broken" / "summary.json").exists()
    found = [key for row in rows_of(place, "broken") for key in row if key.startswith("probe/")]
    assert found == ["probe/frequency/held-out"], "the others are unharmed"


def test_what_is_not_probed_costs_no_import() -> None:
    run = run_of()
    assert run.config.impl.probes == ImplConfig().probes == []
    assert during.probed(run, Path("nowhere")) == {}
    during.refuse(run.config)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["impl.probes=[minimal_pear]"], r"impl\.probes=minimal_pear is unknown; did you mean 'minimal_pairs'"),
        (["impl.probes=[knn]"], r"impl\.probes=knn asks about a task: give impl\.probe\.task=sst2"),
        (["impl.probes=[sts]"], r"impl\.probe\.sts=<file"),
        (["impl.probes=[sts]", "impl.probe.sts=absent.csv"], r"absent\.csv does not exist"),
        (["impl.probes=[linear]", "impl.probe.task=sst", "impl.probe.data_dir=x"], "did you mean 'sst2'"),
        (["impl.probes=[frequency]", "impl.probe.bands=mess"], r"impl\.probe\.bands=mess is unknown"),
        (["impl.probes=[knn,knn]", "impl.probe.task=sst2"], "names a probe twice"),
        (["impl.probe.kk=3"], r"impl\.probe\.kk"),
    ],
)
def test_what_is_wrong_with_probes_is_said_before_a_run_begins(place: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        train(place, "name=refused", *words)
    assert not (place / "outputs" / "refused" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["probes=[linar]"], "probes=linar is unknown; did you mean 'linear'"),
        (["probes=linear,frequncy"], "probes=frequncy is unknown; did you mean 'frequency'"),
        (["probes=knn"], r"probes=knn asks about a task: give probe\.task=sst2"),
        (["probes=sts", "probe.ssts=x"], "unknown option ssts; did you mean 'sts'"),
        (["probe.k=3"], r"probe\.k=3 is for probes: name some"),
        (["probes=knn", "probe.task=sst2", "probe.k=0"], r"probe\.k=0 must be at least 1"),
        (["probes=minimal_pairs", "probe.pairs=absent.jsonl"], r"probe\.pairs=absent\.jsonl does not exist"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(place: Path, probed_run: str, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        heldout.command([f"name={probed_run}", f"base_dir={place / 'outputs'}", *words])


def test_every_option_is_checked_at_its_edge() -> None:
    check(PROBES, ProbeOptions(task="sst2", sts="x", k=1, max_rows=1, max_length=4, layer=1))
    for wrong in ({"k": 0}, {"max_rows": 0}, {"max_length": 3}, {"layer": 0}, {"l2": 0.0}, {"pll": "l2r"}):
        (key,) = wrong
        with pytest.raises(UserError, match=rf"^probe\.{key}="):
            check([], ProbeOptions(**wrong))


# ---- models of every kind ----


def test_a_checkpoint_that_is_no_run_is_asked_without_a_corpus(
    place: Path, probed_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cramming import export

    base = f"base_dir={place / 'outputs'}"
    export.command([f"name={probed_run}", base, f"to={tmp_path}/exported"])
    heldout.command([f"checkpoint={tmp_path}/exported", base, "probes=[minimal_pairs]", "probe.max_eval_rows=16"])
    said = capsys.readouterr().out
    assert "minimal_pairs/embedded" in said
    assert "held-out loss" not in said
    kept = json.loads((place / "outputs" / probed_run / "probes.json").read_text())["steps"]["6"]
    assert f"{kept['minimal_pairs/embedded']['score']:.3f}" in said
    with pytest.raises(UserError, match="has no corpus of its own"):
        heldout.command([f"checkpoint={tmp_path}/exported", base, "probes=[frequency]"])


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_every_architecture_can_be_asked(kind: str) -> None:
    """Features of a text are the mean of its states, at any depth that can be had."""
    reader = Reader.of_model(weights_of(tiny_arch(kind)).model(), tokenizer())
    texts = [reader.sentence(ids, 16) for ids in tokenizer().encode_lists(["a cat", "on mats", "the end", "x"])]
    found = reader.pooled(texts, Silent())
    for row, text in enumerate(texts):
        states = reader.hidden(reader.batch(text[None]))[0].double()
        np.testing.assert_allclose(found[row], states.mean(0).numpy(), atol=1e-5)
    assert len(np.unique(found.round(5), axis=0)) == 4
    if reader.model.separable_layers:
        with reader.at_layer(1):
            assert np.abs(reader.pooled(texts, Silent()) - found).max() > 1e-3
        np.testing.assert_allclose(reader.pooled(texts, Silent()), found, atol=1e-6)


def test_in_low_precision_the_weights_asked_are_the_newest() -> None:
    run = run_of(precision="bfloat16", lr=0.1)
    reader = Reader.of_run(run)
    text = np.arange(5, 21)[None]
    before = reader.hidden(reader.batch(text)).float()
    trained(run)
    after = reader.hidden(reader.batch(text)).float()
    assert (after - before).abs().max() > 0.1
    exact = run.model.hidden(reader.batch(text))
    assert (after - exact).abs().max() < 0.1 * (after - before).abs().max()


def test_probes_compile_nothing() -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model = weights_of(tiny_arch("bert")).model()
    for block in model.blocks:
        block.compile(backend=counter)
    reader = Reader.of_model(model, tokenizer())
    asked = probing.read(["minimal_pairs"], ProbeOptions(max_eval_rows=4, pairs=None), Path())
    asked = replace(asked, pairs=[Pair("a b", "b a", "x"), Pair("a b c d", "d c b a", "x")])
    (compiled,) = probing.ask(reader, asked, Silent())
    assert counter.frame_count == 0
    reader.hidden(reader.batch(np.full((1, 8), 7)))
    assert counter.frame_count > 0, "else there was nothing to compile"
    assert compiled.examples == 2
