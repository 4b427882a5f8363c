"""Every family can be differentiated twice, in every form of its layers, and to the right values."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cramming.architectures import ArchConfig
from cramming.architectures.layers.attention import SelfAttention
from cramming.batch import Batch
from cramming.differentiation import differentiating_twice, hessian_product, twice
from cramming.errors import UserError
from cramming.model import Model
from tests.architectures.families import TINY, VOCABULARY, arch, built

LENGTH, STEP = 20, 1e-6


def batch_of(padded: bool) -> Batch:
    """Three sequences of which each predicts some tokens, two of them padded if asked for."""
    random = torch.Generator().manual_seed(3)
    inputs = torch.randint(5, VOCABULARY, (3, LENGTH), generator=random)
    positions = torch.rand(3, 8, generator=random).argsort(1)[:, :4]
    lengths = torch.tensor([LENGTH, 9, 13]) if padded else None
    weights = torch.ones(3, 4)
    weights[1, 2:] = 0
    return Batch(
        torch.arange(3), torch.zeros(3), inputs, positions, inputs.gather(1, positions), weights, lengths, weights.sum()
    )


def loss_of(model: Model, batch: Batch) -> Tensor:
    return (model(batch) * batch.weights).sum() / batch.normalizer


def differs(model: Model, batch: Batch) -> float:
    """How far the product with a vector of signs is from a central difference of gradients, relatively, in float64."""
    parameters = list(model.parameters())
    random = torch.Generator().manual_seed(4)
    signs = [torch.randint(0, 2, p.shape, generator=random).to(p.dtype) * 2 - 1 for p in parameters]
    with differentiating_twice():
        products = hessian_product(loss_of(model, batch), parameters, signs)

    def gradients(step: float) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            torch._foreach_add_(parameters, signs, alpha=step)
        found = torch.autograd.grad(loss_of(model, batch), parameters, allow_unused=True)
        with torch.no_grad():
            torch._foreach_sub_(parameters, signs, alpha=step)
        return found

    error, size = 0.0, 0.0
    for up, down, product in zip(gradients(STEP), gradients(-STEP), products, strict=True):
        assert (up is None) == (product is None), "what is not used has none"
        if up is not None and down is not None and product is not None:
            expected = (up - down) / (2 * STEP)
            error += float((expected - product).square().sum())
            size += float(expected.square().sum())
    return (error / size) ** 0.5


def model_of(options: ArchConfig) -> Model:
    return built(options, LENGTH).double()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_of_every_family(name: str, padded: bool) -> None:
    assert differs(model_of(arch(name)), batch_of(padded)) < 1e-5


@pytest.mark.parametrize("form", ["math", "blocks", "sdpa"])
@pytest.mark.parametrize("name", ["bert_tiny", "modern_tiny"])
def test_of_every_form_of_attention(name: str, form: str) -> None:
    """The last family also has rotation and a window."""
    model = model_of(arch(name))
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.form = form
            module.window = None if module.window is None else 2
    assert differs(model, batch_of(False)) < 1e-5


def test_where_layers_are_computed_again_in_backward() -> None:
    model = model_of(arch("bert_tiny"))
    model.gradient_checkpointing = True
    assert differs(model, batch_of(False)) < 1e-5


def test_layers_that_are_not_active_have_no_part_in_it() -> None:
    model = model_of(arch("bert_tiny"))
    model.active_layers = (0,)
    assert differs(model, batch_of(False)) < 1e-5


def test_plain_forms_are_only_for_this() -> None:
    assert not twice()
    with differentiating_twice():
        assert twice()
    assert not twice()
    with pytest.raises(ZeroDivisionError), differentiating_twice():
        1 / 0  # noqa: B018
    assert not twice()


class Once(torch.autograd.Function):
    """A square whose backward pass is written by hand."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return 2 * ctx.saved_tensors[0] * gradient


def test_a_model_that_cannot_is_refused_with_the_reason() -> None:
    """Also where autograd would leave out in silence what goes through the function, and give the rest."""
    x = torch.nn.Parameter(torch.ones(3))
    for loss in (Once.apply(x).pow(2).sum(), Once.apply(x).pow(2).sum() + x.pow(3).sum()):
        with pytest.raises(UserError, match=r"cannot be differentiated twice: .*once_differentiable.*sophiag"):
            hessian_product(loss, [x], [torch.ones(3)])
    kernel = SDPBackend.FLASH_ATTENTION
    q, k, v = (torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3))
    with sdpa_kernel(kernel), pytest.raises(UserError, match=r"derivative for .*is not implemented.*sophiag"):
        hessian_product(F.scaled_dot_product_attention(q, k, v).pow(2).sum(), [q], [torch.ones_like(q)])


def test_what_the_loss_is_linear_in_has_a_product_of_zero() -> None:
    x, y, z = (torch.nn.Parameter(torch.full((2,), 3.0)) for _ in range(3))
    with differentiating_twice():
        products = hessian_product((x**3).sum() + y.sum(), [x, y, z], [torch.ones(2)] * 3)
    assert products[0] is not None
    assert torch.equal(products[0], torch.full((2,), 18.0))
    assert products[1] is not None
    assert torch.equal(products[1], torch.zeros(2))
    assert products[2] is None
    with differentiating_twice():
        products = hessian_product(y.sum(), [x, y], [torch.ones(2)] * 2)
    assert products[0] is None
    assert products[1] is not None
