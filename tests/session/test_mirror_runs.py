"""A run with a mirror: the same command on an empty machine goes on, and other commands begin from its address."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from cramming.cli import load_schemas, pretraining
from cramming.errors import UserError
from cramming.exchange.opening import opened
from cramming.session import pretrain

from . import runs
from .test_kill import rows


def words(folder: Path, far: Path, *more: str) -> list[str]:
    return runs.command(folder, "name=whole", f"impl.mirror={far}/{{name}}", *more)


def empty(folder: Path) -> None:
    """Another machine, which has the corpus alone."""
    shutil.rmtree(folder / "outputs")


def trained(run_dir: Path) -> list[tuple[object, object]]:
    """Step and loss of every row that was logged."""
    return [(row["step"], row["loss"]) for row in rows(run_dir)]


@pytest.mark.parametrize("more", [pytest.param([], marks=pytest.mark.full), ["impl.save_async=true"]])
def test_the_same_command_on_an_empty_machine_goes_on(finished: Path, folder: Path, more: list[str]) -> None:
    far = folder / "far"
    assert runs.run(words(folder, far, "stop_at=6", *more)) == 0
    empty(folder)
    assert runs.run(words(folder, far, *more)) == 0
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))
    ours, theirs = folder / "outputs" / "whole", finished / "outputs" / "whole"
    assert trained(ours) == trained(theirs) == trained(far / "whole")
    assert json.loads((far / "whole" / "summary.json").read_text())["steps"] == 12
    empty(folder)
    assert runs.run(words(folder, far, *more)) == 0, "finished there is finished here"
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))


@pytest.mark.parametrize(
    "point",
    ["mirror-file:6", *(pytest.param(p, marks=pytest.mark.full) for p in ("mirror-manifest:2", "mirror-records:3"))],
)
def test_killed_while_copying_and_moved(finished: Path, folder: Path, point: str) -> None:
    far = folder / "far"
    assert runs.run(words(folder, far), kill_at=point) == -signal.SIGKILL
    empty(folder)
    assert runs.run(words(folder, far)) == 0
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))
    assert trained(far / "whole") == trained(finished / "outputs" / "whole")


def test_what_is_refused(folder: Path) -> None:
    """Other options, another run in its place, and a place that is none; starting over clears it."""
    far = folder / "far"
    short = words(folder, far, "budget=4")
    assert runs.run(short) == 0
    empty(folder)
    (folder / "file").write_text("")
    for given, message in (
        ([*short, "seed=7"], r"far/whole was started with other options: seed was 0, now 7"),
        (runs.command(folder, "name=other", f"impl.mirror={far}/whole"), "holds another run, whole: give each a place"),
        (runs.command(folder, "name=third", f"impl.mirror={folder}/file/{{name}}"), "file/third cannot be used"),
    ):
        with pytest.raises(UserError, match=message):
            pretraining(pretrain, given)
    assert not list((folder / "outputs").glob("*/checkpoints"))
    assert runs.run([*short, "seed=7", "resume=false"]) == 0
    assert "seed: 7" in (far / "whole" / "config.yaml").read_text()


def test_a_run_at_an_address_is_opened_and_begun_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server = pytest.importorskip("tests.data.s3_server")
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    server = s3_server.start(monkeypatch.setenv)
    try:
        assert runs.run(runs.command(folder, "name=first", "budget=4")) == 0
        server.put_folder("bucket/first", folder / "outputs" / "first")
        load_schemas()
        weights = opened("s3://bucket/first@step=4", str(folder / "elsewhere"))
        assert runs.same(dict(weights.state), runs.weights(folder, "first"))
        assert weights.tokenizer is not None
        assert weights.origin["step"] == 4
    finally:
        server.close()


@pytest.mark.full
def test_a_run_that_began_with_another_goes_on_without_it(folder: Path) -> None:
    """On an empty machine, where the checkpoint it began with is not."""
    assert runs.run(runs.command(folder, "name=first", "budget=2")) == 0
    far = folder / "far"
    begun = [word for word in words(folder, far) if not word.startswith("arch")] + ["init_from=first"]
    assert runs.run([*begun, "stop_at=6"]) == 0
    empty(folder)
    assert runs.run(begun) == 0
    moved = runs.weights(folder, "whole")
    empty(folder)
    assert runs.run(runs.command(folder, "name=first", "budget=2")) == 0
    assert runs.run([word for word in begun if "mirror" not in word]) == 0
    assert runs.same(runs.weights(folder, "whole"), moved)
