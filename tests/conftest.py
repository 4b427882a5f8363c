"""What several test modules share."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from cramming.kernels import backends

REPOSITORY = Path(__file__).resolve().parents[1]
# A worker has one forkserver, which imports these once; every process that a test kills or connects is a fork of it.
multiprocessing.set_forkserver_preload(
    [
        "cramming.cli", "cramming.session", "cramming.saving.mirror", "s3fs", "torch._dynamo", "torch.distributed.fsdp",
        "cramming.parallel.ranks", "cramming.parallel.watch", "cramming.data.published", "pyarrow.ipc", "tokenizers",
        "cramming.evaluation.command", "cramming.evaluation.session", "cramming.evaluation.share",
        "transformers.models.auto.modeling_auto", "efficient_training.published_irreducible", "tests.warm",
    ]
)  # fmt: skip
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as commands do, before it imports torch
STARTING = {"parallel", "session", "evaluation", "pipeline", "exchange"}  # folders whose tests start processes
# No test may depend on elapsed time, and every run draws the same cases.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
torch.set_num_threads(1)
# Triton reads this as its functions are declared, so before any test imports it: without a GPU they are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Half as many again as there are cores: tests of killed and connected processes wait most of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + cores // 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests skip themselves where there is no GPU. Files whose tests start processes lie between the others.

    Those wait half of their time and others never, so that beside one another they use the cores; the last part of the
    suite has none of them, since one that begins last would keep the other workers waiting.
    """
    place = dict[Path, float]()
    for starting, part in ((True, 0.8), (False, 1.0)):
        kind = [item.path for item in items if bool(STARTING.intersection(item.path.parts)) is starting]
        files = list(dict.fromkeys(kind))
        place |= {file: part * number / len(files) for number, file in enumerate(files)}
    items.sort(key=lambda item: place[item.path])
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Models this small are slower on several threads, much slower where other tests want the cores too."""
    torch.set_num_threads(1)  # a run that was tested before may have set its own number


@pytest.fixture(autouse=True)
def nothing_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which backend of ``cramming.kernels`` does what is decided anew: a test may have pretended there are others."""
    monkeypatch.setattr(backends, "_decided", {})


@pytest.fixture
def shared() -> Path:
    """The folder of reference tensors and real data beside the checkout; a user's clone has none."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared (reference tensors, real data) is not here")
    return folder
