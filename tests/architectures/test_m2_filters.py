"""Generated filters: what they are, that all layers' are made once for each state of the weights, and never stale."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cramming.architectures.layers import kept_filters
from cramming.architectures.layers.filters import Filters, GeneratedFilters, Networks, decay_rates, generate
from cramming.architectures.layers.kept_filters import KeptFilters, rows_for
from cramming.architectures.layers.weights_state import signature
from cramming.kernels.torch_convolution import circle_of, transform_size

LENGTH, CHANNELS, LAYERS = 12, 5, 3


def make(length: int = LENGTH, *, filters: int = 2, bidirectional: bool = True, seed: int = 0) -> GeneratedFilters:
    """Filters all of whose weights matter."""
    torch.manual_seed(seed)
    made = GeneratedFilters(
        CHANNELS, length, filters=filters, bidirectional=bidirectional, width=6, features=5, frequency=3.0
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def stack(**options: bool | int) -> list[GeneratedFilters]:
    """Those of several layers, no two alike."""
    return [make(seed=seed, **options) for seed in range(LAYERS)]


def one(kept: KeptFilters, filters: GeneratedFilters, length: int = 8, points: tuple[int, ...] = ()) -> Filters:
    """What is kept of a single layer."""
    return kept.of([filters], length, points)[0]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many layers and taps every generation from now on is of."""
    found: list[tuple[int, int]] = []

    def counting(filters: list[GeneratedFilters], rows: int) -> tuple[Tensor, list[Tensor]]:
        found.append((len(filters), rows))
        return generate(filters, rows)

    monkeypatch.setattr(kept_filters, "generate", counting)
    return found


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks every way back through them is of."""
    found: list[int] = []
    inner = Networks.backward

    def counting(self: Networks, slope: Tensor, hidden: list[Tensor]) -> Networks:
        found.append(len(slope))
        return inner(self, slope, hidden)

    monkeypatch.setattr(Networks, "backward", counting)
    return found


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
def test_taps_and_gradients_of_all_layers_are_those_of_each_by_autograd(
    length: int, filters: int, bidirectional: bool
) -> None:
    layers = [layer.double() for layer in stack(filters=filters, bidirectional=bidirectional)]
    kept, rows = KeptFilters(), rows_for(length, LENGTH)
    for _ in range(2):  # made, then kept
        expected, found = [layer.taps(rows) for layer in layers], [part.taps for part in kept.of(layers, length)]
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        # Only lags that sequences of this length have can carry a gradient: that of a convolution's output does.
        slopes = [torch.randn_like(part) * (torch.arange(rows) < length) for part in expected]
        sources = [part for layer in layers for part in layer.sources]
        wanted, got = torch.autograd.grad(expected, sources, slopes), torch.autograd.grad(found, sources, slopes)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 7, 12, 40])
def test_spectra_are_those_of_taps_and_skips(length: int) -> None:
    layers, points = stack(), transform_size(length, LENGTH)
    found = KeptFilters().of(layers, length, [points, points])
    for layer, (taps, spectra) in zip(layers, found, strict=True):
        assert len(spectra) == 2
        for number, skip in enumerate(layer.skips().detach()):
            expected = torch.fft.rfft(circle_of(taps[number].detach(), skip, points))
            for part in spectra:
                assert not part.requires_grad
                torch.testing.assert_close(torch.view_as_complex(part[number]), expected)


def test_what_is_kept_is_exact_whoever_asked_first() -> None:
    """Under autocast the networks' products would be of 16 bits, and those taps be there for every later pass."""
    filters, kept = make(), KeptFilters()
    expected = one(KeptFilters(), filters).taps
    with torch.autocast("cpu", torch.bfloat16):
        first = one(kept, filters).taps
    assert torch.equal(first, expected)
    assert torch.equal(one(kept, filters).taps, expected)


