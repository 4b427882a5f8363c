"""Folders as the report reads them: finished, unfinished, or damaged and named."""

import json
from pathlib import Path

import pytest
from fabricate import evaluated, run, scored

from cramming.errors import UserError
from cramming.report.part import rows_of
from cramming.report.runs import DamagedRunError, read, read_all


def names(found: object) -> list[str]:
    return [r.name for r in found.runs]  # type: ignore[attr-defined]


def test_a_finished_run(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", final=6.0, options={"seed": 7}, ledger={"train": 90.0, "selection": 10.0})
    found, problems = read(folder)
    assert problems == []
    assert (found.name, found.seed, found.unit, found.budget_s, found.spent_s) == ("a", 7, "s", 100.0, 100.0)
    assert found.unfinished is None
    assert found.ledger == {"train": 90.0, "selection": 10.0}
    assert found.summary["validation_loss"] == pytest.approx(6.0)


def test_a_run_that_goes_on_or_was_killed_is_unfinished(tmp_path: Path) -> None:
    found, _ = read(run(tmp_path, "a", until=0.5, end=False))
    assert found.unfinished is not None
    assert "50%" in found.unfinished
    assert found.spent_s == 50.0


def test_an_early_stop_is_unfinished_with_its_reason(tmp_path: Path) -> None:
    found, _ = read(run(tmp_path, "a", until=0.5, summary={"end_reason": "early stop: loss 9 above 8"}))
    assert found.unfinished == "it ended at 50% of its budget: early stop: loss 9 above 8"


def test_a_run_that_reached_the_end_it_was_asked_for_is_finished(tmp_path: Path) -> None:
    found, _ = read(run(tmp_path, "a", until=0.5, summary={"end_reason": "stop_at=50s reached"}))
    assert found.unfinished is None
    assert found.stop_at == "stop_at=50s"


def test_a_run_that_goes_on_beyond_its_summary_is_unfinished(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", until=0.5, summary={"end_reason": "stop_at=50s reached"})
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**last, "step": last["step"] + 10, "spent_s": 52.5, "progress": 0.525}) + "\n")
    found, _ = read(folder)
    assert found.unfinished is not None
    assert "beyond an earlier end" in found.unfinished


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("config.yaml", None, "has no config.yaml"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "- 1\n", "not as a run writes it"),
        ("config.yaml", "seed: 0\n", "has no arch"),
        ("config.yaml", "arch: {}\ndata: {}\ntrain: {}\nimpl: {}\nrst: {}\n", "not as a run writes it"),
        ("metrics.jsonl", None, "has no metrics.jsonl"),
        ("metrics.jsonl", '{"step": 1}\nnonsense\n{"step": 2}\n', "1 line that cannot be read"),
        ("metrics.jsonl", '{"step": 1, "spent_s": 1}\n', "ends at step 1, summary.json at step 400"),
        ("metrics.jsonl", "", "ends at step 0"),
        ("summary.json", '{"steps": 3', "summary.json cannot be read"),
        ("summary.json", "[]", "not an object"),
        ("summary.json", '{"steps": 400, "budget_s": null, "spent_s": 1}', "budget_s=None"),
        ("summary.json", '{"steps": 400, "budget_s": 100, "spent_s": 100}', "has no ledger"),
        ("summary.json", '{"steps": 400, "budget_s": 100, "spent_s": 100, "ledger": {"train": "x"}}', "has no ledger"),
    ],
)
def test_damage_is_named(tmp_path: Path, file: str, text: str | None, reason: str) -> None:
    folder = run(tmp_path, "a")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(DamagedRunError, match=reason):
        read(folder)


def test_the_rest_is_read_beside_a_damaged_run(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run(tmp_path, name)
    (tmp_path / "b" / "summary.json").write_text("{")
    found = read_all([str(tmp_path / "*")])
    assert names(found) == ["a", "c"]
    ((folder, reason),) = found.damaged
    assert folder.name == "b"
    assert "summary.json" in reason


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('{"average": 0.5}', "not an object with tasks"),
        ("[]", "not an object with tasks"),
        ("{", "cannot be used"),
        ('{"tasks": {"a": {"x": {"mean": "high", "seeds": []}}}}', "'high' is no score"),
        ('{"tasks": {"a": {"x": {"seeds": [0.5]}}}}', "it has no 'mean'"),
        ('{"tasks": {}, "average": true}', "True is no score"),
    ],
)
def test_damaged_scores_are_named_and_the_run_is_kept(tmp_path: Path, document: str, said: str) -> None:
    folder = run(tmp_path, "a", scores={"glue": scored({"cola": {"f1": [0.7]}})})
    (folder / "eval" / "other").mkdir()
    (folder / "eval" / "other" / "results.json").write_text(document)
    found = read_all([str(folder)])
    assert [s.suite for s in found.runs[0].scores] == ["glue"]
    assert "eval/other/results.json" in found.damaged[0][1]
    assert said in found.damaged[0][1]


