"""Generated filters: what they are, that they are made once for each state of the weights, and never stale."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cramming.architectures.layers.filters import GeneratedFilters, decay_rates
from cramming.architectures.layers.long_convolution import spectra_of, transform_size

LENGTH, CHANNELS = 12, 5


def make(length: int = LENGTH, *, filters: int = 2, bidirectional: bool = True) -> GeneratedFilters:
    """Filters all of whose weights matter."""
    torch.manual_seed(0)
    made = GeneratedFilters(
        CHANNELS, length, filters=filters, bidirectional=bidirectional, width=6, features=5, frequency=3.0
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def plain(filters: GeneratedFilters, points: int) -> Tensor:
    """The spectra by autograd, from nothing that is kept."""
    return spectra_of(filters.taps(min(filters.length, points // 2)), filters.skips(), points)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of taps of every generation from now on."""
    rows: list[int] = []
    inner = GeneratedFilters._generate

    def counting(self: GeneratedFilters, count: int) -> tuple[Tensor, list[Tensor]]:
        rows.append(count)
        return inner(self, count)

    monkeypatch.setattr(GeneratedFilters, "_generate", counting)
    return rows


def test_taps_are_the_formulas() -> None:
    filters = make().double()
    taps = filters.taps()
    networks = [weight.view(4, -1, weight.shape[1]) for weight in filters.weights]
    biases = [bias.view(4, -1) for bias in filters.biases]
    for number in range(2):
        for direction in range(2):
            network = 2 * number + direction
            for place in (0, 1, 7, LENGTH - 1):
                x = filters.features[number, place]
                for layer in range(3):
                    x = torch.sin(filters.frequency[number] * (networks[layer][network] @ x + biases[layer][network]))
                x = networks[3][network] @ x
                for channel in range(CHANNELS):
                    share = channel / (CHANNELS - 1)
                    rate = math.log(0.01) / 1.5 * (1 - share) + math.log(0.01) / 0.3 * share
                    expected = x[channel] * math.exp(-abs(rate) * place / (LENGTH - 1))
                    torch.testing.assert_close(taps[number, direction, channel, place], expected, rtol=1e-6, atol=1e-9)


