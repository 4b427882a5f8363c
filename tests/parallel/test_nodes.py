"""torchrun twice on one machine, as two nodes that share no disk, or one."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.parallel.commands import TORCHRUN, finish, started, words
from tests.parallel.meeting_ranks import free_port


def curve(folder: Path) -> list[float]:
    """A run's training losses."""
    lines = (folder / "outputs" / "nodes" / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines)]


def of_one_process(place: Path, corpus: str) -> list[float]:
    """What it is held against."""
    (place / "text.txt").write_text(corpus)
    log = place / "log"
    assert finish(TORCHRUN[0], *words(place, "nodes", "budget=30"), log=log) == 0, log.read_text()
    return curve(place)


def on_two_nodes(folders: list[Path], corpus: str) -> None:
    """The same on two, each with its folder."""
    port = free_port()
    with ExitStack() as stack:
        nodes = []
        for rank, folder in enumerate(folders):
            folder.mkdir(exist_ok=True)
            (folder / "text.txt").write_text(corpus)
            flags = ["--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
            command = (*TORCHRUN, *flags, "--nproc-per-node=1", *words(folder, "nodes", "budget=30"))
            nodes.append(stack.enter_context(started(*command, log=folder / f"log-{rank}")))
        for rank, (node, folder) in enumerate(zip(nodes, folders, strict=True)):
            assert node.wait(600) == 0, (folder / f"log-{rank}").read_text()


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.scale)])
def test_two_nodes_have_the_curve_of_one_process(tmp_path: Path, corpus: str, shared: bool) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    folders = [tmp_path / "first", tmp_path / ("first" if shared else "second")]
    on_two_nodes(folders, corpus)
    assert curve(folders[0]) == pytest.approx(of_one_process(alone, corpus), rel=1e-5)
    log = (folders[0] / "outputs" / "nodes" / "run.log").read_text()
    assert log.count("nodes: arch bert_tiny") == 1, "written once"
    summary = json.loads((folders[0] / "outputs" / "nodes" / "summary.json").read_text())
    assert summary["ranks"] == 2
    if not shared:
        kept = {file.name for file in (folders[1] / "outputs" / "nodes").rglob("*")}
        assert not kept & {"summary.json", "metrics.jsonl", "run.log", "checkpoints", "config.yaml"}
        assert not [line for line in (folders[1] / "log-1").read_text().splitlines() if "loss" in line]
