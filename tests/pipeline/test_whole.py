"""A pipeline from its text to its zip, killed on the way and called again."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "experiment=demo_pipeline", "name=p", "module_task=20", "pretrain=experiment=test budget=4",
    "eval.min_steps=0", "eval.max_steps=2",
)  # fmt: skip


def start(base_dir: Path) -> "subprocess.Popen[str]":
    line = [sys.executable, str(ROOT / "pipeline.py"), *WORDS, f"base_dir={base_dir}"]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=base_dir
    )


@pytest.mark.full
def test_a_killed_pipeline_goes_on_and_a_finished_one_does_nothing(tmp_path: Path) -> None:
    record = tmp_path / "_pipelines/p/record.json"
    for stage in (2, 5):  # killed as soon as it begins
        process = start(tmp_path)
        assert process.stdout is not None
        assert any(line.startswith(f"{stage} of ") for line in process.stdout)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert said.count(": unchanged") >= 3
    with zipfile.ZipFile(next((tmp_path / "_pipelines/p").glob("*.zip"))) as made:
        assert len([name for name in made.namelist() if name.endswith(".tsv")]) == 11
    assert (tmp_path / "_pipelines/p/report.html").stat().st_size > 10_000
    process = start(tmp_path)
    said, _ = process.communicate()
    assert process.returncode == 0
    assert said.count(": unchanged") == len(json.loads(record.read_text()))