def test_fresh_features_are_the_formulas() -> None:
    fresh = GeneratedFilters(CHANNELS, LENGTH, filters=2, width=6, features=7)
    for place in range(LENGTH):
        angle = 2 * math.pi * place / LENGTH
        bands = [1e-4, 1e-4 + (2 - 1e-4) / 2, 2.0]
        cosines, sines = [math.cos(f * angle) for f in bands], [-math.sin(f * angle) for f in bands]
        expected = torch.tensor([place / (LENGTH - 1), *cosines, *sines])
        for number in range(2):
            torch.testing.assert_close(fresh.features[number, place].detach(), expected, rtol=1e-5, atol=1e-6)
    assert (fresh.frequency == 10.0).all()
    rates = decay_rates(768)
    torch.testing.assert_close(rates[[0, -1]], torch.tensor([-3.0701, -15.3506]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("filters", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 7, 12, 40])
def test_spectra_and_gradients_are_those_of_the_plain_computation(
    length: int, filters: int, bidirectional: bool
) -> None:
    made = make(filters=filters, bidirectional=bidirectional).double()
    points = transform_size(length, LENGTH)
    for _ in range(2):  # made, then kept
        expected, found = plain(made, points), made.spectra(points, length)
        assert torch.equal(found, expected)
        # Only lags that sequences of this length have can carry a gradient: that of a convolution's output does.
        lags = torch.randn(filters, CHANNELS, points, dtype=torch.float64)
        lags[..., length : points - length + 1] = 0
        incoming = torch.fft.rfft(lags) / points
        incoming[..., 1:-1] *= 2
        wanted = torch.autograd.grad(expected, list(made.parameters()), incoming)
        got = torch.autograd.grad(found, list(made.parameters()), incoming)
        for (name, _), ours, theirs in zip(made.named_parameters(), got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_places_no_lag_reaches_get_exactly_no_gradient() -> None:
    """Not a rounding error: an optimizer that divides by the size of gradients would follow it."""
    filters = make()
    points = transform_size(5, LENGTH)
    incoming = torch.randn(2, CHANNELS, points // 2 + 1, dtype=torch.complex64)
    (gradient,) = torch.autograd.grad(filters.spectra(points, 5), [filters.features], incoming)
    assert gradient[:, :5].any(-1).all()
    assert not gradient[:, 5:].any()


def test_microbatches_share_one_generation(generated: list[int]) -> None:
    filters = make()
    total = []
    for _ in range(3):
        spectra = filters.spectra(16, 8)
        total.append(torch.autograd.grad(spectra.abs().square().sum(), list(filters.parameters())))
    with torch.no_grad():
        filters.spectra(16, 7)
    assert generated == [8]
    for first, later in zip(total[0], total[2], strict=True):
        assert torch.equal(first, later)
    filters.spectra(64, 30)
    filters.spectra(16, 8)
    assert generated == [8, LENGTH], "another size is made once, and the first is still there"


def test_evaluation_keeps_no_more_than_it_needs_and_training_after_it_gets_gradients(generated: list[int]) -> None:
    filters = make()
    with torch.inference_mode():
        inferred = filters.spectra(16, 8)
    trained = filters.spectra(16, 8)
    assert generated == [8, 8]
    assert torch.equal(inferred, trained)
    trained.abs().sum().backward()
    assert all(parameter.grad is not None for parameter in filters.parameters())
    with torch.no_grad():
        assert torch.equal(filters.spectra(16, 8), inferred)
    assert generated == [8, 8]


def fused_step(filters: GeneratedFilters) -> None:
    optimizer = torch.optim.AdamW(filters.parameters(), lr=0.1, fused=True)
    for parameter in filters.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def in_place(filters: GeneratedFilters) -> None:
    with torch.no_grad():
        filters.frequency.mul_(1.01)


def behind_torchs_back(filters: GeneratedFilters) -> None:
    filters.weight_3.data.add_(0.1)


def loaded(filters: GeneratedFilters) -> None:
    filters.load_state_dict({name: value + 0.01 for name, value in filters.state_dict().items()})


def foreach_copy(filters: GeneratedFilters) -> None:
    with torch.no_grad():
        parameters = list(filters.parameters())
        torch._foreach_copy_(parameters, [torch.randn_like(p) for p in parameters])


def another_tensor(filters: GeneratedFilters) -> None:
    filters.skip.data = filters.skip.detach() + 1


WRITES = (fused_step, in_place, behind_torchs_back, loaded, foreach_copy, another_tensor)


@pytest.mark.parametrize("write", WRITES)
def test_filters_are_never_stale(write: Callable[[GeneratedFilters], None]) -> None:
    filters = make()
    for train in (True, False, True):
        with torch.set_grad_enabled(train):
            before = filters.spectra(16, 8).detach().clone()
        write(filters)
        with torch.set_grad_enabled(train):
            assert torch.equal(filters.spectra(16, 8), plain(filters, 16))
        assert not torch.equal(filters.spectra(16, 8), before)


@pytest.mark.parametrize("write", [w for w in WRITES if w is not behind_torchs_back])
def test_writes_are_noticed_without_looking_at_values(write: Callable[[GeneratedFilters], None]) -> None:
    """As on a GPU, which looking would stop."""
    filters = make()
    filters.spectra(16, 8)
    signature = filters._signature()
    assert filters._signature() == signature
    write(filters)
    assert filters._signature() != signature


def test_a_weight_that_changes_before_backward_is_refused_as_elsewhere() -> None:
    filters = make()
    spectra = filters.spectra(16, 8)
    in_place(filters)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spectra.abs().sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_filters_stay_float32_to_the_last_bit(dtype: torch.dtype) -> None:
    holder = torch.nn.ModuleDict({"filters": make(), "linear": torch.nn.Linear(3, 3)})
    low = copy.deepcopy(holder).to(dtype)
    assert low["linear"].weight.dtype == dtype
    for (name, one), other in zip(low["filters"].named_parameters(), holder["filters"].parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(low["filters"].spectra(16, 8), holder["filters"].spectra(16, 8))
    assert holder["filters"].double().spectra(16, 8).dtype == torch.complex128


def test_a_copy_has_nothing_of_the_original() -> None:
    filters = make()
    filters.spectra(16, 8)
    other = copy.deepcopy(filters)
    assert not other._kept.sizes
    in_place(other)
    assert torch.equal(other.spectra(16, 8), plain(other, 16))
    assert torch.equal(filters.spectra(16, 8), plain(filters, 16))


def test_few_sizes_are_kept() -> None:
    filters = make()
    for exponent in range(1, 10):
        filters.spectra(2**exponent, 1)
    assert list(filters._kept.sizes) == [2**exponent for exponent in range(6, 10)]
