"""The backend made of torch's own operations: stored tensors, sizes of its transforms, pieces of its work."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from cramming.kernels import block_diagonal_glu, gated_long_conv, torch_convolution
from cramming.kernels.torch_convolution import convolution_flops, transform_size
from tests.kernels import laws
from tests.kernels.kernel_cases import ConvolutionCase

BACKENDS = ("reference", "torch")
NORM_EPS = 1e-5


def stored(shared: Path, name: str) -> list[tuple[dict[str, Any], dict[str, dict[str, Tensor]]]]:
    """Each variant's description and its tensors by group."""
    tensors = load_file(shared / "golden" / f"{name}.safetensors")
    found = []
    for described in json.loads((shared / "golden" / f"{name}.json").read_text())["variants"]:
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            prefix, group, rest = key.split(".", maxsplit=2)
            if f"{prefix}." == described["prefix"]:
                groups.setdefault(group, {})[rest] = tensor
        found.append((described, groups))
    return found


def taps_of(state: dict[str, Tensor], name: str, length: int) -> Tensor:
    """A stored filter's taps, from its network: (D, C, R)."""
    features, places = state[f"{name}.pos_emb.z"][0, :length], state[f"{name}.pos_emb.t"][0, :length]
    window = torch.exp(-places * state[f"{name}.modulation.deltas"][0].abs())
    directions = []
    for network in ("implicit_filter", "implicit_filter_rev"):
        if f"{name}.{network}.0.weight" not in state:
            continue
        x = features
        for layer in (0, 2, 4):
            x = F.linear(x, *(state[f"{name}.{network}.{layer}.{part}"] for part in ("weight", "bias")))
            x = torch.sin(state[f"{name}.implicit_filter.1.freq"] * x)
        directions.append((F.linear(x, state[f"{name}.{network}.6.weight"]) * window).t())
    return torch.stack(directions)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("backend", BACKENDS)
def test_stored_mixers(shared: Path, backend: str, number: int) -> None:
    """Projections and filters by hand, the operation between them: outputs and the gradient of every weight."""
    described, groups = stored(shared, "m2_mixer")[number]
    state = {name: tensor.clone().requires_grad_() for name, tensor in groups["state_dict"].items()}
    given = u = groups["input"]["u"].requires_grad_()
    if described["hyena_training_additions"]:
        u = F.layer_norm(u, u.shape[-1:], state["layernorm.weight"], state["layernorm.bias"], NORM_EPS)
    z = F.linear(u, state["in_linear.weight"], state["in_linear.bias"]).permute(2, 0, 1)
    taps = [taps_of(state, name, u.shape[1]) for name in ("filter_fn", "filter_fn2") if f"{name}.bias" in state]
    residual = len(taps) == 2
    mixed = gated_long_conv(
        z,
        u.permute(2, 0, 1) if residual else None,
        taps[0],
        taps[1] if residual else None,
        state["filter_fn.bias"],
        state["filter_fn2.bias"] if residual else None,
        state["short_filter.weight"][:, 0],
        state["short_filter.bias"],
        backend=backend,
    )
    out = F.linear(mixed.permute(1, 2, 0), state["out_linear.weight"], state["out_linear.bias"])
    tolerance = 20 * described["out_fp32_vs_fp64"]["max_abs"]
    torch.testing.assert_close(out, groups["expected"]["out"], rtol=0, atol=tolerance)
    out.backward(groups["input"]["cotangent"])
    found = {"input.u": given.grad, **{name: tensor.grad for name, tensor in state.items()}}
    for name, gradient in groups["grad"].items():
        allowed = 1e-4 * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=allowed, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_stored_block_diagonal_layers(shared: Path, backend: str, number: int) -> None:
    """The stored layer as the outer one, behind gates of 16, which gelu leaves as they are, and values of x / 16."""
    described, groups = stored(shared, "m2_blockdiag_linear")[number]
    weight = groups["state_dict"]["weight"].requires_grad_()
    blocks, outputs, inputs = weight.shape
    bias = groups["state_dict"].get("bias")
    whole = None if bias is None else F.pad(bias, (0, blocks * outputs - len(bias))).requires_grad_()
    x = F.pad(groups["input"]["x"].flatten(0, -2), (0, blocks * inputs - described["in_features"])).requires_grad_()
    ones, same = torch.ones_like(x), torch.eye(inputs).expand(blocks, -1, -1)
    y = block_diagonal_glu(torch.cat((ones, x), dim=1), 16 * same, same / 16, weight, whole, backend=backend)
    y = y[:, : described["out_features"]]
    torch.testing.assert_close(y, groups["expected"]["y"].flatten(0, -2), rtol=0, atol=1e-5)
    y.backward(groups["input"]["cotangent"].flatten(0, -2))
    found = {"x": x.grad[:, : described["in_features"]], "weight": weight.grad}
    if whole is not None:
        found["bias"] = whole.grad[: len(bias)]
    assert found.keys() == groups["grad"].keys()
    for name, gradient in groups["grad"].items():
        torch.testing.assert_close(found[name], gradient.view(found[name].shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 1000])
@pytest.mark.parametrize("length", [9, 129])
def test_channels_at_a_time_change_nothing(length: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ConvolutionCase(5, 2, length, length, masked=True)
    expected = laws.slopes_of("gated_long_conv", case.operands(torch.float64), "torch")
    monkeypatch.setitem(torch_convolution.CHUNK_VALUES, "cpu", channels * 2 * length)
    found = laws.slopes_of("gated_long_conv", case.operands(torch.float64), "torch")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_kept_spectra_of_another_size_are_refused() -> None:
    operands = laws.some("gated_long_conv", torch.float32)
    said = r"spectra has the shape \(2, 5, 65, 2\): beside z \(15, 3, 40\) and taps \(2, 5, 23\) .* \(2, 5, 33, 2\)"
    with pytest.raises(ValueError, match=said):
        gated_long_conv(*operands, spectra=torch.zeros(2, 5, 65, 2), backend="torch")


def test_sizes_of_transforms() -> None:
    for length in range(1, 70):
        for rows in (1, 7, 64, 1000):
            points = transform_size(length, rows)
            assert points >= length + min(length - 1, rows)
            assert points & (points - 1) == 0
            assert points == 2 or points < 2 * (length + min(length - 1, rows))
    costs = [convolution_flops(length, length) / length for length in (256, 512, 1024, 2048)]
    assert all(1.0 < later / earlier < 1.2 for earlier, later in pairwise(costs)), "it grows as S log S"


@pytest.mark.parametrize("op", laws.OPS)
def test_gradients_lie_in_memory_as_was_promised(op: str) -> None:
    """Which the compiler relies on: one after another, also where operands are transposed."""
    _, names = laws.public(op)
    operands = [
        part if part is None or part.dim() < 2 else part.detach().mT.contiguous().mT.requires_grad_(part.requires_grad)
        for part in laws.some(op, torch.float32)
    ]
    leaves = [part for part in operands[: len(names)] if part is not None]
    assert not all(leaf.is_contiguous() for leaf in leaves)
    seen = laws.slopes_of(op, operands, "torch")
    assert all(slope.is_contiguous() for slope in seen)