def test_short_sequences_do_not_pay_for_long_filters() -> None:
    assert [rows_for(length, 100) for length in (1, 2, 3, 8, 9, 64, 65, 100, 500)] == [
        1,
        2,
        4,
        8,
        16,
        64,
        100,
        100,
        100,
    ]
    kept, filters = KeptFilters(), make()
    assert one(kept, filters, 5).taps.shape == (2, 2, CHANNELS, 8)
    assert one(kept, filters, 9).taps.shape == (2, 2, CHANNELS, LENGTH)


def test_places_no_lag_reaches_get_exactly_no_gradient() -> None:
    """Not a rounding error: an optimizer that divides by the size of gradients would follow it."""
    filters = make()
    taps = one(KeptFilters(), filters, 5).taps
    slope = torch.randn_like(taps)
    slope[..., 5:] = 0
    (gradient,) = torch.autograd.grad(taps, [filters.features], slope)
    assert gradient[:, :5].any(-1).all()
    assert not gradient[:, 5:].any()


def test_layers_and_microbatches_share_one_generation_and_layers_one_way_back(
    generated: list[tuple[int, int]], returned: list[int]
) -> None:
    layers, kept = stack(), KeptFilters()
    total = []
    sources = [part for layer in layers for part in layer.sources]
    for _ in range(3):
        found = kept.of(layers, 8, [16])
        total.append(torch.autograd.grad(sum(part.taps.square().sum() for part in found), sources))
    with torch.no_grad():
        kept.of(layers[1:], 7)
    assert generated == [(LAYERS, 8)]
    assert returned == [4 * LAYERS] * 3
    for first, later in zip(total[0], total[2], strict=True):
        assert torch.equal(first, later)
    kept.of(layers, 30)
    kept.of(layers, 8)
    assert generated == [(LAYERS, 8), (LAYERS, LENGTH)], "another size is made once, and the first is still there"


@pytest.mark.parametrize("used", [(), (1,), (0, 2), (2, 0, 1)])
def test_layers_that_a_pass_does_not_use_get_no_gradient_not_zeros(used: tuple[int, ...], returned: list[int]) -> None:
    layers = [layer.double() for layer in stack()]
    found = KeptFilters().of(layers, 8)
    for order, layer in enumerate(used):
        (found[layer].taps.square().sum() * (order + 1)).backward(retain_graph=True)
    assert returned == [4] * len(used)
    returned.clear()
    for layer, filters in enumerate(layers):
        alone = copy.deepcopy(filters)
        if layer in used:
            (alone.taps(8).square().sum() * (used.index(layer) + 1)).backward()
        for ours, theirs in zip(filters.sources, alone.sources, strict=True):
            assert (ours.grad is None) == (layer not in used)
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    if used:
        sum(found[layer].taps.sum() for layer in used).backward()
        assert returned == [4 * len(used)]


def test_frozen_weights_and_frozen_layers(returned: list[int]) -> None:
    layers = stack()
    layers[0].requires_grad_(False)
    layers[1].weight_2.requires_grad_(False)
    sum(part.taps.square().sum() for part in KeptFilters().of(layers, 8)).backward()
    assert all(part.grad is None for part in layers[0].sources)
    assert layers[1].weight_2.grad is None
    assert all(part.grad is not None for part in (*layers[2].sources, layers[1].weight_1))
    for layer in layers:
        layer.requires_grad_(False)
    assert not any(part.taps.requires_grad for part in KeptFilters().of(layers, 8))


def test_layers_that_come_later_join_those_that_are_there(generated: list[tuple[int, int]]) -> None:
    layers, kept = stack(), KeptFilters()
    first = kept.of(layers[:1], 8)[0].taps
    for some in (layers[2:], layers[:1], [layers[2], layers[0]], layers):
        for layer, found in zip(some, kept.of(some, 8), strict=True):
            torch.testing.assert_close(found.taps, layer.taps(8), rtol=1e-6, atol=1e-6)
    assert generated == [(1, 8), (2, 8), (3, 8)]
    torch.testing.assert_close(kept.of(layers[:1], 8)[0].taps, first, rtol=1e-6, atol=1e-6)
    in_place(layers[1])
    kept.of(layers[1:2], 8)
    assert generated[3:] == [(1, 8)], "of what was made of other weights nothing stays"
    assert [made.places.keys() for made in kept._made.values()] == [{layers[1].state()}]


