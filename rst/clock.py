"""The clock of a training run: a budget, and a ledger of what it was spent on.

    clock = Clock({"main": table}, budget_s=24 * 3600, free=["selection"])
    while not clock.exhausted:
        ...                                                             # clock.progress drives every schedule
        clock.charge(Work("forward", 512, 128, 16), "selection")        # written down, but free here
        clock.charge(Work("forward_backward", 128, 128, 16))            # paid from the budget

The clock advances when it is charged and at no other moment, so a run that is killed and continued from ``state_dict``
sees exactly the times that an undisturbed run sees (unless its cost model reads the real time).
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypedDict

from rst.costs import WallClockCost
from rst.work import Kind, Work


class CostModel(Protocol):
    """Puts a price on work."""

    def seconds(self, work: Work) -> float:
        """What ``work`` costs, in seconds of the reference system; finite and not negative."""
        ...


class Count(TypedDict):
    """How much work an account saw."""

    passes: int
    sequences: int


class Clock:
    """Adds up the price of all work and says how much of the budget is spent.

    Attributes:
        costs: the cost model of each model that may be charged for.
        budget_s: what ``progress`` is measured against. Under ``StepsCost`` this and every other ``_s`` counts steps.
        stop_at_s: where to end earlier, with the schedule still laid out over the whole budget; None: at the budget.
        free: accounts that are written down in the ledger but not paid from the budget.
        spent_s: the sum of all charges to accounts that are not free.
        ledger: seconds by account, free accounts too.
        counts: passes and sequences by account and kind of work: ``counts["train"]["forward_backward"]["sequences"]``.
    """

    def __init__(
        self,
        costs: Mapping[str, CostModel],
        budget_s: float,
        stop_at_s: float | None = None,
        free: Collection[str] = (),
    ) -> None:
        """A clock at zero; ``costs`` has one cost model for each model that may be charged for.

        Raises:
            ValueError: a budget or an end that is not a positive, finite number.
        """
        for name, value in (("budget", budget_s), ("stop_at", stop_at_s)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} of {value}: must be positive and finite")
        self.costs = dict(costs)
        self.budget_s = budget_s
        self.stop_at_s = stop_at_s
        self.free = frozenset(free)
        self.spent_s = 0.0
        self.ledger: dict[str, float] = {}
        self.counts: dict[str, dict[Kind, Count]] = {}

    def charge(self, work: Work, account: str = "train") -> float:
        """Write ``work`` down in ``account`` and, unless that is free, pay for it. Returns its price in seconds.

        Raises:
            ValueError: no cost model for ``work.model``, or one that asks for a price that is not a finite number >= 0.
        """
        if work.model not in self.costs:
            raise ValueError(f"no cost model for model {work.model!r}; there are: {', '.join(sorted(self.costs))}")
        seconds = self.costs[work.model].seconds(work)
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{work} priced at {seconds} s: a price must be finite and not negative")
        self.pay(seconds, account)
        count = self.counts.setdefault(account, {}).setdefault(work.kind, Count(passes=0, sequences=0))
        count["passes"] += 1
        count["sequences"] += work.sequences
        return seconds

    def pay(self, seconds: float, account: str) -> None:
        """Write down a price that is known already, such as that of a model trained before; paid as ``charge`` pays.

        Raises:
            ValueError: a price that is not a finite number >= 0.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{seconds} s for {account}: a price must be finite and not negative")
        self.ledger[account] = self.ledger.get(account, 0.0) + seconds
        if account not in self.free:
            self.spent_s += seconds

    def restart(self) -> None:
        """Forget real time that nobody pays for, such as validation; it matters to wall-clock prices only."""
        for cost in self.costs.values():
            if isinstance(cost, WallClockCost):
                cost.restart()

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, in [0, 1]."""
        return min(1.0, self.spent_s / self.budget_s)

    @property
    def exhausted(self) -> bool:
        """Whether it is time to end: the budget is spent, or ``stop_at_s`` is reached."""
        end_s = self.budget_s if self.stop_at_s is None else min(self.budget_s, self.stop_at_s)
        return self.spent_s >= end_s

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain JSON values that restore this clock to the last bit."""
        counts = {
            account: {kind: dict(count) for kind, count in kinds.items()} for account, kinds in self.counts.items()
        }
        return {"spent_s": self.spent_s, "ledger": dict(self.ledger), "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``. Budget, end, costs and free accounts stay as this clock was made with."""
        self.spent_s = state["spent_s"]
        self.ledger = dict(state["ledger"])
        self.counts = {
            account: {
                kind: Count(passes=count["passes"], sequences=count["sequences"]) for kind, count in kinds.items()
            }
            for account, kinds in state["counts"].items()
        }
