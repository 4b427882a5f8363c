"""What a checkpoint can hold: a tree taken apart into JSON and tensors, and put together again to the last bit."""

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import same
from safetensors.torch import load, save

from cramming.checkpoint import flatten, unflatten

unhurried = settings(deadline=None, derandomize=True, max_examples=200)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
# Names that trip: the separators of paths, the marks of the format, and the word that safetensors keeps for itself.
words = st.sampled_from(
    ["a", "b", "a.b", "b.0", "0", "", "$tensor", "$tuple", "$items", "$float", "$key", "é", "__metadata__"]
)
keys = words | st.integers(-3, 3) | st.booleans() | st.none() | st.tuples(st.integers(0, 2), words)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any shape, also of no element or no dimension."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    if draw(st.booleans()) and values.numel():
        values.view(-1)[0] = draw(st.sampled_from([math.nan, math.inf, -math.inf, -0.0]))
    return (values * 4).nan_to_num(3.0).to(draw(st.sampled_from(DTYPES))) if draw(st.booleans()) else values


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words | tensors()
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(words, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def through_files(state: Any) -> Any:
    """As a checkpoint does it: JSON text and safetensors bytes."""
    tree, found = flatten(state)
    return unflatten(json.loads(json.dumps(tree, allow_nan=False)), load(save(found)))


@unhurried
@given(state=states)
def test_a_state_comes_back_to_the_last_bit(state: Any) -> None:
    assert same(through_files(state), state)


def test_names_that_meet_on_one_path_keep_their_tensors_apart() -> None:
    state = {"a.b": torch.zeros(2), "a": {"b": torch.ones(2)}, 1: torch.tensor(1), "1": torch.tensor(2)}
    assert same(through_files(state), state)


def test_the_order_of_keys_is_kept() -> None:
    state = {"z": 1, "a": {"y": torch.ones(1), 3: 0, "b": None}, "m": 2}
    found = through_files(state)
    assert list(found) == ["z", "a", "m"]
    assert list(found["a"]) == ["y", 3, "b"]


def test_views_of_one_memory_come_back_equal_and_apart() -> None:
    """A checkpoint saves values, so writing to one of them no longer writes to the other; and only what is seen."""
    base = torch.arange(12.0).view(3, 4)
    state = {"base": base, "row": base[1], "column": base[:, 1], "turned": base.t(), "repeated": base[0, :1].expand(5)}
    found = through_files(state)
    assert same(found, state)
    found["row"].fill_(0)
    assert same(found["base"], base)
    _, stored = flatten({"corner": base[:1, :1]})
    assert stored["corner"].untyped_storage().nbytes() == 4


def test_flattening_takes_a_copy() -> None:
    """So that training may go on while the file is written."""
    weight = torch.zeros(3)
    _, stored = flatten({"weight": weight})
    weight.fill_(1)
    assert stored["weight"].tolist() == [0, 0, 0]


def test_parameters_and_other_mappings_become_plain() -> None:
    state = OrderedDict(weight=torch.nn.Parameter(torch.ones(2)), size=torch.Size([2, 3]))
    found = through_files(state)
    assert type(found) is dict
    assert type(found["weight"]) is torch.Tensor
    assert not found["weight"].requires_grad
    assert found["size"] == (2, 3)


def test_numbers_of_numpy_that_are_floats_come_back_as_floats() -> None:
    """numpy's float64 is a Python float, and writes itself differently."""
    found = through_files([np.float64(0.1), np.float64(math.nan), np.float64(-math.inf)])
    assert same(found, [0.1, math.nan, -math.inf])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"optimizer": {"state": {0: {"history": {1, 2}}}}}, r"state optimizer\.state\.0\.history has type set"),
        ({"method": [1, Path("x")]}, r"state method\.1 has type PosixPath"),
        ({"a": (1, lambda: 0)}, r"state a\.1 has type function"),
        ({"count": np.int64(3)}, "state count has type int64"),
        ({"rows": np.zeros(3)}, "state rows has type ndarray"),
        (object(), r"state \(root\) has type object"),
        ({"a": {frozenset([1]): 2}}, r"state a\.\$key has type frozenset"),
        ({"spectrum": torch.zeros(2, dtype=torch.complex128)}, r"state spectrum has type .*complex128"),
        ({"sparse": torch.eye(3).to_sparse()}, r"state sparse has type .*sparse_coo"),
    ],
)
def test_anything_else_is_refused_by_name(state: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        flatten(state)
