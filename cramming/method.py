"""What an efficient-training idea may change, as hooks; ``Method()`` itself is the baseline.

A method is one file in ``efficient_training/`` (or a third-party package): a dataclass that is its own option schema,
registered by name, and one YAML file in ``config/method/``. It overrides the hooks it needs. Everything it keeps
between calls lives on ``self`` and in ``state_dict``, and every random draw comes from
``run.generator(...)``, so that a killed run continues exactly. The model is called through ``run.engine`` only, which
charges the clock for every pass.

On several ranks a hook is handed this rank's share of a batch, and must come to the same end on each of them: what it
decides by is of all ranks. ``batch.sequences``, ``batch.normalizer``, ``engine.losses``, ``select`` and ``concatenate``
are; so are gradients once a batch is done; its own sums it adds up with ``here().sum_``. What it saves is whole too,
for a run goes on with any number of ranks.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.lengths import Lengths

if TYPE_CHECKING:
    from cramming.train import Run

Draw = Callable[[int], Batch | None]
Step = Callable[[float], int]


class Forward(Protocol):
    """The model as an objective may call it: every call is charged as a forward and backward pass."""

    def __call__(self, batch: Batch, logits: bool = False) -> Tensor:
        """(B, P) float32 losses per predicted token, or with ``logits`` (B, P, V)."""


class Method:
    """The hooks, in the order of the loop (``cramming/train.py``). Every default is the baseline."""

    selects: ClassVar[bool] = False  # throws sequences away; two such methods exclude each other
    excludes: ClassVar[Mapping[str, str]] = {}  # other methods it cannot be combined with -> why
    accounts: ClassVar[tuple[str, ...]] = ()  # accounts of the clock it charges besides ``train``
    free: tuple[str, ...] = ()  # of them, those that are written down but not paid unless an option says so
    sequences_per_draw: int | None = None  # sequences that share one random draw; None: the whole batch

    def lengths(self, full: int) -> Lengths | None:
        """How long sequences are by progress, if the method decides it; ``full`` is the length of the store's rows."""
        return None

    def thins(self, length: int) -> Collection[int]:
        """To how many tokens it may shorten sequences of ``length`` within the model: lengths that need a price."""
        return ()

    def setup(self, run: "Run") -> None:
        """Called once, when the run is built to be trained and before any state is loaded.

        Whatever of the run's data or model it cannot work with is refused here, before any work (``UserError``).
        """

    def next_batch(self, run: "Run", draw: Draw, n: int) -> Batch | None:
        """The next ``n`` sequences, from ``draw(n)``: the stream, or the method before this one in the list.

        Returns:
            The batch, or None if the budget ended while choosing.
        """
        return draw(n)

    def before_step(self, run: "Run") -> None:
        """Before the gradients of a step, for instance to grow the model."""

    def thinned(self, run: "Run", group: Batch) -> AbstractContextManager[None]:
        """Around the passes of one draw group, for instance with some layers dropped."""
        return nullcontext()

    def objective(self, forward: Forward, batch: Batch) -> Tensor:
        """What a microbatch contributes to the loss of the batch, a scalar.

        Contributions add up over microbatches, so they are normalised by ``batch.normalizer``, the number of predicted
        tokens of the whole batch.
        """
        return (forward(batch) * batch.weights).sum() / batch.normalizer

    def update(self, run: "Run", batch: Batch, factor: float, step: Step) -> int:
        """Use the gradients; ``step(factor)`` is the optimizer's, or the next method's.

        Returns:
            Steps taken: 0 or 1.
        """
        return step(factor)

    def after_step(self, run: "Run") -> None:
        """After the optimizer's step, for instance to estimate curvature."""

    def evaluating(self, run: "Run") -> AbstractContextManager[None]:
        """Around validation, for instance with averaged weights lent to the model.

        It needs ``state_dict`` only: of a run that is merely looked at, ``setup`` is not called.
        """
        return nullcontext()

    def columns(self) -> dict[str, float]:
        """What to log beside the loss, such as the share of sequences kept."""
        return {}

    def about(self) -> dict[str, Any]:
        """What the run's summary is to say beside the options, such as a file that was used: plain values by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything kept between calls: numbers, strings, tensors, and lists, tuples and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""

    def lent(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Of a ``state_dict``, the weights that ``evaluating`` lends the model, by parameter: what is exported."""
        return {}


