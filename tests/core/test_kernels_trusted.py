"""Which backend may do an operation: the test it has to pass, and what gives way while a run goes on."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.kernels import (
    backends,
    block_diagonal_glu,
    gated_long_conv,
    selftest,
    torch_convolution,
    torch_glu,
)
from cramming.kernels.selftest import CASES, GluSizes, self_test
from tests.core.pretended import CONVOLUTION, CPU, GLU, HERE, Pretend, changed, right, without_the_last

# ---- the test that a backend has to pass ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", CASES)
def test_what_is_right_passes(op: str, dtype: torch.dtype, pretend: Pretend) -> None:
    pretend(triton=right())
    assert self_test(op, "triton", CPU, dtype, HERE[op]) is None


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


def test_cases_are_tried_once_and_memory_that_was_short_may_come_back(pretend: Pretend) -> None:
    seen: list[int] = []
    room = [False]

    def convolve(given: Any) -> Tensor:
        seen.append(given.z.shape[-1])
        if given.z.shape[-1] > 400 and not room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch_convolution.convolve(given)

    pretend(triton=right(convolve=convolve))
    assert self_test(CONVOLUTION, "triton", CPU, torch.float32) == "its test did not fit into memory"
    assert backends._refused == {}
    room[0] = True
    for length in (40, 40, 41):
        assert self_test(CONVOLUTION, "triton", CPU, torch.float32, HERE[CONVOLUTION]._replace(length=length)) is None
    tried = sorted([1, 37, 128, 129, 331, 1100, 2500, 40, 41] * 2 + [1100])
    assert sorted(seen) == tried, "twice each, but for what was stopped before"


def test_operands_that_do_not_fit_are_no_mistake(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    def operands(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    pretend(triton=right())
    monkeypatch.setattr(GluSizes, "operands", operands)
    assert self_test(GLU, "triton", CPU, torch.float32) == "its test did not fit into memory"
    assert backends._refused == {}


def test_a_gpu_that_is_lost_ends_the_run_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    selftest.check_alive(GLU, "triton", CPU, "no luck")
    with pytest.raises(UserError, match=r"block_diagonal_glu by cuda left the GPU.*\(no luck\).*impl.kernels=torch"):
        selftest.check_alive(GLU, "cuda", torch.device("cuda"), "no luck")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    selftest.check_alive(GLU, "cuda", torch.device("cuda"), "no luck")


# ---- what gives way while a run goes on ----


def test_the_way_back_is_by_who_went_there(pretend: Pretend) -> None:
    """Backends keep gates and values in different places; one that is refused or comes meanwhile changes nothing."""

    def forward(given: Any, keep: bool) -> tuple[Tensor, Tensor]:
        made, kept = torch_glu.glu_forward(given, keep)
        return made, kept.flip(0)

    other = right(
        glu_forward=forward, glu_back=lambda given, kept, slope: torch_glu.glu_back(given, kept.flip(0), slope)
    )
    given = [part.requires_grad_() for part in HERE[GLU].operands(torch.float32, CPU)]

    def gradients(backend: str, meanwhile: Callable[[], None] = lambda: None) -> tuple[Tensor, ...]:
        made = [block_diagonal_glu(*given, backend=backend)]
        meanwhile()
        made.append(block_diagonal_glu(*given, backend=backend))  # the next layer of that pass
        return torch.autograd.grad(torch.stack(made).square().sum(), given)

    def refuse() -> None:
        backends.refuse(GLU, "triton", CPU, torch.float32, "wrong")

    pretend(triton=other)
    exact = gradients("torch")
    for way in ("triton", "cuda"):  # triton does it in both: one is refused later, one comes later
        found = gradients(way, refuse if way == "triton" else lambda: pretend(cuda=right()))
        assert all(torch.equal(one, same) for one, same in zip(found, exact, strict=True)), way
        backends._refused.clear()
    refuse()
    few = HERE[GLU]._replace(tokens=3).operands(torch.float32, CPU)
    assert backends.module(GLU, "triton", HERE[GLU].operands(torch.float32, CPU)) is other
    assert backends.module(GLU, "triton", few) is torch_glu, "for what it has not done it is refused"


def test_what_was_decided_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_MOST_DECIDED", 3)
    for tokens in (1, 2, 3, 1, 4, 5):
        backends.module(GLU, "torch", HERE[GLU]._replace(tokens=tokens).operands(torch.float32, CPU))
    assert [kind[-1][0][0] for kind in backends._decided] == [1, 4, 5]  # type: ignore[index]


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
