"""Steps in float64 against the papers' algorithms, written out plainly with numpy, one tensor at a time.

Each formula gets a parameter, its gradient, a dictionary for what it keeps, the number of the parameter's step from 1
and the rate of that step. Gradients are given, so nothing but the optimizer is tested.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from cramming.optim import build

WD, STEPS = 0.2, 7
B1, B2, EPS = 0.8, 0.9, 1e-3
Array = np.ndarray
State = dict[str, Any]
Step = Callable[[Array, Array, State, int, float], Array]
ADAM = {"betas": [B1, B2], "eps": EPS}


def means(g: Array, s: State, b1: float = B1, b2: float = B2) -> tuple[Array, Array]:
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
    return s["m"], s["v"]


def adam_direction(g: Array, s: State, t: int, eps: float = EPS) -> Array:
    m, v = means(g, s)
    return (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + eps)


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x * x)))


def radam(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/1908.03265, algorithm 2; decay as a penalty."""
    m, v = means(g + WD * p, s)
    longest = 2 / (1 - B2) - 1
    length = longest - 2 * t * B2**t / (1 - B2**t)
    m = m / (1 - B1**t)
    if length <= 5:  # torch waits one longer than the paper's 4
        return p - lr * m
    r = np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return p - lr * m * r * np.sqrt(1 - B2**t) / (np.sqrt(v) + EPS)


