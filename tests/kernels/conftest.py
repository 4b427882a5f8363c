"""A package of two small sources, a compiler that is none, and a GPU that is none."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cramming.kernels import cuda, sources, toolchain
from tests.kernels.fake_compiler import fake_nvcc, look_again


@pytest.fixture
def csrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two small sources in place of ours, and nowhere else that a library or a compiler could be found."""
    folder = tmp_path / "package" / "csrc"
    folder.mkdir(parents=True)
    (folder / "one.cu").write_text("one")
    (folder / "one_bindings.cpp").write_text("binding")
    (folder / "device.h").write_text("header")
    monkeypatch.setattr(sources, "CSRC", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    found = toolchain.candidates
    monkeypatch.setattr(toolchain, "candidates", lambda: (path for path in found() if tmp_path in path.parents))
    look_again()
    yield folder
    look_again()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, csrc: Path) -> Path:
    """A fake nvcc on PATH; the file of its calls, words with tabs between."""
    return fake_nvcc(tmp_path, monkeypatch)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Let there be a GPU that nothing but a library is missing for: call it with its compute capability."""
    monkeypatch.setattr(cuda, "_unfit", lambda device: None)

    def capability(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (major, minor))

    return capability
