"""The shape of the source tree: imports point one way, files are small and named for what they hold, nothing unpickles.

Every law is a function from a source tree to its violations, and each is shown to find one.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LAYERS = ("rst", "cramming", "efficient_training")  # each may import itself and what stands before it ...
INDEPENDENT = {"cramming": ("rst",), "efficient_training": ("rst", "cramming"), "rst": ()}  # ... as far as named here
FOLDERS = (*LAYERS, "benchmarks", "tests", "assets")
FORBIDDEN_NAMES = ("utils.py", "common.py", "helpers.py", "misc.py")
THIN = ("pretrain_bert.py", "eval.py", "validate_bert.py", "report.py", "pipeline.py")
UNPICKLERS = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
# The one place that may name a layer above its own, and only as a string: it discovers plug-ins.
DISCOVERY = "cramming/registry.py"
# What is recorded takes plain values; it may know these and nothing else of ours.
RECORDING_MAY_IMPORT = (
    "cramming.durable",
    "cramming.errors",
    "cramming.faults",
    "cramming.suggest",
    "cramming.text",
    "cramming.recording",
)


def sources(root: Path, *folders: str) -> Iterator[Path]:
    """Python files of the project: those of the folders, or all of them and the entry points."""
    for folder in folders or FOLDERS:
        yield from sorted((root / folder).rglob("*.py"))
    if not folders:
        yield from sorted(root.glob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path, root: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, module, whether by a string) of every import, also those inside functions and type-checking blocks."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, False
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, node.module) if node.module else above)
            for alias in node.names:  # ``from cramming import engine`` imports the module cramming.engine
                yield node.lineno, f"{base}.{alias.name}", False
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value), True


def ours_above(root: Path) -> Iterator[str]:
    """Imports from a layer of something that is not below it."""
    entry_points = {path.stem for path in root.glob("*.py")}
    for layer in LAYERS:
        allowed = {layer, *INDEPENDENT[layer]}
        forbidden = ({*FOLDERS} | entry_points) - allowed
        for path in sources(root, layer):
            where = path.relative_to(root).as_posix()
            for line, module, by_string in imported(path, root):
                if module.split(".")[0] in forbidden and not (by_string and where == DISCOVERY):
                    yield f"{where}:{line} imports {module}"


def recording_knows_too_much(root: Path) -> Iterator[str]:
    """Imports in ``cramming/recording`` of the loop, the engine or anything else that is not plain values."""
    for path in sources(root, "cramming/recording"):
        for line, module, _ in imported(path, root):
            ours = module.split(".")[0] in (*LAYERS,)
            if ours and not any(module == may or module.startswith(f"{may}.") for may in RECORDING_MAY_IMPORT):
                yield f"{path.relative_to(root)}:{line} imports {module}"


def too_long(root: Path) -> Iterator[str]:
    """Files of more than 400 lines, entry points of 80 or more."""
    for path in sources(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 400 or (path.name in THIN and path.parent == root and lines >= 80):
            yield f"{path.relative_to(root)} has {lines} lines"


def named_for_nothing(root: Path) -> Iterator[str]:
    """Files whose name does not say what lives there."""
    for path in sources(root):
        if path.name in FORBIDDEN_NAMES:
            yield str(path.relative_to(root))


def undescribed(root: Path) -> Iterator[str]:
    """Modules without a docstring; an empty ``__init__.py`` needs none."""
    for path in sources(root):
        tree = parsed(path)
        if tree.body and ast.get_docstring(tree) is None:
            yield str(path.relative_to(root))


def able_to_run_foreign_code(root: Path) -> Iterator[str]:
    """Unpicklers, ``torch.load`` without ``weights_only=True``, ``numpy.load`` with ``allow_pickle``."""
    for path in sources(root):
        where = path.relative_to(root)
        for line, module, _ in imported(path, root):
            if module.split(".")[0] in UNPICKLERS:
                yield f"{where}:{line} imports {module}"
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                if ast.unparse(node.func) == "torch.load" and options.get("weights_only") is not True:
                    yield f"{where}:{node.lineno} calls torch.load without weights_only=True"
                if "allow_pickle" in options and options["allow_pickle"] is not False:
                    yield f"{where}:{node.lineno} allows pickles"


Law = Callable[[Path], Iterator[str]]
LAWS: tuple[Law, ...] = (
    ours_above,
    recording_knows_too_much,
    too_long,
    named_for_nothing,
    undescribed,
    able_to_run_foreign_code,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_tree_obeys(law: Law) -> None:
    assert len(list(sources(REPOSITORY))) > 20, "the sources are not where this test looks for them"
    assert list(law(REPOSITORY)) == []


@pytest.mark.parametrize(
    ("law", "path", "code"),
    [
        (ours_above, "rst/clock.py", "import cramming"),
        (ours_above, "rst/clock.py", "def f():\n    from efficient_training.rho import X"),
        (ours_above, "cramming/engine.py", "from efficient_training import rho"),
        (ours_above, "cramming/engine.py", "from pretrain_bert import main"),
        (ours_above, "cramming/engine.py", "import importlib\nimportlib.import_module('efficient_training.rho')"),
        (ours_above, "cramming/registry.py", "import efficient_training"),
        (ours_above, "efficient_training/rho.py", "import pretrain_bert"),
        (ours_above, "efficient_training/rho.py", "from tests import conftest"),
        (recording_knows_too_much, "cramming/recording/panel.py", "from cramming import engine"),
        (recording_knows_too_much, "cramming/recording/panel.py", "from ..engine import Engine"),
        (recording_knows_too_much, "cramming/recording/panel.py", "from rst.clock import Clock"),
        (too_long, "tests/test_x.py", "x = 1\n" * 401),
        (too_long, "pretrain_bert.py", "x = 1\n" * 80),
        (named_for_nothing, "cramming/data/utils.py", ""),
        (undescribed, "cramming/data/masking.py", "x = 1"),
        (able_to_run_foreign_code, "cramming/data/x.py", "def f():\n    import pickle"),
        (able_to_run_foreign_code, "cramming/data/x.py", "from joblib import load"),
        (able_to_run_foreign_code, "cramming/data/x.py", "import torch\ntorch.load('x')"),
        (able_to_run_foreign_code, "cramming/data/x.py", "import torch\ntorch.load('x', weights_only=False)"),
        (able_to_run_foreign_code, "cramming/data/x.py", "import numpy\nnumpy.load('x', allow_pickle=True)"),
    ],
)
def test_each_law_finds_a_violation(tmp_path: Path, law: Law, path: str, code: str) -> None:
    (tmp_path / "pretrain_bert.py").write_text('"""Entry point."""\n')
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(code)
    (violation,) = law(tmp_path)
    assert path in violation


def test_what_is_allowed_is_not_called_a_violation(tmp_path: Path) -> None:
    allowed = {
        "rst/clock.py": '"""A."""\nimport json\nfrom rst.work import Work\nfrom .work import Work\n',
        "cramming/engine.py": '"""B."""\nimport torch\nimport rst\nfrom .batch import Batch\n',
        "cramming/registry.py": '"""C."""\nimport importlib\nimportlib.import_module("efficient_training")\n',
        "cramming/recording/panel.py": '"""D."""\nfrom cramming.recording import pace\nfrom cramming.errors import E\n',
        "efficient_training/rho.py": '"""E."""\nimport cramming.method, torch\ntorch.load("x", weights_only=True)\n',
        "efficient_training/__init__.py": "",
        "pretrain_bert.py": '"""F."""\nimport cramming\nimport efficient_training\n',
    }
    for path, code in allowed.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code)
    assert [violation for law in LAWS for violation in law(tmp_path)] == []
