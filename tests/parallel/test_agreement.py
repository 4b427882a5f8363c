"""Ranks with other options, code or data are refused before any step, with what differs first."""

import re
import shutil
from pathlib import Path

import pytest

from cramming.cli import compose
from cramming.parallel import agreement
from tests.parallel import meeting_ranks as ranks

ROOT = Path(__file__).resolve().parents[2]


def test_another_option_is_named_with_both_ranks(tmp_path: Path) -> None:
    ended = ranks.start(tmp_path, ranks.differs)
    assert [one.code for one in ended] == [2, 2]
    said = "".join(one.complained for one in ended)
    assert re.fullmatch(
        r"error: ranks differ in seed: it is 0 on rank 0 \(process \d+ on \S+\) and 1 on rank 1 \(process \d+ on \S+\)"
        r"; give all the same command, code and versions of libraries\n",
        said,
    )


def test_other_data_is_named_with_both_ranks(tmp_path: Path) -> None:
    ended = ranks.start(tmp_path, ranks.finds_other_data)
    assert [one.code for one in ended] == [2, 2]
    said = "".join(one.complained for one in ended)
    assert said.startswith("error: ranks differ in data: it is fingerprint 0 on rank 0")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("seed=1", "seed"),
        ("train.batch_size=16", "train.batch_size"),
        ("name=other", "name"),
        ("resume=false", "resume"),
        ("stop_at=3", "stop_at"),
        ("impl.save_every_steps=7", "impl.save_every_steps"),
        ("impl.validate_sequences=7", "impl.validate_sequences"),
        ("method=layer_stacking", "method.layer_stacking"),
    ],
)
def test_options_by_which_ranks_would_part_are_found(option: str, key: str) -> None:
    common = ["arch=bert_tiny", "data=python_docs", "rst=steps", "budget=9"]
    ours, theirs = (agreement.statement(compose([*common, *more]), "cpu") for more in ([], [option]))
    found = agreement.first_difference(ours, theirs)
    assert found is not None
    assert found[0] == key


def test_places_and_threads_may_differ_between_machines() -> None:
    common = ["arch=bert_tiny", "data=local", "data.path=/a", "rst=steps", "budget=9"]
    other = ["base_dir=/there", "data.path=/b", "impl.threads=3", "impl.tensorboard=true"]
    ours, theirs = (agreement.statement(compose([*common, *more]), "cpu") for more in ([], other))
    assert agreement.first_difference(ours, theirs) is None


def test_another_device_or_library_is_found() -> None:
    config = compose(["arch=bert_tiny", "data=python_docs", "rst=steps", "budget=9"])
    ours = agreement.statement(config, "cpu")
    assert agreement.first_difference(ours, agreement.statement(config, "cuda")) == ("device", "cpu", "cuda")
    assert agreement.first_difference(ours, ours | {"torch": "0"}) == ("torch", ours["torch"], "0")


def test_a_changed_or_missing_file_of_the_code_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "rst", tmp_path / "rst")
    whole = agreement.code(tmp_path)
    assert whole
    assert all(file.startswith("rst/") and file.endswith(".py") for file in whole)
    (tmp_path / "rst" / "clock.py").write_text("# changed\n")
    found = agreement.first_difference(whole, agreement.code(tmp_path))
    assert found is not None
    assert found[0] == "rst/clock.py"
    (tmp_path / "rst" / "clock.py").unlink()
    assert agreement.first_difference(whole, agreement.code(tmp_path)) == (
        "rst/clock.py", whole["rst/clock.py"], "absent",
    )  # fmt: skip
