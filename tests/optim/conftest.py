"""Optimizers are tested on the whole runs in memory of the core's tests; a second thread only gets in their way."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

for folder in ("core", "methods"):
    sys.path.append(str(Path(__file__).resolve().parents[1] / folder))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
