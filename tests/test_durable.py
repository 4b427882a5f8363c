"""Atomic replacement: killed at any of its points, a file is the old one or the new one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cramming import faults
from cramming.durable import write_atomically

CHILD = """
import sys
from pathlib import Path
from cramming.durable import write_atomically
write_atomically(Path(sys.argv[1]), b"new" * 1000)
"""


@pytest.mark.parametrize("where", ["write", "fsync", "rename"])
def test_killed_before_the_rename_leaves_the_old_file(tmp_path: Path, where: str) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        env={"PATH": "", faults.VARIABLE: f"summary-{where}:1"},
        cwd=Path(__file__).resolve().parents[1],
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]  # the half-written one was reused, not left
