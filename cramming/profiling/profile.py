"""``impl.profile=true``: a few steps of a run, timed and traced, and what came out in ``<run>/profile``.

After some steps to warm up, one to three steps are traced and the others timed, ``impl.profile_steps`` in all. Shares
of phases are those of the steps that were timed; the trace says how a phase divides among operators
(``operators.py``). Then the products of one step are timed by themselves (``limit.py``). No weight is touched, no
random number drawn, nothing charged; under ``rst=wallclock``, what tracing takes passes like any other time.

A run is profiled once. A process that ends in between leaves nothing, and the next one begins anew; a run that ends in
between is profiled with the steps it had.
"""

import gzip
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from cramming.build import Parts
from cramming.durable import room_for, write_atomically
from cramming.model import Model
from cramming.precision import DTYPES
from cramming.profiling import operators
from cramming.profiling.limit import limit_s
from cramming.profiling.page import markdown, plot, verdict
from cramming.profiling.phases import (
    BACKWARD,
    DATA,
    FORWARD,
    OPTIMIZER,
    OTHER,
    UNWATCHED,
    Marker,
    Pass,
    Timeline,
    marker,
)
from cramming.recording.environment import environment, git_revision
from cramming.recording.strict_json import dumps
from cramming.train import Run

_log = logging.getLogger(__name__)
WARM_UP = 5  # steps of a process: compiling, caches, the optimizer's state
FOLDER, FILE, TRACE = "profile", "profile.json", "trace.json.gz"
_TRACED_STEPS, _TRACED_PASSES = 3, 48  # at most: a trace is to be opened, and this process has to read it
_TOP = 25  # operators
_SPREAD = 0.15  # of the quartiles of steps: beyond, the machine had other work

Limit = Callable[[Sequence[Pass]], float | None]