def adafactor(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/1804.04235, algorithms 4 and 5."""
    b2 = 1 - t**-0.8
    g2 = g * g + 1e-30
    if p.ndim == 2:
        s["r"] = b2 * s.get("r", 0.0) + (1 - b2) * g2.sum(1)
        s["c"] = b2 * s.get("c", 0.0) + (1 - b2) * g2.sum(0)
        v = np.outer(s["r"], s["c"]) / s["r"].sum()
    else:
        s["v"] = v = b2 * s.get("v", 0.0) + (1 - b2) * g2
    u = g / np.sqrt(v)
    return p * (1 - lr * WD) - lr * u / max(1.0, rms(u) / 0.5)


def adafactor_scaled(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """With the size of the weights, and a running mean of updates."""
    still = adafactor(np.zeros_like(p), g, s, t, 1.0)  # minus the update
    s["m"] = 0.6 * s.get("m", 0.0) + 0.4 * max(1e-3, rms(p)) * -still
    return p * (1 - lr * WD) - lr * s["m"]


def lamb(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/1904.00962, algorithm 2."""
    u = adam_direction(g, s, t) + WD * p
    return p - lr * u * (np.linalg.norm(p) / np.linalg.norm(u) if p.ndim == 2 else 1.0)


def lamb_bounded(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """As ExtremeBERT has it, and as ALBERT leaves the means."""
    m, v = means(g, s)
    u = m / (np.sqrt(v) + EPS) + WD * p
    return p - lr * u * min(max(np.linalg.norm(p) / np.linalg.norm(u), 0.5), 0.6)


def sgd(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    s["m"] = g if t == 1 else 0.9 * s["m"] + g
    return p - lr * (g + 0.9 * s["m"])


def trusted(g: Array, p: Array, largest: float) -> Array:
    tau = 0.02 * np.linalg.norm(p) / (np.linalg.norm(g) + WD * np.linalg.norm(p) + 1e-8)
    return (g + WD * p) * min(tau, largest)


def lars(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/1708.03888, equation 6, before gradient descent."""
    return sgd(p, trusted(g, p, np.inf), s, t, lr)


def larc(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    tau = 0.02 * np.linalg.norm(p) / (np.linalg.norm(g) + WD * np.linalg.norm(p) + 1e-8)
    return sgd(p, (g + WD * p) * min(tau / lr, 1.0), s, t, lr)


def lars_adamw(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    return p - lr * adam_direction(trusted(g, p, np.inf), s, t)


def adamw_scale(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/2309.02373: Adam's epsilon is not corrected, decay comes last."""
    m, v = means(g, s)
    p = p - lr * np.sqrt(1 - B2**t) / (1 - B1**t) * max(1e-3, rms(p)) * m / (np.sqrt(v) + EPS)
    return p - lr * WD * p


def stable_adamw(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/2304.13013, algorithm 2."""
    b1, b2 = B1 * (1 - B1 ** (t - 1)) / (1 - B1**t), B2 * (1 - B2 ** (t - 1)) / (1 - B2**t)
    m, u = means(g, s, b1, b2)
    rate = lr / max(1.0, float(np.sqrt(np.mean(g * g / np.maximum(u, EPS**2)))))
    return p - rate * WD * p - rate * m / (np.sqrt(u) + EPS)


def root(a: Array, power: float) -> Array:
    values, vectors = np.linalg.eigh(a)
    return vectors @ np.diag(values**power) @ vectors.T


def shampoo(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/2309.06497: section 2 with means, section 3's grafting onto Adam; roots every 3 steps."""
    if p.ndim < 2:
        return p * (1 - lr * WD) - lr * adam_direction(g, s, t, 1e-4)
    adam = adam_direction(g, s, t, 1e-4)
    s["L"] = B2 * s.get("L", 0.0) + (1 - B2) * g @ g.T
    s["R"] = B2 * s.get("R", 0.0) + (1 - B2) * g.T @ g
    if t % 3 == 1:
        s["roots"] = [root(s[x] / (1 - B2**t) + EPS * np.eye(len(s[x])), -1 / 4) for x in "LR"]
    direction = s["roots"][0] @ s["m"] @ s["roots"][1]
    return p * (1 - lr * WD) - lr * direction * np.linalg.norm(adam) / np.linalg.norm(direction)


def shampoo_blocks(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """Every block by itself: 3 x 4 in blocks of 2 is 2 + 1 rows and 2 + 2 columns."""
    if p.ndim < 2:
        return shampoo(p, g, s, t, lr)
    found = np.empty_like(p)
    for rows in (slice(0, 2), slice(2, 3)):
        for columns in (slice(0, 2), slice(2, 4)):
            own = s.setdefault((rows.start, columns.start), {})
            found[rows, columns] = shampoo(p[rows, columns], g[rows, columns], own, t, lr)
    return found


def soap(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/2409.11321, algorithm 3; the bases turn every second step."""
    if p.ndim < 2:
        return (p - lr * adam_direction(g, s, t)) * (1 - lr * WD)
    if t == 1:
        s["L"], s["R"] = (1 - B2) * g @ g.T, (1 - B2) * g.T @ g
        s["QL"], s["QR"] = (np.linalg.eigh(s[x])[1][:, ::-1] for x in "LR")
        return p
    turned = s["QL"].T @ g @ s["QR"]
    s["m"] = B1 * s.get("m", 0.0) + (1 - B1) * g
    s["v"] = B2 * s.get("v", 0.0) + (1 - B2) * turned * turned
    n = (s["QL"].T @ s["m"] @ s["QR"]) / (np.sqrt(s["v"]) + EPS)
    rate = lr * np.sqrt(1 - B2 ** (t - 1)) / (1 - B1 ** (t - 1))
    p = (p - rate * s["QL"] @ n @ s["QR"].T) * (1 - lr * WD)
    s["L"] = B2 * s["L"] + (1 - B2) * g @ g.T
    s["R"] = B2 * s["R"] + (1 - B2) * g.T @ g
    if (t - 1) % 2 == 0:
        for axis, (x, q) in enumerate((("L", "QL"), ("R", "QR"))):
            order = np.argsort(-np.diag(s[q].T @ s[x] @ s[q]), kind="stable")
            s["v"] = np.take(s["v"], order, axis)
            s[q] = np.linalg.qr(s[x] @ s[q][:, order])[0]
    return p


def muon(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://kellerjordan.github.io/posts/muon/ with equation 4 of https://arxiv.org/abs/2502.16982."""
    if p.ndim < 2:
        return p * (1 - lr * WD) - lr * adam_direction(g, s, t)
    s["m"] = 0.7 * s.get("m", 0.0) + 0.3 * g
    x = 0.3 * g + 0.7 * s["m"]
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return p * (1 - lr * WD) - lr * 0.2 * np.sqrt(max(p.shape)) * x


def schedule_free(p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """https://arxiv.org/abs/2405.15682, algorithm 1, all three sequences kept."""
    z, x = s.get("z", p), s.get("x", p)
    s["v"] = B2 * s.get("v", 0.0) + (1 - B2) * g * g
    rate = lr * np.sqrt(1 - B2**t)
    s["z"] = z - rate * g / (np.sqrt(s["v"]) + EPS) - rate * WD * p
    s["sum"] = s.get("sum", 0.0) + rate**2
    c = rate**2 / s["sum"]
    s["x"] = (1 - c) * x + c * s["z"]
    return (1 - B1) * s["z"] + B1 * s["x"]


CASES: dict[str, tuple[str, Step, dict[str, Any]]] = {
    "radam": ("radam", radam, ADAM),
    "adafactor": ("adafactor", adafactor, {"clip_threshold": 0.5}),
    "adafactor_scaled": ("adafactor", adafactor_scaled, {"clip_threshold": 0.5, "scale_parameter": True, "beta1": 0.6}),
    "lamb": ("lamb", lamb, ADAM),
    "lamb_bounded": (
        "lamb",
        lamb_bounded,
        {**ADAM, "bias_correction": False, "ratio_min": 0.5, "ratio_max": 0.6, "adapt_vectors": True},
    ),
    "lars": ("lars", lars, {}),
    "larc": ("larc", larc, {}),
    "lars_adamw": ("lars", lars_adamw, {"inner": "adamw", "options": ADAM}),
    "adamw_scale": ("adamw_scale", adamw_scale, ADAM),
    "stable_adamw": ("stable_adamw", stable_adamw, ADAM),
    "shampoo": ("shampoo", shampoo, {**ADAM, "grafting_eps": 1e-4, "update_every": 3}),
    "shampoo_blocks": ("shampoo", shampoo_blocks, {**ADAM, "grafting_eps": 1e-4, "update_every": 3, "block_size": 2}),
    "soap": ("soap", soap, {**ADAM, "update_every": 2}),
    "muon": ("muon", muon, {**ADAM, "momentum": 0.7}),
    "schedule_free": ("schedule_free", schedule_free, ADAM),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_follow_the_paper(case: str) -> None:
    """A matrix, and a vector whose gradients begin in the third step; the rate changes from step to step."""
    name, formula, options = CASES[case]
    random = np.random.default_rng(1)
    expected = [random.normal(size=(3, 4)), random.normal(size=5)]
    parameters = [torch.nn.Parameter(torch.tensor(value)) for value in expected]
    optimizer = build(name, parameters, lr=0.1, weight_decay=WD, **options)
    states: list[State] = [{}, {}]
    for t in range(1, STEPS + 1):
        lr = 0.1 * t / STEPS
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * t / STEPS
        for index, began in enumerate((1, 3)):
            gradient = random.normal(size=expected[index].shape)
            parameters[index].grad = torch.tensor(gradient) if t >= began else None
            if t >= began:
                expected[index] = formula(expected[index], gradient, states[index], t - began + 1, lr)
        optimizer.step()
        for parameter, value in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-9, atol=1e-11)


def test_automatic_gradient_descent_as_in_the_paper() -> None:
    """https://arxiv.org/abs/2304.05187, algorithm 1, on a matrix, two blocks of a block-diagonal one and a vector."""
    random = np.random.default_rng(2)
    expected = [random.normal(size=(3, 4)), random.normal(size=(2, 5, 2)), random.normal(size=6)]
    parameters = [torch.nn.Parameter(torch.tensor(value)) for value in expected]
    optimizer = build("agd", parameters, lr=0.5, weight_decay=WD)
    for depth in (3, 3, 2):  # in the last step the vector is not used
        gradients = [random.normal(size=value.shape) for value in expected][:depth]
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.tensor(gradients[index]) if index < depth else None
        summary = np.sqrt(3 / 4) * np.linalg.norm(gradients[0])
        summary += np.sqrt(5 / 2) * sum(np.linalg.norm(block) for block in gradients[1])
        summary += np.sqrt(6) * np.linalg.norm(gradients[2]) if depth == 3 else 0.0
        eta = np.log((1 + np.sqrt(1 + 4 * summary / depth)) / 2)
        blocks = np.stack([block / np.linalg.norm(block) for block in gradients[1]])
        turned = [gradients[0] / np.linalg.norm(gradients[0]), blocks]
        turned += [gradients[2] / np.linalg.norm(gradients[2])] if depth == 3 else []
        for index, (direction, ratio) in enumerate(zip(turned, np.sqrt([3 / 4, 5 / 2, 6.0]), strict=False)):
            expected[index] = expected[index] * (1 - 0.5 * WD) - 0.5 * eta / depth * ratio * direction
        optimizer.step()
        for parameter, value in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-12)


def test_agd_leaves_what_has_a_gradient_of_zero() -> None:
    still, moved = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(2, 3))
    still.grad, moved.grad = torch.zeros(2, 3), torch.ones(2, 3)
    build("agd", [still, moved], lr=1.0).step()
    assert torch.equal(still.data, torch.ones(2, 3))
    assert (moved < 1).all()


def test_prodigy_as_in_the_paper() -> None:
    """https://arxiv.org/abs/2306.06101, algorithm 4; gradients that agree, so that the distance grows."""
    random = np.random.default_rng(3)
    start = [random.normal(size=(3, 4)), random.normal(size=5)]
    expected = [value.copy() for value in start]
    parameters = [torch.nn.Parameter(torch.tensor(value)) for value in start]
    optimizer = build("prodigy", parameters, lr=1.0, weight_decay=WD, betas=[B1, B2], eps=EPS, d0=1e-3)
    d, r, b3 = 1e-3, 0.0, np.sqrt(B2)
    states: list[State] = [{}, {}]
    distances = []
    for t in range(1, 25):
        lr = 1.0 - t / 100
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr
        gradients = [value + 0.1 * random.normal(size=value.shape) for value in expected]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
        agreement = sum(float(((x0 - x) * g).sum()) for x0, x, g in zip(start, expected, gradients, strict=True))
        r = b3 * r + (1 - b3) * lr * d**2 * agreement
        for index, (gradient, s) in enumerate(zip(gradients, states, strict=True)):
            s["s"] = b3 * s.get("s", 0.0) + (1 - b3) * lr * d**2 * gradient
            m, v = means(d * gradient, s)
            expected[index] = expected[index] * (1 - lr * d * WD) - lr * d * m / (np.sqrt(v) + d * EPS)
        d = max(d, r / sum(np.abs(s["s"]).sum() for s in states))
        distances.append(d)
        for parameter, value in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-10)
        assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-10)
    assert distances[-1] > 3 * distances[0]


def test_muon_s_updates_are_orthogonal_and_as_long_as_adams() -> None:
    """Singular values between 0.7 and 1.2, so an RMS of about 0.2 of a step; in the published 16 bits."""
    parameter = torch.nn.Parameter(torch.zeros(96, 32))
    optimizer = build("muon", [parameter], lr=1.0, weight_decay=0.0)
    parameter.grad = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    values = torch.linalg.svdvals(parameter.detach()) / (0.2 * 96**0.5)
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25
    assert rms(parameter.detach().numpy()) == pytest.approx(0.2, rel=0.25)


def test_muon_is_torchs_where_torch_has_one() -> None:
    ours = torch.nn.Parameter(torch.randn(12, 20, generator=torch.Generator().manual_seed(1)))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizers = [
        build("muon", [ours], lr=0.01, weight_decay=0.1, momentum=0.9),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
    ]
    for seed in range(5):
        gradient = torch.randn(12, 20, generator=torch.Generator().manual_seed(10 + seed))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    # Both round to bfloat16 in every iteration, each in its own places.
    moved = theirs.detach() - torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    assert float((ours - theirs).detach().norm()) < 0.05 * float(moved.norm())


def test_muon_takes_each_block_of_a_block_diagonal_matrix_by_itself() -> None:
    gradient = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = torch.nn.Parameter(torch.zeros(3, 8, 6, dtype=torch.float64))
    apart = [torch.nn.Parameter(torch.zeros(8, 6, dtype=torch.float64)) for _ in range(3)]
    together.grad = gradient.clone()
    for parameter, part in zip(apart, gradient, strict=True):
        parameter.grad = part.clone()
    build("muon", [together], lr=0.1).step()
    build("muon", apart, lr=0.1).step()
    torch.testing.assert_close(together.detach(), torch.stack([p.detach() for p in apart]))


def test_the_bases_of_soap_become_eigenvectors() -> None:
    """Orthogonal iteration with one factor: after some turns Q^T L Q is diagonal."""
    parameter = torch.nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    optimizer = build("soap", [parameter], lr=0.0, update_every=1, betas=[0.9, 0.999], shampoo_beta=0.999)
    random = torch.Generator().manual_seed(4)
    fixed = torch.randn(4, 6, dtype=torch.float64, generator=random)
    for _ in range(200):
        parameter.grad = fixed + 0.1 * torch.randn(4, 6, dtype=torch.float64, generator=random)
        optimizer.step()
    state = optimizer.state[parameter]
    turned = state["left_basis"].T @ state["left"] @ state["left_basis"]
    assert float((turned - turned.diagonal().diag()).abs().max()) < 0.02 * float(turned.diagonal().max())
    torch.testing.assert_close(state["left_basis"].T @ state["left_basis"], torch.eye(4, dtype=torch.float64))


def test_soap_leaves_a_long_side_without_a_basis() -> None:
    parameter = torch.nn.Parameter(torch.zeros(9, 3))
    optimizer = build("soap", [parameter], lr=0.1, max_dim=8)
    for seed in range(3):
        parameter.grad = torch.randn(9, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    assert "left" not in optimizer.state[parameter]
    assert optimizer.state[parameter]["right_basis"].shape == (3, 3)
    assert parameter.detach().abs().max() > 0


def test_prodigy_never_grows_faster_than_it_may() -> None:
    parameter = torch.nn.Parameter(torch.full((4,), 10.0))
    optimizer = build("prodigy", [parameter], lr=1.0, growth=1.02)
    distances = [1e-6]
    for _ in range(40):
        parameter.grad = parameter.detach().clone()
        optimizer.step()
        distances.append(optimizer.param_groups[0]["d"])
    assert max(b / a for a, b in pairwise(distances)) == pytest.approx(1.02)
