"""The documentation names what is there: files, dependencies, commands."""

import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from cramming import cli
from cramming.architectures import BertConfig
from cramming.evaluation.composing import asked
from cramming.exchange import initializing

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
MAP = (REPOSITORY / "docs" / "architecture.md").read_text()


@pytest.fixture(autouse=True)
def checkpoints_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that begin with the weights of a checkpoint compose as where there is one of that name."""
    found = SimpleNamespace(arch=BertConfig(), seq_length=512, data=None, trained=lambda: found)
    monkeypatch.setattr(initializing, "opened", lambda *named: found)


def package(requirement: str) -> str:
    """The name in a requirement such as ``torch>=2.11,<2.14``."""
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert found is not None
    return found[0]


def test_every_dependency_has_a_reason_and_no_reason_is_left_over() -> None:
    plain = re.findall(r"^\| ([a-z0-9-]+) \| [^|]{20,} \|$", MAP, flags=re.MULTILINE)
    assert sorted(plain) == sorted(package(r) for r in PROJECT["dependencies"])
    extras = re.findall(r"^\| ([a-z0-9-]+) \| `([a-z0-9]+)` \| [^|]+ \|$", MAP, flags=re.MULTILINE)
    declared = [(package(r), extra) for extra, rs in PROJECT["optional-dependencies"].items() for r in rs]
    assert sorted(extras) == sorted(declared)


def test_every_dependency_is_bounded_on_both_sides() -> None:
    extras = [r for rs in PROJECT["optional-dependencies"].values() for r in rs]
    for requirement in [*PROJECT["dependencies"], *extras]:
        assert re.fullmatch(r"[a-z0-9-]+>=[\d.]+,<[\d.]+(; .+)?", requirement), requirement


def test_the_map_names_only_what_exists() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", MAP.split("## The map")[1].split("\n## ")[0], flags=re.MULTILINE)
    named = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert len(named) > 30
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "docs/data.md", "docs/architectures.md", "docs/methods.md"])
def test_commands_of_a_page_compose(page: str) -> None:
    text = (REPOSITORY / page).read_text().replace("\\\n", "")
    commands = re.findall(r"^python (?:pretrain_bert\.py|-m cramming\.data\.prepare) (.+)$", text, flags=re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command)
        if "experiment=study_full" in words:
            continue  # its 129 jobs compose in tests/session/test_study.py
        if "-m" in words:  # every job of a sweep composes before any would start
            cli.pretraining(lambda config: None, [word for word in words if word != "--dry"] + ["--dry"])
        else:
            cli.compose(words)


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md"])
def test_fine_tuning_of_a_page_composes(page: str) -> None:
    text = (REPOSITORY / page).read_text().replace("\\\n", "")
    commands = re.findall(r"^python eval\.py (.+)$", text, flags=re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        words = [word for word in shlex.split(command) if word != "-m"]
        asked([word.replace("study_small-*", "study_small") for word in words])


def test_options_data_md_names_exist() -> None:
    """Every ``data.x`` and ``train.x`` written with a value."""
    config = cli.compose(["data=hub", "data.dataset=a/b"])
    for group, option in re.findall(r"`(data|train)\.(\w+)=", (REPOSITORY / "docs" / "data.md").read_text()):
        known = vars(getattr(config, group)) | dict.fromkeys(("path", "document", "mix", "exhausted", "sources"))
        assert option in known, f"{group}.{option}"


def test_options_of_the_readme_compose() -> None:
    table = (REPOSITORY / "README.md").read_text().split("More to type:")[1].split("\n## ")[0]
    cells = re.findall(r"^\| .+? \| (.+) \|$", table, flags=re.MULTILINE)
    codes = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    lines = [code for code in codes if not code.startswith(("--", "-m", "python"))]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)
        has_data = any(word.startswith(("data=", "data.mix=")) for word in words)
        cli.compose(words if has_data else [*words, "data=python_docs"])


def test_the_lock_file_is_an_ordinary_one_for_this_project() -> None:
    lock = tomllib.loads((REPOSITORY / "poetry.lock").read_text())
    assert not [p["name"] for p in lock["package"] if "source" in p]
    locked = {p["name"] for p in lock["package"]}
    assert {package(r) for r in PROJECT["dependencies"]} <= locked
    assert set(lock["extras"]) == set(PROJECT["optional-dependencies"])