class NoProfile:
    """Of a run that is not profiled now; it may have been before.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / FOLDER

    def step_begins(self) -> None:
        """The loop begins, or goes on after something that is no part of a step."""

    def step_ended(self, step: int) -> None:
        """The loop is done with a step, or with a part of one that a method has deferred."""

    def close(self) -> None:
        """Whatever happened."""

    def finish(self) -> dict[str, Any] | None:
        """The run is at its end: what its summary says about its profile, if there is one."""
        try:
            found = json.loads((self.folder / FILE).read_text())
            return {key: found[key] for key in ("verdict", "share_of_limit", "largest_waste", "steps")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            _log.warning("%s is damaged: delete it and go on with impl.profile=true", self.folder / FILE)
            return None


class Profile(NoProfile):
    """Of a run that is profiled now.

    Args:
        run: at its beginning, or resumed.
        run_dir: its folder.
        steps: how many to time and trace.
        limit: seconds of what passes multiply; None if there is no memory to find out.
        about: of the machine and the software, for ``profile.json``.
        clock: of the device.
    """

    def __init__(
        self,
        run: Run,
        run_dir: Path,
        *,
        steps: int,
        limit: Limit,
        about: Mapping[str, Any],
        clock: Marker | None = None,
    ) -> None:
        super().__init__(run_dir)
        self._run, self._steps, self._limit, self._about = run, steps, limit, about
        self._timeline = Timeline(
            clock or marker(run.engine.device), lambda: run.model.active_layers, self._pass_begins
        )
        run.engine.phases = self._timeline
        self._step = run.step
        self._warm, self._passes = 0, 0  # steps so far, passes of the latest
        self._traced: list[dict[str, float]] = []  # seconds of the phases of each step
        self._timed: list[dict[str, float]] = []
        self._tracer: torch.profiler.profile | None = None
        self._traced_share = 1.0  # of a step's passes
        self._trace_written = False
        self._over = False
        _log.info("profiling %d steps, after %d to warm up", steps, WARM_UP)

    def step_begins(self) -> None:
        """See ``NoProfile``."""
        if self._over:
            return
        if self._warm == WARM_UP and self._tracer is None and self._passes <= _TRACED_PASSES:
            self._start_tracing()
        self._timeline.begin()

    def step_ended(self, step: int) -> None:
        """See ``NoProfile``; writes the profile after the last of its steps."""
        if self._over:
            return
        self._timeline.pause()
        if step == self._step:
            return
        self._step = step
        row = self._timeline.end()
        self._passes = len(self._timeline.passes)
        if self._warm < WARM_UP:
            self._warm += 1
        elif self._tracer is not None and not self._trace_written:
            self._traced.append(row)
            wanted = min(_TRACED_STEPS, self._steps, max(1, _TRACED_PASSES // max(1, self._passes)))
            if len(self._traced) >= wanted:
                self._stop_tracing()
        else:
            self._timed.append(row)
        if len(self._traced) + len(self._timed) >= self._steps:
            self._write()

    def close(self) -> None:
        """Stop listening; what is not complete is dropped."""
        self._over = True
        self._run.engine.phases = UNWATCHED
        if self._tracer is not None and not self._trace_written:
            self._tracer.stop()
            self._trace_written = True

    def finish(self) -> dict[str, Any] | None:
        """Write the profile of a run that ended before it had all steps."""
        if not self._over:
            if self._traced or self._timed:
                self._write()
            else:
                _log.warning("the run ended within the %d steps to warm up: no profile", WARM_UP)
                self.close()
        return super().finish()

    def _pass_begins(self, number: int) -> None:
        """Of steps with many passes, the last ones alone are traced, and the update after them."""
        if self._warm < WARM_UP or self._tracer is not None or self._passes <= _TRACED_PASSES:
            return
        if number > self._passes - _TRACED_PASSES:
            self._traced_share = _TRACED_PASSES / self._passes
            self._start_tracing()

    def _start_tracing(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._run.engine.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # of the tracer, which says hello on the screen
        self._tracer = torch.profiler.profile(activities=activities)
        self._tracer.start()
        self._timeline.annotated = True

    def _stop_tracing(self) -> None:
        assert self._tracer is not None
        self._timeline.annotated = False
        self._tracer.stop()
        self._trace_written = True
        file = self.folder / TRACE
        with room_for(file):
            self.folder.mkdir(exist_ok=True)
            self._tracer.export_chrome_trace(str(file))

    def _write(self) -> None:
        """Everything that was found, ``profile.json`` last."""
        if self._tracer is not None and not self._trace_written:
            self._stop_tracing()
        self.close()
        self.folder.mkdir(exist_ok=True)
        found = self._found()
        write_atomically(self.folder / "profile.md", markdown(found).encode())
        plot(found, self.folder / "profile.png")
        write_atomically(self.folder / FILE, (dumps(found, indent=2) + "\n").encode())
        _log.info("profile: %s (%s)", found["verdict"], self.folder / "profile.md")
        if found["traced_steps"]:
            _log.info("%s opens in https://ui.perfetto.dev or chrome://tracing", self.folder / TRACE)

    def _found(self) -> dict[str, Any]:
        rows, traced = self._timed or self._traced, self._operators()
        steps_s = [sum(row.values()) for row in rows]
        step_s, notes = median(steps_s), []
        phases = {name: sum(row.get(name, 0.0) for row in rows) / sum(steps_s) for name in _names(rows)}
        shares = operators.shares(phases, traced, self._traced_s() if self._run.engine.device.type == "cuda" else {})
        limit_s = self._limit(self._timeline.passes)
        low, _, high = quantiles(steps_s, n=4, method="inclusive") if len(steps_s) > 1 else (step_s,) * 3
        if not self._timed:
            notes.append("no step was timed without the tracer: all are slower than they would be")
        if not traced:
            notes.append("no step was traced: give the run more steps to see its operators")
        elif self._traced_share < 1:
            notes.append(f"the trace has the last {_TRACED_PASSES} of the {self._passes} passes of a step")
        if high - low > _SPREAD * step_s:
            notes.append("the quartiles of the steps lie far apart: the machine had other work, or steps differ")
        unpriced = sorted(set(phases) & set(self._run.method.accounts) - {p.account for p in self._timeline.passes})
        if unpriced:
            notes.append(f"the limit does not have the products of {', '.join(unpriced)}")
        if limit_s is None:
            notes.append("there was no memory to time the products alone")
        kinds = operators.by_kind(shares)
        top = sorted((one for one in shares if one[0].calls), key=lambda one: -one[1])
        found: dict[str, Any] = {
            "steps": len(self._timed) + len(self._traced),
            "timed_steps": len(self._timed),
            "traced_steps": len(self._traced),
            "warm_up_steps": WARM_UP,
            "last_step": self._step,
            "passes": len(self._timeline.passes),
            "microbatch_size": self._run.engine.microbatch_size,
            "precision": self._run.engine.precision,
            "step_s": step_s,
            "step_s_quartiles": [low, high],
            "limit_s": limit_s,
            "share_of_limit": None if limit_s is None else limit_s / step_s,
            "phases": phases,
            "classes": kinds,
            "operators": [
                {"name": o.name, "class": o.kind, "self_s": o.seconds, "calls": o.calls, "share": share}
                for o, share in _merged(top)[:_TOP]
            ],
            "notes": notes,
            **self._about,
        }
        found["largest_waste"] = _largest_waste(kinds, found["share_of_limit"])
        return {"verdict": verdict(found), **found}

    def _operators(self) -> operators.Traced:
        if not self._traced:
            return {}
        with gzip.open(self.folder / TRACE, "rt", encoding="utf-8") as file:
            return operators.traced(json.load(file)["traceEvents"])

    def _traced_s(self) -> dict[str, float]:
        """Seconds of each phase while it was traced."""
        names = _names(self._traced)
        whole = {OPTIMIZER: 1.0, OTHER: 1.0}
        return {
            name: sum(row.get(name, 0.0) for row in self._traced) * whole.get(name, self._traced_share)
            for name in names
        }


def profile_of(run: Run, run_dir: Path, device: str) -> NoProfile:
    """What ``impl.profile`` asks for: the profile of a run that has none yet.

    Args:
        run: at its beginning, or resumed.
        run_dir: its folder.
        device: what it computes on, in words.
    """
    impl, engine = run.config.impl, run.engine
    if not impl.profile:
        return NoProfile(run_dir)
    if (run_dir / FOLDER / FILE).exists():
        _log.info("%s is profiled already: delete %s to do it again", run_dir.name, run_dir / FOLDER)
        return NoProfile(run_dir)
    parts = Parts(run.config, run.model.vocab_size, engine.device)

    def build() -> Model:
        return parts.model().to(DTYPES[engine.precision])

    about = {"git_revision": git_revision(), "environment": environment(device)}
    limit: Limit = partial(limit_s, build=build, microbatch_size=engine.microbatch_size)
    return Profile(run, run_dir, steps=impl.profile_steps, limit=limit, about=about)


def _names(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Phases in the order in which a step has them; those of other accounts come with the data that they choose."""
    found = {name for row in rows for name in row}
    own = sorted(found - {DATA, FORWARD, BACKWARD, OPTIMIZER, OTHER})
    return [name for name in (DATA, *own, FORWARD, BACKWARD, OPTIMIZER, OTHER) if name in found]


