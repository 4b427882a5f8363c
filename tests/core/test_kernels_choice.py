"""Which backend does an operation: what is tested before it is trusted, what is chosen, what is said.

Backends here are pretended: torch's own functions with something changed.
"""

import json
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from memory import LENGTH, VOCABULARY
from torch import Tensor

from cramming import resolve
from cramming.config import KERNELS, ImplConfig
from cramming.kernels import backends, choice, gated_long_conv, torch_convolution, torch_glu
from cramming.kernels.selftest import CASES, ConvolutionSizes, GluSizes, self_test
from tests.architectures.families import arch

CONVOLUTION, GLU = "gated_long_conv", "block_diagonal_glu"
CPU = torch.device("cpu")
HERE = {CONVOLUTION: ConvolutionSizes(24, 4, 40, 64), GLU: GluSizes(160, 16, 32, 16)}
Pretend = Callable[..., None]


def right(**changed: Any) -> SimpleNamespace:
    """A backend that computes as torch's does, but for what is given."""
    parts = {name: getattr(torch_convolution, name) for name in ("convolution_lacks", "convolve", "convolve_back")}
    parts |= {name: getattr(torch_glu, name) for name in ("glu_lacks", "glu_forward", "glu_back")}
    return SimpleNamespace(**{**parts, **changed})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    """Sets what stands behind ``triton`` and ``cuda``: a backend, or why there is none."""
    real = backends.of
    there: dict[str, Any] = {"triton": "there is none", "cuda": "not built: run make kernels"}

    def of(op: str, name: str) -> tuple[Any, str | None]:
        if name not in there:
            return real(op, name)
        return (None, there[name]) if isinstance(there[name], str) else (there[name], None)

    monkeypatch.setattr(backends, "of", of)
    monkeypatch.setattr(backends, "_refused", {})
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.setattr(choice, "_said", set())
    caches = (self_test, choice.fastest)
    for cached in caches:
        cached.cache_clear()
    yield there.update
    for cached in caches:
        cached.cache_clear()


# ---- the test that a backend has to pass ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", CASES)
def test_what_is_right_passes(op: str, dtype: torch.dtype, pretend: Pretend) -> None:
    pretend(triton=right())
    assert self_test(op, "triton", CPU, dtype, HERE[op]) is None


def changed(place: int | str, by: Callable[[Tensor], Tensor]) -> SimpleNamespace:
    """A backend whose output (``out``) or gradient of that number is changed."""

    def gradients(found: Any) -> Any:
        return found if isinstance(place, str) else found._replace(**{found._fields[place]: by(found[place])})

    def forward(given: Any, keep: bool) -> tuple[Tensor, Tensor]:
        made, kept = torch_glu.glu_forward(given, keep)
        return (by(made) if place == "out" else made), kept

    return right(
        convolve=lambda given: (by if place == "out" else torch.clone)(torch_convolution.convolve(given)),
        convolve_back=lambda given, slope: gradients(torch_convolution.convolve_back(given, slope)),
        glu_forward=forward,
        glu_back=lambda given, kept, slope: gradients(torch_glu.glu_back(given, kept, slope)),
    )


def without_the_last(full: Tensor) -> Tensor:
    """In new memory, whose last value is never written."""
    made = torch.empty_like(full)
    made.flatten()[:-1] = full.flatten()[:-1]
    return made


WRONG: dict[str, tuple[SimpleNamespace, str]] = {
    "zeros": (changed("out", torch.zeros_like), "output is 1.0e+00 from the definition"),
    "nearly": (changed("out", lambda out: 1.00001 * out), "output is 1.0e-05 from the definition in float32"),
    "unwritten": (changed("out", without_the_last), "output is nan from"),
    "half": (changed("out", lambda out: out[: len(out) // 2]), "output is ("),
    "another": (changed("out", lambda out: out + 1e-7 * torch.rand_like(out)), "output is another when computed again"),
    "first_gradient": (changed(0, lambda slope: 1.001 * slope), "is 1.0e-03 from"),
    "third_gradient": (changed(2, torch.zeros_like), "gradient of "),
    "third_unwritten": (changed(2, without_the_last), "is nan from the definition"),
}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("op", CASES)
def test_what_is_wrong_does_not(op: str, mistake: str, pretend: Pretend) -> None:
    module, says = WRONG[mistake]
    pretend(triton=module)
    why = self_test(op, "triton", CPU, torch.float32)
    assert why is not None
    assert why.startswith("its test failed: ")
    assert says in why
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("op", CASES)
def test_whatever_a_backend_raises_is_a_reason(op: str, pretend: Pretend) -> None:
    def raises(*_: Any) -> Any:
        raise ZeroDivisionError("no such\nluck")

    pretend(cuda=right(convolve=raises, glu_forward=raises))
    assert self_test(op, "cuda", CPU, torch.float32) == "its test failed: ZeroDivisionError: no such"


def test_what_a_backend_lacks_is_no_mistake_unless_it_is_what_the_run_needs(pretend: Pretend) -> None:
    def odd(given: Any) -> str | None:
        return "lengths must be even" if given.z.shape[-1] % 2 else None

    pretend(triton=right(convolution_lacks=odd), cuda=right(convolution_lacks=lambda given: "it needs a GPU"))
    own = HERE[CONVOLUTION]
    assert self_test(CONVOLUTION, "triton", CPU, torch.float32) is None
    assert self_test(CONVOLUTION, "triton", CPU, torch.float32, own) is None
    assert self_test(CONVOLUTION, "triton", CPU, torch.float32, own._replace(length=41)) == "lengths must be even"
    assert self_test(CONVOLUTION, "cuda", CPU, torch.float32) == "it needs a GPU"
    assert backends._refused == {}


def test_what_failed_is_refused_in_that_type_whoever_asks(pretend: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    pretend(triton=changed("out", torch.zeros_like))
    assert self_test(CONVOLUTION, "triton", CPU, torch.float32) is not None
    for dtype, zero in ((torch.float32, False), (torch.float64, True)):
        given = HERE[CONVOLUTION].operands(dtype, CPU)
        assert (gated_long_conv(*given[:9], backend="triton") == 0).all() == zero
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "triton cannot do this here (its test failed: output is" in caplog.text


# ---- what gives way while a run goes on ----


def test_a_reason_is_said_once_however_many_sizes_it_names(pretend: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    def long(given: Any) -> str | None:
        length = given.z.shape[-1]
        return f"{length} positions are too many" if length > 4 else "odd" if length % 2 else None

    pretend(triton=right(convolution_lacks=long))
    for length in (3, 5, 6, 7, 5, 3, 2):
        given = HERE[CONVOLUTION]._replace(length=length).operands(torch.float32, CPU)
        found = gated_long_conv(*given[:9], backend="triton")
        torch.testing.assert_close(found, torch_convolution.convolve(given))
    assert [line.partition("(")[2].partition(")")[0] for line in caplog.messages] == ["odd", "5 positions are too many"]


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
    for cached in (self_test, choice.fastest):
        cached.cache_clear()
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
