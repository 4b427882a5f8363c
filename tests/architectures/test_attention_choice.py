"""Which form of attention is taken where, and what is refused."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming import resolve
from cramming.architectures.layers import attention_forms
from cramming.architectures.layers.attention_forms import Asked, chosen, lacking
from cramming.build import Parts
from cramming.cli import compose
from cramming.config import ATTENTION, ImplConfig
from cramming.differentiation import differentiating_twice
from cramming.errors import UserError
from cramming.session import pretrain

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def choice(
    form: str = "auto",
    *,
    device: torch.device = GPU,
    dtype: torch.dtype = torch.bfloat16,
    length: int = 512,
    unpadded: bool = True,
    by_ends: bool = True,
    **asked: Any,
) -> str:
    """The form that is taken, by default for a padded batch on a GPU."""
    need = Asked(**{"width": 64, **asked})
    return chosen(form, need, device, dtype, length, unpadded=unpadded, by_ends=by_ends)


@pytest.fixture(params=["torch and package", "torch", "package", "neither"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU, and some of the kernels."""
    known = {"varlen": "torch" in request.param, "flash_attn": "package" in request.param, "flex": True}
    monkeypatch.setattr(
        attention_forms, "machine_lacks", lambda form, device: None if device == "cuda" and known[form] else "missing"
    )
    return str(request.param)


def test_auto_is_decided_in_one_place(installed: str) -> None:
    rows = {"package": "flash_attn", "neither": "sdpa"}.get(installed, "varlen")
    package = "flash_attn" if "package" in installed else "sdpa"
    assert choice() == rows
    assert choice(dtype=torch.float16) == rows
    assert choice(unpadded=False) == "sdpa"
    assert choice(unpadded=False, window=64) == rows
    assert choice(unpadded=False, window=511) == "sdpa", "the window is wider than the sequence"
    assert choice(dtype=torch.float32) == "sdpa"
    assert choice(width=12) == choice(width=264) == "sdpa"
    assert choice(by_ends=False) == "sdpa"
    assert choice(alibi=True) == choice(dropout=0.1) == package
    with differentiating_twice():
        assert choice() == choice("varlen") == choice("flex") == "sdpa"
    assert choice(device=CPU, length=100) == "math"
    assert choice(device=CPU) == "blocks"
    assert choice(device=CPU, dtype=torch.float32) == "sdpa"


def test_what_was_asked_for_is_taken_where_it_can_be(installed: str) -> None:
    for form in ATTENTION[1:]:
        assert choice(form) == choice(form, unpadded=False) == form
    assert choice("varlen", by_ends=False) == choice("flash_attn", by_ends=False) == "sdpa"
    assert choice("flex", by_ends=False) == choice("flex", dtype=torch.float32) == "flex"
    assert choice("varlen", dtype=torch.float32) == choice("varlen", alibi=True) == "sdpa"
    assert choice("varlen", dropout=0.1) == "sdpa"
    assert choice("flex", dropout=0.1) == "sdpa"
    assert choice("flash_attn", dropout=0.1, alibi=True, window=3) == "flash_attn"


def test_what_is_lacking_is_said(installed: str) -> None:
    low = torch.bfloat16
    plain, biased, dropping = Asked(64), Asked(64, alibi=True), Asked(64, dropout=0.1)
    for form in ("auto", "math", "sdpa"):
        for device, need in ((CPU, plain), (GPU, biased), (CPU, dropping)):
            assert lacking(form, need, device, torch.float32) is None
    assert lacking("varlen", plain, GPU, low) == (None if "torch" in installed else "missing")
    assert lacking("flash_attn", dropping, GPU, low) == (None if "package" in installed else "missing")
    assert lacking("flex", biased, GPU, torch.float32) is None
    assert lacking("flex", plain, CPU, low) == "missing"
    if installed == "torch and package":
        assert "ALiBi" in str(lacking("varlen", biased, GPU, low))
        assert "16 bits, not in float32" in str(lacking("flash_attn", plain, GPU, torch.float32))
        assert "multiple of 8 wide, at most 256, and are 12" in str(lacking("varlen", Asked(12), GPU, low))
        assert "at least 16 wide, and are 8" in str(lacking("flex", Asked(8), GPU, low))
    for form in ("blocks", "varlen", "flex"):
        assert lacking(form, dropping, GPU, low) is not None
    with pytest.raises(ValueError, match="'flash' is not one of auto, math"):
        lacking("flash", plain, GPU, low)


def test_this_machine_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[[str, str], str | None] = attention_forms.machine_lacks
    assert "runs on NVIDIA GPUs, and this device is cpu" in str(found("varlen", "cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    attention_forms._machine_lacks.cache_clear()
    try:
        assert found("varlen", "cuda") is None
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value: None)
        attention_forms._machine_lacks.cache_clear()
        assert "knows no windows" in str(found("varlen", "cuda"))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Turing")
        attention_forms._machine_lacks.cache_clear()
        assert found("flash_attn", "cuda") == "Turing is older than Ampere"
    finally:
        attention_forms._machine_lacks.cache_clear()


REFUSED = {
    "arch=bert_tiny impl.attention=varlen": r"attention=varlen: it runs on NVIDIA GPUs.*; use impl\.attention=auto",
    "arch=bert_tiny impl.attention=flash": r"impl\.attention=flash is unknown; there are: auto, math, blocks",
    "arch=bert_tiny arch.attention_dropout=0.1 impl.attention=blocks": r"no dropout of attention, which is 0\.1",
    "arch=m2_tiny impl.attention=math": r"this architecture has no attention; use impl\.attention=auto",
    "arch=deberta_tiny impl.attention=sdpa": "'deberta-v2' is that of transformers, which has no others",
    "arch=albert_tiny impl.attention=flex": "'albert' is that of transformers, which has math and sdpa",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_form_that_cannot_be_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.setattr(resolve, "device", lambda: CPU)
    with pytest.raises(UserError, match=REFUSED[words]):
        pretrain(compose([f"base_dir={tmp_path}", "name=x", "data=python_docs", *words.split()]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arch", "form"), [("modern_tiny", "math"), ("albert_tiny", "sdpa")])
def test_a_run_computes_in_the_form_it_was_given(arch: str, form: str) -> None:
    words = [f"arch={arch}", f"impl.attention={form}", "impl.precision=float32"]
    config = compose([*words, "data=python_docs", "train.batch_size=2"])
    resolved = replace(resolve.resolve(config.impl, None), device="cpu", microbatch_size=1)
    parts = Parts(config, 97, CPU)
    parts.check_attention(resolved)
    model = parts.spare_engine(resolved).model
    assert model.attention == form
    assert model.fast_paths(300)["attention"] == form
    assert resolve.resolve(ImplConfig(precision="float32"), resolved).attention == "auto", "which is the way out"