class Chain(Method):
    """Several methods in list order as one.

    Args:
        methods: name -> method. ``next_batch`` and ``update`` are nested (each gets the one before, or after, it as a
            callable), contexts are entered in order, at most one method may define the objective or select sequences.

    Raises:
        UserError: two methods that exclude each other, named.
    """

    def __init__(self, methods: dict[str, Method]) -> None:
        self.methods = methods
        refuse_pairs(methods)
        for name in _with_objective(methods):
            self.objective = methods[name].objective  # type: ignore[method-assign]
        self.sequences_per_draw = next(iter(_draw_sizes(methods).values()), None)
        self.accounts = tuple(  # type: ignore[misc]
            dict.fromkeys(account for method in methods.values() for account in method.accounts)
        )
        self.free = tuple(dict.fromkeys(account for method in methods.values() for account in method.free))

    def setup(self, run: "Run") -> None:
        for method in self.methods.values():
            method.setup(run)

    def next_batch(self, run: "Run", draw: Draw, n: int) -> Batch | None:
        for method in self.methods.values():
            draw = _source(method, run, draw)
        return draw(n)

    def before_step(self, run: "Run") -> None:
        for method in self.methods.values():
            method.before_step(run)

    @contextmanager
    def thinned(self, run: "Run", group: Batch) -> Iterator[None]:
        with ExitStack() as stack:
            for method in self.methods.values():
                stack.enter_context(method.thinned(run, group))
            yield

    def update(self, run: "Run", batch: Batch, factor: float, step: Step) -> int:
        for method in reversed(self.methods.values()):
            step = _inner_step(method, run, batch, step)
        return step(factor)

    def after_step(self, run: "Run") -> None:
        for method in self.methods.values():
            method.after_step(run)

    @contextmanager
    def evaluating(self, run: "Run") -> Iterator[None]:
        with ExitStack() as stack:
            for method in self.methods.values():
                stack.enter_context(method.evaluating(run))
            yield

    def columns(self) -> dict[str, float]:
        return {name: value for method in self.methods.values() for name, value in method.columns().items()}

    def about(self) -> dict[str, Any]:
        return {name: value for method in self.methods.values() for name, value in method.about().items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: method.state_dict() for name, method in self.methods.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, method in self.methods.items():
            method.load_state_dict(state[name])

    def lent(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        return {key: weights for name, m in self.methods.items() for key, weights in m.lent(state[name]).items()}


def refuse_pairs(methods: Mapping[str, Method]) -> None:
    """Refuse methods that exclude each other.

    Raises:
        UserError: two that choose sequences or define the loss, that draw for different numbers of sequences, or a pair
            that one of them names as impossible; with the reason.
    """
    selectors = [name for name, method in methods.items() if method.selects]
    if len(selectors) > 1:
        raise UserError(
            f"method={','.join(selectors)}: each of these chooses the sequences to train on; keep one of them"
        )
    for name, method in methods.items():
        for other, reason in method.excludes.items():
            if other in methods:
                raise UserError(f"method=[{name},{other}] is impossible: {reason}; keep one of them")
    own = _with_objective(methods)
    if len(own) > 1:
        raise UserError(f"method={','.join(own)}: each of these defines the loss; keep one of them")
    sizes = _draw_sizes(methods)
    if len(set(sizes.values())) > 1:
        raise UserError(f"methods draw for different numbers of sequences ({sizes}); set them to one number")


def _with_objective(methods: Mapping[str, Method]) -> list[str]:
    return [name for name, method in methods.items() if type(method).objective is not Method.objective]


def _draw_sizes(methods: Mapping[str, Method]) -> dict[str, int]:
    return {name: m.sequences_per_draw for name, m in methods.items() if m.sequences_per_draw is not None}


def _source(method: Method, run: "Run", draw: Draw) -> Draw:
    return lambda n: method.next_batch(run, draw, n)


def _inner_step(method: Method, run: "Run", batch: Batch, step: Step) -> Step:
    return lambda factor: method.update(run, batch, factor, step)
