"""One report of a small study, written once for all who look at it."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest
from fabricate import Written, run

from cramming.report import part
from cramming.report.command import command


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A report of four arms with three seeds each, one of them with a long name, and of a run that is apart."""
    place = tmp_path_factory.mktemp("report")
    base = place / "outputs"
    many = {"layer_dropping": {}, "selective_backprop": {"beta": 2.0}, "weight_averaging": {}, "length_warmup": {}}
    arms: list[tuple[float, dict[str, Any], dict[str, Any]]] = [
        (6.0, {}, {}),
        (5.9, {"method": {"layer_stacking": {}}}, {"columns": {"layers": lambda p: 1 if p < 0.4 else 2}}),
        (6.1, {"method": many}, {"ledger": {"train": 60.0, "selection": 40.0},
                                 "columns": {"kept_share": lambda p: 0.5 - 0.2 * p}}),
        (6.2, {"method": {"rho_loss": {}}}, {"ledger": {"train": 45.0, "selection": 55.0, "irreducible": 30.0},
                                             "summary": {"free": ["irreducible"]},
                                             "columns": {"kept_share": lambda p: 0.1}}),
    ]  # fmt: skip
    for place_of_arm, (final, options, more) in enumerate(arms):
        for seed in range(3):
            scores = {"glue": {"suite": "glue", "rule": "mean of tasks", "average": 90 - 2 * final + 0.1 * seed,
                               "tasks": {"CoLA": {"matthews": 50 - final + 0.2 * seed}}}}  # fmt: skip
            run(base, f"run-{3 * place_of_arm + seed:02d}", final=final + 0.1 * seed + 0.001 * seed * place_of_arm,
                options={**options, "seed": seed}, scores=scores, rows=120, **more)  # fmt: skip
    run(base, "crashed", options={"seed": 3}, until=0.6, end=False)
    run(base, "apart", options={"impl.precision": "bfloat16"}, rows=20)
    printed = StringIO()
    with redirect_stdout(printed):
        command([f"{base}/*", f"out={place / 'page.html'}", "title=A small study"])
    return Written(place / "page.html", printed.getvalue())


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leaves out most figures, for tests that look at other things."""

    def leave_out() -> None:
        monkeypatch.setattr(part.Part, "_losses", lambda self: [])
        monkeypatch.setattr(part.Part, "_accounts", lambda self: None)

    return leave_out