def _merged(top: Sequence[tuple[operators.Operator, float]]) -> list[tuple[operators.Operator, float]]:
    """One entry for an operator of one class, whatever phases it is in; the largest first."""
    sums: dict[tuple[str, str], tuple[float, int, float]] = {}
    for operator, share in top:
        seconds, calls, shares = sums.get((operator.name, operator.kind), (0.0, 0, 0.0))
        sums[operator.name, operator.kind] = (seconds + operator.seconds, calls + operator.calls, shares + share)
    merged = [(operators.Operator(n, k, seconds, calls), share) for (n, k), (seconds, calls, share) in sums.items()]
    return sorted(merged, key=lambda one: -one[1])


def _largest_waste(kinds: Mapping[str, float], share_of_limit: float | None) -> dict[str, Any] | None:
    """The class that takes the largest share of a step; of products and attention, what is above the limit."""
    wasted = {kind: share for kind, share in kinds.items() if kind not in (operators.PRODUCTS, operators.ATTENTION)}
    needed = sum(kinds.get(kind, 0.0) for kind in (operators.PRODUCTS, operators.ATTENTION))
    if share_of_limit is not None and needed > share_of_limit:
        wasted["products and attention above the limit"] = needed - share_of_limit
    if not wasted:
        return None
    kind = max(wasted, key=lambda kind: wasted[kind])
    return {"class": kind, "share": wasted[kind]}
