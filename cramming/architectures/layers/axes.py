"""How the axes of a parameter are made up, for growing it into a larger one (``cramming.architectures.growth``).

By default an axis is one run of features, which grows as one. A module whose parameters join several runs along an axis
says so in a method ``growing_axes() -> dict[str, Axes]``, by the parameter's name in that module: the shape in which
the parameter has one axis for each thing that grows by itself. Queries, keys and values of several heads in one matrix
(3 A D, H) are ``(Axis(3, FIXED), A, D, H)``. A module that works a tensor out by a formula and then trains it says
which in ``formulas() -> dict[str, Tensor]``: only what training added is resampled. A module that keeps blocks of the
residual stream apart says so in ``stream() -> tuple[int, int]``, its features and the blocks: then these features grow
block by block wherever they are.
"""

from dataclasses import dataclass

WIDTH, POSITIONS, FIXED = "width", "positions", "fixed"


@dataclass(frozen=True)
class Axis:
    """One axis of the shape that a parameter grows in.

    Attributes:
        size: entries along it.
        kind: ``width``: features; ``positions``: places in a sequence, in order; ``fixed``: it must not grow.
    """

    size: int
    kind: str = WIDTH


Axes = tuple[Axis | int, ...]  # a number is an axis of features
