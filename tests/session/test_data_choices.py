"""A run on a mixture, in the order of a curriculum: killed anywhere, it ends with the same weights."""

import json
import signal
from pathlib import Path

import pytest

from . import runs

SOURCES = ("texts", "more")


def command(folder: Path) -> list[str]:
    """A small run on two parts of ``folder/text.txt``, repeated as needed."""
    documents = (folder / "text.txt").read_text().split("\n\n")
    for name, part in zip(SOURCES, (documents[:150], documents[150:]), strict=True):
        (folder / f"{name}.txt").write_text("\n\n".join(part))
    sources = [f"data.sources.{name}={{kind: local, path: {folder / name}.txt}}" for name in SOURCES]
    words = [word for word in runs.TINY if word != "data=local"]
    mix = ["data.mix={texts: 0.6, more: 0.4}", "data.exhausted=repeat", "data.order=reverse_rarity"]
    return [f"base_dir={folder / 'outputs'}", "name=mixed", *words, *mix, *sources]


@pytest.mark.full
def test_killed_anywhere(folder: Path) -> None:
    words = command(folder)
    assert runs.run(words) == 0
    whole = runs.weights(folder, "mixed")
    (store,) = (folder / "outputs" / "_data").glob("store-*/manifest.json")
    texts, more = json.loads(store.read_text())["gave"]
    assert abs(texts["share"] - 0.6) < 0.01
    assert more["repeats"] > 0
    (folder / "outputs").rename(folder / "before")
    for point in ("order-rename:1", "step:7"):
        assert runs.run(words, kill_at=point) == -signal.SIGKILL, f"the run never passed {point}"
    assert runs.run(words) == 0
    assert runs.same(runs.weights(folder, "mixed"), whole)
