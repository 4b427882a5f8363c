"""curves.png: drawn from whatever the metrics hold, with the curves that belong there."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from cramming.recording.plot import plot_curves


def rows(n: int, total: float, **columns: list[float]) -> list[dict[str, Any]]:
    made = [
        {"step": i, "spent_s": total * (i + 1) / n, "loss": 4 + 5 * math.exp(-8 * i / n), "lr": 1e-3} for i in range(n)
    ]
    for key, values in columns.items():
        for row, value in zip(made, values, strict=False):
            row[key] = value
    return made


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that gets saved."""
    saved = []
    really = Figure.savefig

    def save(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        really(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def labels(figure: Figure) -> list[str]:
    return [axes.get_ylabel() for axes in figure.axes]


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_any_number_of_rows_makes_a_png(tmp_path: Path, figures: list[Figure], count: int) -> None:
    plot_curves(rows(count, 600.0), tmp_path / "curves.png", "first")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    notes = [text.get_text() for text in figures[0].axes[0].texts]
    assert notes == ([] if count else ["no losses were logged"])


@pytest.mark.parametrize(
    ("total", "unit", "label"),
    [(50.0, "s", "seconds"), (600.0, "s", "minutes"), (86_400.0, "s", "hours"), (86_400.0, "steps", "steps")],
)
def test_the_budget_axis_has_a_unit_that_fits(
    tmp_path: Path, figures: list[Figure], total: float, unit: Any, label: str
) -> None:
    plot_curves(rows(30, total), tmp_path / "curves.png", "first", unit)
    assert figures[0].axes[-1].get_xlabel() == f"budget spent ({label})"
    last_x = figures[0].axes[0].lines[-1].get_xdata()[-1]  # type: ignore[index]
    assert last_x == pytest.approx({"seconds": 50, "minutes": 10, "hours": 24, "steps": 86_400}[label])


def test_what_a_method_changes_is_drawn_and_what_stays_is_not(tmp_path: Path, figures: list[Figure]) -> None:
    changing, constant = [float(i) for i in range(30)], [12.0] * 30
    plot_curves(rows(30, 600.0, layers=changing, kept_share=constant), tmp_path / "a.png", "stacking")
    plot_curves(rows(30, 600.0, layers=constant, kept_share=changing), tmp_path / "b.png", "selective $backprop")
    assert labels(figures[0])[1:] == ["learning rate", "layers"]
    assert labels(figures[1])[1:] == ["learning rate", "share kept"]
    assert list(figures[0].axes[2].lines[0].get_ydata()) == changing  # type: ignore[arg-type]


def test_missing_and_infinite_values_are_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    made = rows(10, 600.0)
    made[3]["loss"] = None
    made[4]["loss"] = math.nan
    made[5]["spent_s"] = None
    made[6] = {"step": 6, "validation_loss": 5.0, "spent_s": 420.0}
    plot_curves(made, tmp_path / "curves.png", "first")
    training, validation = figures[0].axes[0].lines
    assert np.asarray(training.get_xdata()) == pytest.approx([1, 2, 3, 8, 9, 10])
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([7.0], [5.0])  # type: ignore[arg-type]


def test_one_spike_does_not_flatten_the_curve(tmp_path: Path, figures: list[Figure]) -> None:
    made = rows(1000, 600.0)
    made[600]["loss"] = 40.0
    plot_curves(made, tmp_path / "curves.png", "first")
    assert figures[0].axes[0].get_ylim()[1] < 10


def test_no_window_system_and_no_global_state_are_touched(tmp_path: Path) -> None:
    plot_curves(rows(3, 10.0), tmp_path / "curves.png", "first")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
