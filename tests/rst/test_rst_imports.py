"""``rst`` stands alone: it knows no model, no configuration and not even torch."""

import subprocess
import sys
from pathlib import Path

import rst

FORBIDDEN = ("torch", "numpy", "cramming", "efficient_training", "hydra", "omegaconf")


def test_importing_rst_imports_nothing_of_the_project_and_no_dependency() -> None:
    program = f"import sys, rst; print([name for name in {FORBIDDEN!r} if name in sys.modules])"
    root = Path(rst.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