def test_scores_in_percent_with_their_seeds_and_variant(tmp_path: Path) -> None:
    document = scored({"cola": {"mcc": [0.5, 0.25], "accuracy": [0.75, 0.5]}}, name="sane", suite="GLUE (sane)")
    document["tasks"]["cola"]["mcc"]["seeds"] = [0.5, None]
    document["details"]["cola"] |= {"seeds": [3, 7], "baselines": {"majority": {"mcc": None, "accuracy": 0.69}}}
    folder = run(tmp_path, "a", scores={"sane": document, "sane@12h": document, "sane-untrained": document})
    first, second, third = read_all([str(folder)]).runs[0].scores
    assert [s.variant for s in (first, second, third)] == ["", "untrained", "@12h"]
    assert {s.key for s in (first, second, third)} == {"sane/mean of tasks"}
    assert first.tasks["cola"]["mcc"].by_seed == {3: 50.0, 7: 0.0}
    assert first.tasks["cola"]["accuracy"].value == pytest.approx(62.5)
    assert first.headlines == {"cola": "mcc"}
    assert first.baselines["cola"]["majority"] == {"mcc": 0.0, "accuracy": 69.0}
    assert first.average is not None
    assert first.average.by_seed == {3: 50.0, 7: 25.0}


def test_a_folder_with_nothing_but_scores_is_a_checkpoint(tmp_path: Path) -> None:
    evaluated(tmp_path / "bert", {"glue": scored({"cola": {"mcc": [0.5]}})})
    run(tmp_path, "a")
    found = read_all([str(tmp_path / "*")])
    assert names(found) == ["a"]
    assert [c.name for c in found.checkpoints] == ["bert"]
    assert found.damaged == []
    (tmp_path / "bert" / "config.yaml").write_text("imported: true\n")  # an imported checkpoint's
    assert [c.name for c in read_all([str(tmp_path / "*")]).checkpoints] == ["bert"]
    (tmp_path / "bert" / "eval" / "glue" / "results.json").write_text("{")
    assert read_all([str(tmp_path / "*")]).checkpoints == []
    assert len(read_all([str(tmp_path / "*")]).damaged) == 1


def test_globs_folders_and_what_lies_beside_runs(tmp_path: Path) -> None:
    run(tmp_path, "a")
    run(tmp_path, "b")
    (tmp_path / "_data").mkdir()
    (tmp_path / "report.html").write_text("")
    found = read_all([str(tmp_path / "*"), str(tmp_path / "a"), f"{tmp_path}/b/"])
    assert names(found) == ["a", "b"]
    assert found.damaged == []


def test_a_folder_of_runs_is_no_run_and_the_way_out_is_named(tmp_path: Path) -> None:
    run(tmp_path / "outputs", "a")
    (_, reason), *_ = read_all([str(tmp_path / "outputs")]).damaged
    assert "outputs/*" in reason


def test_words_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, said in (
        ([str(tmp_path / "none-*")], "names no folder"),
        ([], "name the runs"),
        ([str(tmp_path / "file")], "no run's folder"),
    ):
        with pytest.raises(UserError, match=said):
            read_all(words)


def test_no_file_of_a_run_is_touched(tmp_path: Path) -> None:
    folder = run(tmp_path, "a")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    read(folder)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before


def test_depth_that_is_drawn_by_chance_is_what_sequences_went_through(tmp_path: Path) -> None:
    plain, _ = read(run(tmp_path, "plain"))
    drawn, _ = read(run(tmp_path, "drawn", columns={"mean_layers": lambda p: 2 - p}))
    assert {row["layers"] for row in rows_of(plain, "layers")} == {2}
    assert [row["layers"] for row in rows_of(drawn, "layers")] == [2 - row["progress"] for row in drawn.rows]
    assert rows_of(drawn, "lr") is drawn.rows
