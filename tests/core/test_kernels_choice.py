"""Which backend does an operation: what is chosen, what is said, what a run keeps."""

import json
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from memory import LENGTH, VOCABULARY
from torch import Tensor

from cramming import resolve
from cramming.config import KERNELS, ImplConfig
from cramming.kernels import (
    backends,
    choice,
    cuda,
    selftest,
    torch_convolution,
)
from cramming.kernels.selftest import CASES
from tests.architectures.families import arch
from tests.core.pretended import CONVOLUTION, CPU, GLU, HERE, Pretend, changed, right

# ---- what is chosen ----


def test_by_name_the_next_is_taken_and_one_line_says_why(pretend: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    pretend(triton=changed("out", torch.zeros_like))
    model, plain = m2(), m2()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            settled = choice.use(model, CPU, torch.float32, "cuda", length=LENGTH, said=True)
    assert settled == {CONVOLUTION: "torch", GLU: "torch"}
    (line,) = caplog.messages
    assert line.startswith(
        "kernels: gated_long_conv by torch (cuda: not built: run make kernels; triton: its test fail"
    )
    assert ", block_diagonal_glu by torch (" in line
    assert choice.use(plain, CPU, torch.float32) == settled
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    assert torch.equal(*(each.states(tokens) for each in (model, plain)))  # type: ignore[operator]


def test_by_name_what_is_right_is_taken(pretend: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    pretend(triton=right())
    with caplog.at_level(logging.INFO):
        assert set(choice.use(m2(), CPU, torch.float32, "triton", said=True).values()) == {"triton"}
        assert set(choice.use(m2(), CPU, torch.float32, "reference", said=True).values()) == {"reference"}
    first, second = caplog.records
    assert first.getMessage() == "kernels: gated_long_conv by triton, block_diagonal_glu by triton"
    assert "the square of the length" in second.getMessage()
    assert {first.levelname, second.levelname} == {"INFO"}


def test_a_processor_has_torch_untested_and_untold(
    pretend: Pretend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "self_test", None)
    with caplog.at_level(logging.INFO):
        settled = choice.use(m2(), said=True)
        assert choice.use(arch("bert_tiny").build(VOCABULARY, LENGTH), said=True) == {}
    assert settled == {CONVOLUTION: "torch", GLU: "torch"}
    assert caplog.messages == []
    assert choice.described(settled) == {"kernels": "gated_long_conv by torch, block_diagonal_glu by torch"}
    assert choice.described({}) == choice.described(None) == {}


def test_what_was_settled_is_kept_and_a_change_is_told(pretend: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    pretend(triton=right())
    known = {CONVOLUTION: "triton", GLU: "torch"}
    assert choice.use(m2(), CPU, torch.float32, known=known) == known
    assert caplog.text == ""
    gone = {CONVOLUTION: "cuda", GLU: "torch"}
    assert choice.use(m2(), CPU, torch.float32, known=gone) == known
    assert "gated_long_conv by triton (cuda: not built: run make kernels), block_diagonal_glu by torch; " in caplog.text
    assert "bitwise equality no longer holds" in caplog.text


def test_by_name_what_was_asked_for_is_tried_again(pretend: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    pretend(triton=right())
    known = {CONVOLUTION: "torch", GLU: "triton"}
    assert choice.use(m2(), CPU, torch.float32, "triton", known=known) == {CONVOLUTION: "triton", GLU: "triton"}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "kernels: gated_long_conv by triton, block_diagonal_glu by triton; "
        "this run began with gated_long_conv by torch: bitwise equality no longer holds"
    )
    caplog.clear()
    both = {CONVOLUTION: "triton", GLU: "triton"}
    assert choice.use(m2(), CPU, torch.float32, "cuda", known=both) == both
    assert "bitwise" not in caplog.text, "what it gave way to is what it was"


def test_only_who_asks_by_name_has_it_compiled(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(cuda, "ensure_built", built.append)
    monkeypatch.setattr(choice, "self_test", lambda *_: None)
    known, there = {CONVOLUTION: "cuda", GLU: "cuda"}, torch.device("cuda")
    assert choice.use(m2(), there, torch.float32, known=known) == known
    assert built == []
    assert choice.use(m2(), there, torch.float32, "cuda", known=known) == known
    assert built == [there, there]


def test_what_is_plain_or_dropped_out_is_not_claimed(pretend: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    pretend(triton=right())
    model = m2(dropout=0.1)
    with caplog.at_level(logging.INFO):
        settled = choice.use(model, CPU, torch.float32, "triton", said=True)
    said = "gated_long_conv by triton, block_diagonal_glu by triton (but for training with dropout)"
    assert caplog.messages == [f"kernels: {said}"]
    assert choice.described(settled, model) == {"kernels": said}
    assert model.fast_paths()["block_diagonal"].endswith(", but for training with dropout")
    for plain, ops in (
        (["block_diagonal"], {CONVOLUTION}),
        (["convolution"], {GLU}),
        (["convolution", "block_diagonal"], set()),
    ):
        model.compute_plainly(plain)
        assert choice.use(model, CPU, torch.float32, known=settled).keys() == ops
        assert model.kernels.keys() == ops
        model.fast_paths()


class Clock:
    """Seconds that pretended backends say they take."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def backend(self, name: str, **changed: Any) -> SimpleNamespace:
        """One that takes its time."""

        def convolve(given: Any) -> Tensor:
            self.now += self.seconds[name]
            return torch_convolution.convolve(given)

        return right(**{"convolve": convolve, **changed})

    def timed(self, work: Callable[[], None]) -> float:
        before = self.now
        work()
        return self.now - before

    def chosen(self, pretend: Pretend, **changed: Any) -> choice.Choice:
        """Which of three is taken for a run."""
        made = {name: self.backend(name) for name in choice.PREFERRED} | changed
        pretend(**made)
        return choice.fastest(CONVOLUTION, CPU, torch.float32, HERE[CONVOLUTION], self.timed)


@pytest.mark.parametrize(
    ("seconds", "backend", "why"),
    [
        ({"cuda": 1.0, "triton": 2.0, "torch": 3.0}, "cuda", "passed its test; 3.0 times as fast as torch"),
        ({"cuda": 2.0, "triton": 1.0, "torch": 3.0}, "triton", "passed its test; 3.0 times as fast as torch"),
        ({"cuda": 1.02, "triton": 1.0, "torch": 2.04}, "cuda", "passed its test; 2.0 times as fast as torch"),
        ({"cuda": 1.1, "triton": 1.02, "torch": 1.0}, "triton", "passed its test; 1.0 times as fast as torch"),
        ({"cuda": 3.0, "triton": 1.5, "torch": 1.0}, "torch", "as fast as cuda; 1.5 times as fast as triton"),
    ],
)
def test_the_fastest_is_taken_and_of_equals_the_first(
    seconds: dict[str, float], backend: str, why: str, pretend: Pretend
) -> None:
    found = Clock(**seconds).chosen(pretend)
    assert (found.backend, found.missed) == (backend, False)
    assert why in found.why
    assert found.why.endswith(" at 40 tokens")


def test_what_fails_is_not_timed(pretend: Pretend) -> None:
    def full(given: Any) -> Tensor:
        if given.z.shape[0] == 3 * HERE[CONVOLUTION].channels:  # not in its test
            raise RuntimeError("out of memory\nof which there is little")
        return torch_convolution.convolve(given)

    clock = Clock(cuda=1.0, triton=2.0, torch=3.0)
    found = clock.chosen(pretend, cuda="not built: run make kernels")
    assert found.backend == "triton"
    assert found.why == "passed its test; 1.5 times as fast as torch at 40 tokens; cuda: not built: run make kernels"
    selftest._tried.clear()
    choice.fastest.cache_clear()
    found = clock.chosen(pretend, cuda=clock.backend("cuda", convolve=full), triton=changed("out", torch.zeros_like))
    assert found.backend == "torch"
    assert "cuda: out of memory" in found.why
    assert "triton: its test failed" in found.why
    assert {name for _, name, *_ in backends._refused} == {"triton"}, "smaller passes may have the memory"


def test_what_fails_at_the_size_of_the_run_is_refused_for_good(pretend: Pretend) -> None:
    class OutOfResources(Exception):  # noqa: N818 (its name there)
        """As a compiler of kernels has it."""

    def large(given: Any) -> Tensor:
        if given.z.shape[0] == 3 * HERE[CONVOLUTION].channels:  # not in its test
            raise OutOfResources("shared memory, required: 300000")
        return torch_convolution.convolve(given)

    clock = Clock(cuda=1.0, triton=2.0, torch=3.0)
    found = clock.chosen(pretend, cuda=clock.backend("cuda", convolve=large))
    assert found.backend == "triton"
    assert found.why.endswith("; cuda: shared memory, required: 300000")
    assert {name for _, name, *_ in backends._refused} == {"cuda"}


# ---- sizes, names, what a run keeps ----


@pytest.mark.parametrize("blocks", [2, 4])
def test_sizes_are_those_that_the_model_asks_for(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = m2(blocks=blocks, filter_length=9), dict[str, Any]()
    choice.use(model)
    real = backends.module

    def module(op: str, backend: str, given: Any) -> Any:
        seen.setdefault(op, given)
        return real(op, backend, given)

    monkeypatch.setattr(backends, "module", module)
    with torch.no_grad():
        model.states(torch.randint(VOCABULARY, (3, LENGTH)))  # type: ignore[operator]
    assert seen.keys() == {CONVOLUTION, GLU}
    for op, theirs in seen.items():
        ours = choice.sizes_of(model, op, LENGTH, 3).operands(torch.float32, CPU)
        for name, one, other in zip(ours._fields, ours, theirs, strict=True):
            assert (one is None) == (other is None), name
            assert one is None or one.shape == other.shape, name
            assert one is None or one.dtype == other.dtype, name


def test_a_pass_that_is_timed_is_not_larger_than_it_need_be() -> None:
    model = m2()
    assert choice.sizes_of(model, GLU, LENGTH, 10**9).tokens <= 1 << 16
    assert choice.sizes_of(model, CONVOLUTION, 10**9, 1).length == LENGTH  # type: ignore[union-attr]


def test_the_names_are_those_of_the_backends() -> None:
    assert list(KERNELS) == [backends.AUTO, *backends.NAMES]
    assert {op for op, _ in backends._MODULES} == CASES.keys() == backends.LACKS.keys()
    assert set(choice.PREFERRED) == backends.FALLBACKS.keys()


def test_a_run_keeps_what_was_found(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    asked = ImplConfig(precision="float32", threads=1)
    stored = resolve.resolve(asked, None)
    assert (stored.kernels, stored.kernel_backends) == ("auto", None)
    found = {CONVOLUTION: "triton", GLU: "torch"}
    stored = resolve.Resolved(**{**stored.__dict__, "kernel_backends": found})
    resolve.write(tmp_path, stored)
    assert resolve.resolve(asked, resolve.read(tmp_path)) == stored
    assert caplog.text == ""
    asked.kernels = "cuda"
    other = resolve.resolve(asked, resolve.read(tmp_path))
    assert (other.kernels, other.kernel_backends) == ("cuda", None)
    assert "now computes with another kernels auto -> cuda: bitwise" in caplog.text
    asked.kernels = "auto"
    assert resolve.resolve(asked, other).kernels == "cuda", "auto is what it was"
    elsewhere = resolve.Resolved(**{**stored.__dict__, "device": "cuda"})
    assert resolve.resolve(asked, elsewhere).kernel_backends is None, "another device, other backends"


def test_what_was_stored_before_there_were_any_is_read(tmp_path: Any) -> None:
    resolve.write(tmp_path, resolve.resolve(ImplConfig(precision="float32", threads=1), None))
    file = tmp_path / "resolved.json"
    old = {k: v for k, v in json.loads(file.read_text()).items() if not k.startswith("kernel")}
    file.write_text(json.dumps(old))
    found = resolve.read(tmp_path)
    assert found is not None
    assert (found.kernels, found.kernel_backends) == ("auto", None)


def m2(**options: Any) -> Any:
    """A small model, the same every time."""
    torch.manual_seed(0)
    config = arch("m2_tiny", layers=2, hidden=32, intermediate=64, filter_order=16, **options)
    return config.build(VOCABULARY, LENGTH, 2).eval()
