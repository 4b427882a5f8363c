"""What lies in the GPU report's folder: taken as it is, or refused in a line."""

import sys
from pathlib import Path

import pytest

from benchmarks.gpu_report import Options
from benchmarks.stages import PASSED, Stage, run
from cramming.errors import UserError

WRITES = "import sys; open(next(w for w in sys.argv if w.startswith('out='))[4:], 'w').write('{}')"
WORKS = Stage("works", (sys.executable, "-c", WRITES), 1.0, 60.0)


def test_what_passed_stays_where_there_is_no_time_to_run_it_again(tmp_path: Path) -> None:
    (before,) = run([WORKS], tmp_path, budget_s=1e5, tell=lambda line: None).values()
    (after,) = run([WORKS], tmp_path, budget_s=0.0, again=True, tell=lambda line: None).values()
    assert (before.state, after) == (PASSED, before)
    assert WORKS.out(tmp_path).is_file()


@pytest.mark.parametrize("damaged", ['{"works": {"st', '{"works": {"colour": "red"}}', "[]"])
def test_a_damaged_list_of_stages_is_named(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "stages.json").write_text(damaged)
    with pytest.raises(UserError, match=r"stages\.json cannot be used .*; delete it, and all stages run again"):
        run([WORKS], tmp_path, budget_s=1e5, tell=lambda line: None)


def test_places_that_cannot_be_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"folder=.*file is a file; name a folder"):
        Options(folder=str(tmp_path / "file"))
    for archive in (tmp_path, tmp_path / "report.zip"):
        with pytest.raises(UserError, match=r"archive=.* must be a file named \.tar\.gz"):
            Options(archive=str(archive))
