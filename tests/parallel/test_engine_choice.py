"""Which engine several ranks have where nobody says it, and what is refused before any work."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from memory import small_model

from cramming import registry, resolve
from cramming.config import ImplConfig, PretrainConfig, TrainConfig
from cramming.errors import UserError
from cramming.parallel import choosing
from cramming.resolve import Resolved
from tests.parallel.test_engines import OTHERS, SHARDS

GPU = torch.device("cuda")


def config(optimizer: str, **options: Any) -> PretrainConfig:
    """A run's, of the options that matter here."""
    made = registry.lookup("train/optim", optimizer)(**options)
    return PretrainConfig(train=TrainConfig(optim=made), impl=ImplConfig(parallel="fsdp"))


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one of two."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 1.6 GB, of which 80 million parameters fill 80 %."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1_600_000_000))


@pytest.mark.usefixtures("two_ranks")
def test_optimizers_that_need_whole_tensors_are_refused_in_a_line() -> None:
    registry.load_plugins()
    known = {kind for kind in registry.kinds("train/optim") if kind != "library"}
    for kind in sorted(known):
        made = config(kind)
        if kind in SHARDS or kind in OTHERS:
            choosing.refuse(made)
            continue
        if made.train.optim.__class__.__module__.startswith("cramming."):
            with pytest.raises(UserError, match=r"impl\.parallel=ddp") as error:
                choosing.refuse(made)
            assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"impl\.parallel=ddp"):
        choosing.refuse(config("library", name="adabelief"))
    with pytest.raises(UserError, match=r"impl\.parallel=ddp"):
        choosing.refuse(config("sam", inner="shampoo"))


def test_one_process_may_be_asked_for_anything() -> None:
    choosing.refuse(config("shampoo"))


@pytest.mark.usefixtures("small_gpu")
def test_what_does_not_fit_a_gpu_is_spread(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choosing.choose(config("adamw"), 80_000_000, GPU) == "ddp"
        assert choosing.choose(config("adamw"), 10**12, torch.device("cpu")) == "ddp"
        assert not caplog.messages
        assert choosing.choose(config("adamw"), 80_000_001, GPU) == "fsdp"
        assert caplog.messages == ["80,000,001 parameters need 1 GiB while they are trained: ranks share them "
                                   "(impl.parallel=fsdp)"]  # fmt: skip
        assert choosing.choose(config("shampoo"), 80_000_001, GPU) == "ddp"


def test_what_was_chosen_stays_with_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Resolved("cpu", "float32", 1, False, 4, ranks=2, parallel="fsdp")
    assert resolve.resolve(ImplConfig(), stored).parallel == "none"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert resolve.resolve(ImplConfig(), stored).parallel == "fsdp"
    assert resolve.resolve(ImplConfig(), None).parallel == "auto"
    assert resolve.resolve(ImplConfig(parallel="ddp"), stored).parallel == "ddp"


def test_ranks_have_no_graphs() -> None:
    from cramming import compiling

    model: Any = small_model().to("meta")
    for parameter in model.parameters():
        assert parameter.device.type == "meta"
    said = compiling.lacking(_OnGpu(model), "bfloat16", True, "ddp")  # type: ignore[arg-type]
    assert said == "ranks exchange gradients in the middle of the way back"


class _OnGpu:
    """A model whose parameters say that they are on a GPU."""

    gradient_checkpointing = False

    def __init__(self, model: Any) -> None:
        self._model = model

    def parameters(self) -> Any:
        """One is asked."""
        return iter([SimpleNamespace(device=GPU)])
