"""Every family of encoders, killed and started again, ends with the weights of a run that was never killed."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from . import runs

REPOSITORY = Path(__file__).resolve().parents[2]
FAMILIES = sorted(file.stem for file in (REPOSITORY / "config" / "arch").glob("*_tiny.yaml"))
SAMPLE = ("m2_tiny",)  # in `make test`; all of them in `make test-full`
# Points that a run of 6 steps passes once it trains, with how often it passes them; those before do not know the model.
POINTS = {
    "step": 6,
    "metrics-append": 6,
    "checkpoint-weights": 3,
    "checkpoint-state": 3,
    "checkpoint-fsync": 12,
    "checkpoint-rename": 3,
    "checkpoint-renamed": 3,
    "summary-write": 1,
}
ALL = [f"{name}:{nth}" for name, times in POINTS.items() for nth in range(1, times + 1)]


def words(folder: Path, family: str) -> list[str]:
    """A run of 6 steps of a family's tiny size, saved after every second."""
    kept = [word for word in runs.TINY if not word.startswith(("arch", "budget", "impl.save_every_steps"))]
    places = [f"base_dir={folder / 'outputs'}", f"data.path={folder / 'text.txt'}", "name=whole"]
    return [*places, *kept, f"arch={family}", "arch.vocab_size=300", "budget=6", "impl.save_every_steps=2"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> dict[str, Path]:
    """Folders of finished runs, made when asked for and kept for the other points of the family."""

    class Made(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            place = tmp_path_factory.mktemp(family)
            (place / "text.txt").write_text(corpus)
            assert runs.run(words(place, family)) == 0, family
            self[family] = place
            return place

    return Made()


def interrupted(whole: Path, folder: Path, family: str, *points: str) -> None:
    """Kill a run at each point in turn, let it end, and hold it against the one that was never killed."""
    shutil.copytree(whole / "outputs" / "_data", folder / "outputs" / "_data")  # the corpus is ready
    for point in points:
        assert runs.run(words(folder, family), kill_at=point) == -signal.SIGKILL, f"the run never passed {point}"
    assert runs.run(words(folder, family)) == 0
    assert runs.same(runs.weights(folder, "whole"), runs.weights(whole, "whole"))


@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f in SAMPLE else [pytest.mark.full]) for f in FAMILIES])
def test_killed_twice(straight: dict[str, Path], folder: Path, family: str) -> None:
    draw = random.Random(family)
    early = draw.choice(["step:1", "step:3", "checkpoint-weights:1", "checkpoint-rename:1"])
    late = draw.choice(["checkpoint-state:1", "checkpoint-fsync:2", "checkpoint-renamed:2", "summary-write:1"])
    interrupted(straight[family], folder, family, early, late)


@pytest.mark.full
@pytest.mark.parametrize("point", ALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_at_every_point_of_training(straight: dict[str, Path], folder: Path, family: str, point: str) -> None:
    interrupted(straight[family], folder, family, point)
