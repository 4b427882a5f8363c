"""Fast ways to compute what may be computed plainly instead: ``impl.plain`` names them.

A fast way never changes a result beyond rounding; ``tests/core/test_fast_paths.py`` holds each of them to that. (Where
dropout is above 0, some draw other random numbers, which is another run of the same.) To have it the plain way, as
somebody would write it first, is for whoever doubts one, and for measuring what it is worth (``benchmarks/tricks.py``).
The ones that a module of a model knows are its attribute ``ways``; those that are to be plain, ``plain``. Options of
their own decide about the form of attention, compiling, microbatches, what is computed again in backward, and what
becomes of freed memory.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from cramming.errors import UserError
from cramming.suggest import nearest

ALL = "all"


class Way(NamedTuple):
    """What is done, and what is done where it is to be plain."""

    fast: str
    plain: str


WAYS = {
    "predicted_positions": Way(
        "last layer, head and vocabulary at predicted positions only", "last layer, head and vocabulary everywhere"
    ),
    "cross_entropy": Way("the vocabulary's gradient takes the place of its logits", "float32 logits, torch's function"),
    "word_gradient": Way("rows looked up are added to the vocabulary's gradient", "autograd's two gradients, summed"),
    "unpadding": Way("padding and empty slots are left out", "padding is computed, behind a mask"),
    "local_attention": Way("a window's keys only are computed", "all keys, behind a mask"),
    "dropout": Way(
        "where attention is written out, its dropout draws 16 bits an element on a processor", "torch's dropout"
    ),
    "convolution": Way("one operation with a backward of its own", "by autograd"),
    "kept_filters": Way("filters of all layers are made together, once a step", "filters are made in every pass"),
    "block_diagonal": Way("the feed-forward part as one operation", "all blocks as one batched product"),
    "cast_once": Way("weights are cast to 16 bits once a step", "weights are cast for every microbatch"),
    "fused_optimizer": Way("the step in one kernel", "the step parameter by parameter"),
}


def chosen(asked: Iterable[str]) -> list[str]:
    """The names that ``impl.plain`` means, sorted; ``all`` is every one.

    Raises:
        UserError: there is no such name.
    """
    named = set(asked)
    for name in sorted(named - {ALL, *WAYS}):
        raise UserError(f"impl.plain=[{name}] is unknown{nearest(name, [ALL, *WAYS])}")
    return sorted(WAYS if ALL in named else named)


def described(ways: Collection[str], plain: Collection[str]) -> dict[str, str]:
    """What is done in each of ``ways``, for a summary, where those in ``plain`` are plain."""
    return {name: f"plain: {way.plain}" if name in plain else way.fast for name, way in WAYS.items() if name in ways}
