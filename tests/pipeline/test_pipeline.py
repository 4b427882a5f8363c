"""Pipelines: what a command line means, and when a stage is done again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cramming.errors import UserError
from cramming.pipeline.command import Ended, _through
from cramming.pipeline.config import STAGES, launched, load, split
from cramming.pipeline.record import Record
from cramming.pipeline.stages import Stage, Stages, results_folder

PIPELINES = sorted(file.stem for file in (Path(__file__).parents[2] / "config/pipeline").glob("*.yaml"))


class Workshop:
    """Stages a -> b -> c in a folder: each writes its own letter behind what the one before it left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[str] = []
        self.broken: set[str] = set()
        self.text = {"a": "a", "b": "b", "c": "c"}

    def stages(self, needed: bool = False) -> list[Stage]:
        return [
            self._stage("a", (), needed),
            self._stage("b", ("a",), needed),
            self._stage("c", ("b",), needed),
        ]

    def go(self, **options: bool) -> list[tuple[str, str]]:
        self.runs.clear()
        ended: list[Ended] = _through(self.stages(**options), Record(self.folder))
        return [(end.stage.label, end.state) for end in ended]

    def file(self, label: str) -> Path:
        return self.folder / f"{label}.txt"

    def _stage(self, label: str, after: tuple[str, ...], needed: bool) -> Stage:
        def work() -> None:
            self.runs.append(label)
            if label in self.broken:
                raise UserError("it broke")
            before = "".join(self.file(one).read_text() for one in after)
            self.file(label).write_text(before + self.text[label])

        return Stage(
            label,
            lambda: [],
            self._files(label),
            lambda: label,
            after,
            (),
            work,
            lambda: self.text[label],
            needed=needed,
        )

    def _files(self, label: str) -> Callable[[], list[Path]]:
        return lambda: [self.file(label)]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_a_second_call_does_nothing(workshop: Workshop) -> None:
    assert workshop.go() == [("a", "done"), ("b", "done"), ("c", "done")]
    assert workshop.go() == [("a", "unchanged"), ("b", "unchanged"), ("c", "unchanged")]
    assert workshop.runs == []


@pytest.mark.parametrize("damage", ["delete", "cut"])
def test_a_damaged_output_is_made_again_and_what_reads_it_is_not_when_it_came_out_the_same(
    workshop: Workshop, damage: str
) -> None:
    workshop.go()
    if damage == "delete":
        workshop.file("b").unlink()
    else:
        workshop.file("b").write_text("a")
    assert workshop.go() == [("a", "unchanged"), ("b", "done"), ("c", "unchanged")]


def test_a_changed_input_goes_through_to_the_end(workshop: Workshop) -> None:
    workshop.go()
    workshop.text["a"] = "A"
    assert [state for _, state in workshop.go()] == ["done", "done", "done"]
    assert workshop.file("c").read_text() == "Abc"


def test_a_stage_that_fails_takes_only_what_needs_it_and_is_tried_again(workshop: Workshop) -> None:
    workshop.broken = {"b"}
    assert workshop.go() == [("a", "done"), ("b", "failed"), ("c", "left out")]
    workshop.broken = set()
    assert workshop.go() == [("a", "unchanged"), ("b", "done"), ("c", "done")]


def test_what_a_stage_only_uses_may_fail(workshop: Workshop) -> None:
    def page() -> None:
        workshop.file("page").write_text(
            "".join(workshop.file(one).read_text() for one in "ab" if workshop.file(one).exists())
        )

    def go() -> list[str]:
        report = Stage(
            "page", lambda: [], lambda: [workshop.file("page")], lambda: "", ("a",), ("b",), page, lambda: None
        )
        return [end.state for end in _through([*workshop.stages()[:2], report], Record(workshop.folder))]

    workshop.broken = {"b"}
    assert go() == ["done", "failed", "done"]
    workshop.broken = set()
    assert go() == ["unchanged", "done", "done"]
    assert workshop.file("page").read_text() == "aab"