def test_evaluation_keeps_no_more_than_it_needs_and_training_after_it_gets_gradients(
    generated: list[tuple[int, int]],
) -> None:
    filters, kept = make(), KeptFilters()
    with torch.inference_mode():
        inferred = one(kept, filters, points=(16,))
    assert not kept._made[8].hidden
    trained = one(kept, filters, points=(16,))
    assert generated == [(1, 8), (1, 8)]
    assert torch.equal(inferred.taps, trained.taps)
    assert torch.equal(inferred.spectra[0], trained.spectra[0])
    trained.taps.abs().sum().backward()
    assert all(parameter.grad is not None for parameter in filters.sources)
    with torch.no_grad():
        assert torch.equal(one(kept, filters).taps, inferred.taps)
    assert generated == [(1, 8), (1, 8)]


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
    layers, kept = stack(), KeptFilters()
    for train in (True, False, True):
        with torch.set_grad_enabled(train):
            before = kept.of(layers, 8, [16])
        write(layers[1])
        fresh = KeptFilters().of(layers, 8, [16])
        with torch.set_grad_enabled(train):
            found = kept.of(layers, 8, [16])
        for (taps, spectra), now, then, same in zip(found, fresh, before, (True, False, True), strict=True):
            assert torch.equal(taps, now.taps)
            assert torch.equal(spectra[0], now.spectra[0])
            assert torch.equal(spectra[0], then.spectra[0]) == same


@pytest.mark.parametrize("write", [w for w in WRITES if w is not behind_torchs_back])
def test_writes_are_noticed_without_looking_at_values(write: Callable[[GeneratedFilters], None]) -> None:
    """As on a GPU, which looking would stop."""
    filters = make()
    weights = [*filters.sources, filters.skip]
    before = signature(weights)
    assert signature(weights) == before
    write(filters)
    assert signature([*filters.sources, filters.skip]) != before


def test_a_weight_that_changes_before_backward_is_refused_as_elsewhere() -> None:
    filters = make()
    taps = one(KeptFilters(), filters).taps
    in_place(filters)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        taps.abs().sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_filters_stay_float32_to_the_last_bit(dtype: torch.dtype) -> None:
    holder = torch.nn.ModuleDict({"filters": make(), "linear": torch.nn.Linear(3, 3)})
    low = copy.deepcopy(holder).to(dtype)
    assert low["linear"].weight.dtype == dtype
    for (name, ours), other in zip(low["filters"].named_parameters(), holder["filters"].parameters(), strict=True):
        assert torch.equal(ours, other), name
    kept = KeptFilters()
    state, before = holder["filters"].state(), one(kept, holder["filters"])
    assert holder["filters"].state() is state
    assert holder.float()["filters"].state() is not state, "what moves weights is not looked into"
    assert torch.equal(one(KeptFilters(), low["filters"]).taps, before.taps)
    wide = one(kept, holder["filters"].double(), points=(16,))
    assert (wide.taps.dtype, wide.spectra[0].dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(wide.taps.float(), before.taps, rtol=1e-4, atol=1e-5)


def test_a_copy_has_nothing_of_the_original() -> None:
    holder = torch.nn.Module()
    holder.filters, holder.kept = make(), KeptFilters()
    one(holder.kept, holder.filters)
    other = copy.deepcopy(holder)  # as a pickle would: by what ``__reduce__`` says
    assert not other.kept._made
    assert not other.filters._state._values
    assert other.filters.state() is not holder.filters.state()
    in_place(other.filters)
    for each in (other, holder):
        assert torch.equal(one(each.kept, each.filters).taps, each.filters.taps(8))
    assert not torch.equal(one(holder.kept, holder.filters).taps, one(other.kept, other.filters).taps)
