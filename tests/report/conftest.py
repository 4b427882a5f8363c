"""One report of a small study, written once for all who look at it."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest
from fabricate import Written, evaluated, run, scored

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
            better = 0.05 * (6.5 - final) + 0.002 * seed
            tasks = {"cola": {"matthews_correlation": [0.30 + better, 0.32 + better]},
                     "sst2": {"accuracy": [0.84 + better, 0.85 + better]},
                     "rte": {"accuracy": [0.51 + 0.02 * seed + better / 10, 0.53 + better / 5]}}  # fmt: skip
            majority = {"cola": {"matthews_correlation": 0.0}, "sst2": {"accuracy": 0.509}, "rte": {"accuracy": 0.527}}
            scores = {"glue_sane": scored(tasks, name="glue_sane", suite="GLUE (sane)", majority=majority)}
            if final == 6.0:
                low = {"cola": {"matthews_correlation": [0.0, 0.0]}, "sst2": {"accuracy": [0.80, 0.81]}}
                scores["glue_sane-untrained"] = scored(low, name="glue_sane", suite="GLUE (sane)")
            run(base, f"run-{3 * place_of_arm + seed:02d}", final=final + 0.1 * seed + 0.001 * seed * place_of_arm,
                options={**options, "seed": seed}, scores=scores, rows=120, **more)  # fmt: skip
    run(base, "crashed", options={"seed": 3}, until=0.6, end=False)
    high = {"cola": {"matthews_correlation": [0.55, 0.57, 0.6]}, "sst2": {"accuracy": [0.92, 0.93, 0.92]}}
    evaluated(
        base / "bert-base-uncased", {"glue_sane": scored(high, name="glue_sane", suite="GLUE (sane)", average=0.8)}
    )
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