def test_nothing_follows_a_needed_stage_that_failed(workshop: Workshop) -> None:
    workshop.broken = {"a"}
    assert workshop.go(needed=True) == [("a", "failed")]


def test_a_stage_that_leaves_nothing_has_failed(workshop: Workshop, tmp_path: Path) -> None:
    stage = Stage("idle", lambda: [], lambda: [tmp_path / "nothing.txt"], lambda: "", work=lambda: None)
    ended = _through([stage], Record(tmp_path))
    assert ended[0].state == "failed"
    assert "nothing.txt" in ended[0].reason


def test_a_record_that_cannot_be_read_is_made_anew(workshop: Workshop) -> None:
    workshop.go()
    (workshop.folder / "record.json").write_text("{half")
    assert workshop.go() == [("a", "done"), ("b", "done"), ("c", "done")]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_reads_and_its_command_lines_compose(name: str, tmp_path: Path) -> None:
    config = load([f"experiment={name}", f"base_dir={tmp_path}"])
    stages = Stages(config)
    assert stages.all()
    for words in config.evaluate.values():
        assert results_folder(tmp_path / config.name, split(words)).parent == tmp_path / config.name / "eval"


def test_words_go_where_they_belong() -> None:
    config = load(["experiment=demo_pipeline", "name=mine", "budget=5m", "eval.seeds=[0,1]", "stages=[data,pretrain]"])
    assert config.name == "mine"
    assert config.stages == ["data", "pretrain"]
    assert config.pretrain.endswith("budget=5m")
    assert "eval." not in config.pretrain
    assert all(words.endswith("'eval.seeds=[0,1]'") for words in config.evaluate.values())
    assert config.folder == "outputs/_pipelines/mine"
    assert "outputs/_pipelines/mine/modules/train.csv" in config.evaluate["modules"]


def test_a_launcher_is_for_pretraining_and_fine_tuning_alone() -> None:
    """And what a stage is known by does not change with it."""
    config = load(["experiment=demo_pipeline", "launcher=slurm partition=gpu", "hydra.launcher.timeout_min=60"])
    assert config.launcher == "slurm partition=gpu timeout_min=60"
    assert "hydra." not in config.pretrain
    more = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=60"]
    assert launched(["x/pretrain_bert.py", "a=1"], config.launcher) == ["x/pretrain_bert.py", "-m", "a=1", *more]
    assert launched(["x/pretrain_bert.py", "-m", "a=1,2"], config.launcher) == [
        "x/pretrain_bert.py",
        "-m",
        "a=1,2",
        *more,
    ]
    assert launched(["x/eval.py", "name=b"], config.launcher) == ["x/eval.py", "name=b", *more]
    assert launched(["x/report.py", "b"], config.launcher) == ["x/report.py", "b"]
    assert launched(["x/eval.py", "name=b"], "") == ["x/eval.py", "name=b"]
    alone = load(["experiment=demo_pipeline"])
    for here, there in zip(Stages(alone).all(), Stages(config).all(), strict=True):
        if here.label in ("data", "pretraining"):
            assert here.commands() == there.commands()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=demo_pipeline", "hydra.launcher.partition=gpu"], "name it with launcher="),
        (["experiment=demo_pipline"], "demo_pipeline"),
        ([], "demo_pipeline"),
        (["experiment=demo_pipeline", "stages=[pretrian]"], "pretrain"),
        (["experiment=demo_pipeline", "name=../x"], "name="),
        (["experiment=demo_pipeline", "go"], "key=value"),
        (["experiment=demo_pipeline", "module_task=many"], "module_task"),
    ],
)
def test_mistakes_are_named(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(words)


def test_all_stages_have_a_place() -> None:
    """Whoever adds a name to STAGES without a stage behind it fails here."""
    config = load(["experiment=demo_pipeline"])
    whole = len(Stages(config).all())
    for name in STAGES:
        config.stages = [one for one in STAGES if one != name]
        assert len(Stages(config).all()) < whole, name
