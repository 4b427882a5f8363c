"""Commands one after another, each bounded, within a budget of time: what fails or hangs loses nothing else.

What became of each is kept in ``stages.json`` as it happens, so that the same call later goes on with what is missing,
on another machine too, if the folder was taken there.
"""

import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.text import duration

REPOSITORY = Path(__file__).resolve().parents[1]
PASSED, FAILED, LEFT_OUT, NOT_HERE = "passed", "failed", "left out", "not here"
_FILE = "stages.json"
_SHOWN_LINES = 20  # of what a command printed, kept as its result where it writes none


@dataclass(frozen=True)
class Stage:
    """A command.

    Attributes:
        name: of its files.
        command: its words; it is started in the repository.
        expected_s: about how long it takes.
        bound_s: when it is stopped.
        lacking: why it cannot run here; nothing: it can.
        writes: whether it is told ``out=`` and writes its own JSON.
    """

    name: str
    command: tuple[str, ...]
    expected_s: float
    bound_s: float
    lacking: str = ""
    writes: bool = True

    def words(self, folder: Path) -> list[str]:
        """With the file for its result, where it writes one."""
        return [*self.command, *([f"out={self.out(folder)}"] if self.writes else [])]

    def said(self, folder: Path) -> list[str]:
        """The same words wherever the folder, the repository and the interpreter lie."""
        first = ["python"] if self.command[0] == sys.executable else list(self.command[:1])
        rest = self.words(folder)[1:]
        return [*first, *(word.replace(f"{folder}/", "").replace(f"{REPOSITORY}/", "") for word in rest)]

    def out(self, folder: Path) -> Path:
        """The JSON of its result."""
        return folder / f"{self.name}.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a stage; ``command`` as ``Stage.said`` has it, ``stopped``: it did not end by itself."""

    state: str
    why: str = ""
    took_s: float = 0.0
    command: list[str] = field(default_factory=list)
    ended: str = ""
    stopped: bool = False


def run(
    stages: Sequence[Stage],
    folder: Path,
    *,
    budget_s: float,
    again: bool = False,
    tell: Callable[[str], None] = print,
    after: Callable[[Mapping[str, Outcome]], None] = lambda outcomes: None,
) -> dict[str, Outcome]:
    """Run what has not passed yet, in order; what failed in an earlier call comes after everything else.

    Args:
        stages: their names differ.
        folder: for results, logs and what became of each.
        budget_s: a stage is begun if what is left of it is as much as the stage is expected to take.
        again: also run what has passed.
        tell: told about each stage before and after it.
        after: called after each stage, with all outcomes so far; those of an earlier call among them.

    Returns:
        What became of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = _kept(folder)
    expected_s = {stage.name: _expected_s(stage, known.get(stage.name), folder) for stage in stages}
    waiting = [stage for stage in stages if again or not _is_done(stage, known.get(stage.name), folder)]
    if not again:
        waiting.sort(key=lambda stage: stage.name in known and known[stage.name].state == FAILED)
    outcomes = {stage.name: known[stage.name] for stage in stages if stage not in waiting}
    for name in outcomes:
        tell(f"{name}: passed before")
    ends, begun = time.monotonic() + budget_s, 0
    for number, stage in enumerate(waiting, start=1):
        left_s, needed_s = ends - time.monotonic(), expected_s[stage.name]
        if stage.lacking:
            outcome = Outcome(NOT_HERE, stage.lacking)
        elif needed_s > left_s and _is_done(stage, known.get(stage.name), folder):
            outcome = known[stage.name]  # asked for again, and what there is stays
        elif needed_s > left_s:
            outcome = Outcome(LEFT_OUT, f"needs about {duration(needed_s)}, {duration(max(0.0, left_s))} were left")
        else:
            later_s = _fitting_s([expected_s[s.name] for s in waiting[number - 1 :] if not s.lacking], left_s)
            tell(
                f"[{number} of {len(waiting)}] {stage.name}: about {duration(needed_s)}; "
                f"about {duration(later_s)} to the end"
            )
            outcome = _outcome(stage, folder, min(stage.bound_s, left_s))
            if outcome.stopped and begun and left_s < stage.bound_s:  # it may have needed no more than it may take
                outcome = replace(outcome, state=LEFT_OUT, why=f"{outcome.why}, when the time was up")
            begun += 1
        outcomes[stage.name] = outcome
        took = f" in {duration(outcome.took_s)}" if outcome.took_s else ""
        tell(f"{stage.name}: {outcome.state}{took}{f': {outcome.why}' if outcome.why else ''}")
        known[stage.name] = outcome
        _keep(known, folder)
        after(outcomes)
    return {stage.name: outcomes[stage.name] for stage in stages}


def _outcome(stage: Stage, folder: Path, bound_s: float) -> Outcome:
    """Run a command; what it printed is its log, and its result if it writes none."""
    stage.out(folder).unlink(missing_ok=True)  # of an earlier attempt
    log, words = folder / f"{stage.name}.log", stage.words(folder)
    began = time.monotonic()
    with open(log, "wb") as printed:
        process = subprocess.Popen(
            words,
            cwd=REPOSITORY,
            stdout=printed,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            process_group=0,  # of this session still: what ends the session's processes ends it, too
        )
        why, code = "", 0
        try:
            code = process.wait(bound_s)
        except subprocess.TimeoutExpired:
            why = f"stopped after {duration(bound_s)}"
        finally:
            _end(process)
    took_s = time.monotonic() - began
    lines = log.read_text(errors="replace").splitlines()
    stopped = bool(why)
    if code:
        why = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")
        why = f"{why.removeprefix('error: ')} (ended with {code})"
    if not stage.writes:
        result = {"printed": lines[-_SHOWN_LINES:], "command": shlex.join(stage.said(folder))}
        write_atomically(stage.out(folder), json.dumps(result, indent=1).encode())
    now = datetime.datetime.now().isoformat(timespec="seconds")
    return Outcome(FAILED if why else PASSED, why, took_s, stage.said(folder), now, stopped)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The command and whatever it started, which is a group of its own, unless it has ended by itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_done(stage: Stage, before: Outcome | None, folder: Path) -> bool:
    """Whether the same command has passed, and its result is there."""
    return (
        before is not None
        and before.state == PASSED
        and before.command == stage.said(folder)
        and stage.out(folder).is_file()
    )


def _expected_s(stage: Stage, before: Outcome | None, folder: Path) -> float:
    """What the same command took before, or what was thought."""
    known = before is not None and before.state == PASSED and before.command == stage.said(folder)
    return before.took_s if before is not None and known else stage.expected_s


def _fitting_s(expected_s: Sequence[float], left_s: float) -> float:
    """What of these, in order, fits one after another."""
    total_s = 0.0
    for one_s in expected_s:
        total_s += one_s if total_s + one_s <= left_s else 0.0
    return total_s


def _kept(folder: Path) -> dict[str, Outcome]:
    """What became of stages in earlier calls."""
    file = folder / _FILE
    if not file.is_file():
        return {}
    try:
        kept: dict[str, Any] = json.loads(file.read_text())
        return {name: Outcome(**values) for name, values in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be used ({error}); delete it, and all stages run again") from error


def _keep(outcomes: Mapping[str, Outcome], folder: Path) -> None:
    values = {name: asdict(outcome) for name, outcome in outcomes.items()}
    write_atomically(folder / _FILE, json.dumps(values, indent=1).encode())
