"""The page for people coming from earlier systems: complete, in agreement with the code, and right where it says so."""

import re
import shlex
from pathlib import Path

import pytest

from cramming import cli, migration
from cramming.composition import dotted_keys
from cramming.evaluation.composing import asked
from cramming.migration import OPTIONS, REPLACEMENTS, evaluation, replacement

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "migrating.md").read_text()
COMMANDS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("## Commands")[1].split("\n## ")[0].splitlines()
    if re.match(r"\| \d+ \|", line)
]
WORKING = {int(row[0]): row[3] for row in COMMANDS if row[4] == "works"}
ENTRY, FINE_TUNING = "python pretrain_bert.py ", "python eval.py "


def tables(section: str) -> dict[str, str]:
    """The two-column tables of a section of the page, as one dictionary."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.+?) \|$", text, flags=re.MULTILINE))


def commands(cell: str, entry: str = ENTRY) -> list[str]:
    """The commands of a table cell, those for pretraining by default."""
    return [code for code in re.findall(r"`([^`]+)`", cell) if code.startswith(entry)]


def known_keys() -> set[str]:
    """Every option of the tree with the sources, optimizers and schedules there are."""
    cli.load_schemas()
    found: set[str] = set()
    for overrides in (
        ["data=local", "arch=bert_base"],
        ["data=mds", "data.remote=shards", "arch=bert_base"],
        ["data=hub", "data.dataset=owner/name", "arch=bert_base"],
        ["data=python_docs", "train/schedule=linear", "train/optim=sgd"],
        ["data=python_docs", "arch=m2", "train/optim=sophiag"],
        ["data=python_docs", "method=[layer_stacking,layer_dropping,selective_backprop]"],
        ["data=python_docs", "method=rho_loss"],
    ):
        found |= set(dotted_keys(cli.compose_tree(overrides)))
    return found


def test_all_39_rows_are_there_once_and_in_order() -> None:
    assert [int(row[0]) for row in COMMANDS] == list(range(1, 40))
    assert {row[4] for row in COMMANDS} <= {"works", "not yet"}
    assert {1, 2, 13, 14, 15, 16, 20, 21, 26, 28, 29, 34, 39} <= set(WORKING)


def test_the_tables_are_the_ones_the_command_line_uses() -> None:
    assert tables("Keys") == REPLACEMENTS
    assert tables("Options") == OPTIONS
    assert tables("Keys of fine-tuning") == evaluation.KEYS
    page = PAGE.split("\n## Keys of fine-tuning\n")[1].split("\n## ")[0]
    assert dict(re.findall(r"`eval=(\w+)` \(`(\w+)`\)", page)) == evaluation.SUITES


@pytest.mark.parametrize("row", [number for number, cell in WORKING.items() if commands(cell)])
def test_commands_that_are_said_to_work_compose(row: int) -> None:
    for command in commands(WORKING[row]):
        words = [word for word in shlex.split(command.removeprefix(ENTRY)) if word != "-m"]
        config = cli.compose([word.replace("seed=0,1,2", "seed=1") for word in words])
        assert config.name == "x"


@pytest.mark.parametrize("row", [number for number, cell in WORKING.items() if commands(cell, FINE_TUNING)])
def test_fine_tuning_that_is_said_to_work_composes(row: int) -> None:
    for command in commands(WORKING[row], FINE_TUNING):
        config = asked(shlex.split(command.removeprefix(FINE_TUNING))).config
        assert "x" in (config.name, (config.checkpoint or "").partition("@")[0]) or config.name == "m2_80m"


def test_no_listed_key_hides_one_of_ours() -> None:
    assert not known_keys() & set(REPLACEMENTS)


def test_options_named_as_replacements_exist() -> None:
    known = known_keys()
    top = {key.split(".")[0] for key in known}
    planned = re.compile(r"\(not yet\)|^nothing|<")
    for old, new in REPLACEMENTS.items():
        if planned.search(new):
            continue
        for key in re.findall(r"(?<![\w/.-])([a-z_]+(?:\.[a-z_]+)+)(?![\w/])", new):
            if key.split(".")[0] in top:
                assert key in known, (old, new)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("impl.validate_every_hours", "impl.validate_every_h"),
        ("train.objective.mlm_probability", "train.mask_rate"),
        ("+train.scheduler", "train/schedule"),
        ("--total_training_time", "budget"),
        ("train/optim_mod", migration.CRAMMING["train.optim_mod"]),
        ("train.stacking.enabled", migration.CRAMMING["train.stacking"]),
        ("train.stacking.step_fractions", "method.layer_stacking.at"),
        ("train.validation_set.fraction", "data.heldout_fraction"),
        ("train.validation_set.seed", migration.CRAMMING["train.validation_set"]),
        ("train/optim=adam_classic", "train/optim=adam"),
        ("train.sbx", None),
        ("train.mask_rat", None),
        ("arch=crammed", None),
    ],
)
def test_a_key_finds_its_longest_listed_prefix(typed: str, expected: str | None) -> None:
    assert replacement(typed) == expected


def test_no_system_s_table_overrides_another_s() -> None:
    parts = (migration.CRAMMING, migration.MOSAIC, migration.EXTREME)
    assert sum(map(len, parts)) == len(REPLACEMENTS)
