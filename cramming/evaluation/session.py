"""A suite from its checkpoint to its tables: one call of ``eval.py``."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from cramming import durable, folder
from cramming.errors import UserError
from cramming.evaluation import baselines, choosing, kept, means, plan, results
from cramming.evaluation.board import Board
from cramming.evaluation.composing import Asked, origin
from cramming.evaluation.config import Setting
from cramming.evaluation.executor import Executor, Outcome
from cramming.evaluation.finished import EVALUATIONS, JOBS, SUITE
from cramming.evaluation.here import counted, running_here
from cramming.evaluation.job import Job, JobResult
from cramming.evaluation.live import Display, display_for
from cramming.evaluation.preparing import Material, prepare
from cramming.evaluation.results import Failure, Results
from cramming.evaluation.spread import SHARES, Spread
from cramming.evaluation.subject import Subject, longest, subject_of
from cramming.evaluation.tasks.task import Task
from cramming.evaluation.tracking import Tracking
from cramming.evaluation.worker import LOG
from cramming.interruption import sigterm_stops
from cramming.progress import progress_for
from cramming.recording.strict_json import dumps

_BASELINES = "baselines.json"
_MADE = ("results.json", "results.csv", "results.md", _BASELINES, SUITE, means.FILE, LOG)


@dataclass(frozen=True)
class Scored:
    """What came of one call: the results, and the jobs that have none."""

    name: str
    results: Results
    failures: Sequence[Failure]


def score(call: Asked) -> None:
    """Fine-tune and score; prints the table.

    Raises:
        UserError: what cannot be used, before any job; in the end, which jobs failed.
    """
    failures = scored(call).failures
    if failures:
        first = failures[0]
        count = f"{len(failures)} jobs failed, the first: " if failures[1:] else ""
        raise UserError(f"{count}{first.task}, seed {first.seed}: {first.reason}")


def scored(call: Asked) -> Scored:
    """The same; the jobs that failed are in what is returned.

    Raises:
        UserError: what cannot be used, before any job.
    """
    config, notes = call.config, list[str]()
    if call.cluster is not None:
        call.cluster.check()
    tasks = plan.tasks_needed(config, notes)
    subject = subject_of(config)
    settings = plan.settings_of(config.eval, tasks.values(), partial(longest, subject.weights), call.typed, notes)
    if call.cluster is None:  # what a machine of the cluster can do is known there
        means.check(config.impl)
    suite_dir = Path(config.base_dir) / subject.name / EVALUATIONS / subject.suite
    with folder.held(suite_dir), sigterm_stops():
        if not config.resume:
            start_over(suite_dir)
        durable.write_atomically(suite_dir / SUITE, (dumps(asdict(config.eval), indent=2) + "\n").encode())
        print(*notes, sep="\n", end="\n" if notes else "", flush=True)
        assert subject.weights.tokenizer is not None
        made = prepare(config, tasks, settings, subject.weights.tokenizer, progress_for())
        print(*made.notes, sep="\n", end="\n" if made.notes else "", flush=True)
        suite = _Suite(call, subject, suite_dir, tasks, settings, made)
        if set(suite.asked) <= set(made.failures):  # what an earlier call brought stays as it is
            raise UserError(made.failures[suite.asked[0]])
        outcomes = suite.run()
        found = suite.collected(outcomes, [*notes, *dict.fromkeys(made.notes)])
        results.write(suite_dir, found.results)
        print(results.printed(found.results))
        print(f"results: {suite_dir}/results.json, .csv, .md")
    return found


def start_over(suite_dir: Path) -> None:
    """Remove what was made there before (``resume=false``)."""
    for name in (JOBS, SHARES, "wandb"):
        shutil.rmtree(suite_dir / name, ignore_errors=True)
    for name in _MADE:
        (suite_dir / name).unlink(missing_ok=True)


@dataclass
class _Suite:
    """One suite, one checkpoint, ready to run.

    Attributes:
        call: what was asked for.
        subject: the checkpoint.
        suite_dir: where results go.
        tasks: that are asked for, and those they need, which come first.
        settings: of each task with a model of its own.
        made: encoded rows.
        selections: how settings were chosen, where a search did.
    """

    call: Asked
    subject: Subject
    suite_dir: Path
    tasks: Mapping[str, Task]
    settings: Mapping[str, Setting]
    made: Material
    selections: dict[str, results.Selection] = field(default_factory=dict)

    @property
    def asked(self) -> list[str]:
        """Tasks whose scores are wanted."""
        config = self.call.config.eval
        named = [name for name in config.tasks if name in self.tasks]
        return named or [config.task_name]

    def run(self) -> list[Outcome]:
        """Choose settings, where that is asked for, and do the jobs that are reported."""
        config = self.call.config
        usable = [n for n in self.asked if self.tasks[n].trained_by is None or n not in self.made.failures]
        make = partial(plan.final_jobs, config.eval, self.tasks, asked=usable, weights_sha256=self.subject.sha256)
        trials = [trial for tried in choosing.trials_of(config.eval, self.settings).values() for trial in tried]
        planned = [*trials, *(job.setting for job in make(self.settings))]
        display = display_for(f"{self.subject.name}: {config.eval.suite}", Board(self.tasks))
        try:
            with (
                Tracking(config, self.suite_dir, self.subject.name, self.tasks) as tracking,
                display,
                self._executor(planned, len(trials), display, tracking.ended) as executor,
            ):
                chosen = choosing.choose(
                    config.eval, self.tasks, self.settings, usable, self.subject.sha256, do=executor.run
                )
                self.settings, self.selections = chosen.settings, chosen.selections
                self.made.failures |= chosen.failures
                self.made.notes += chosen.notes
                outcomes = executor.run(make(self.settings))
                executor.finish()
                return outcomes
        except KeyboardInterrupt:
            print("stopped: jobs that are over are kept, and the same command goes on", file=sys.stderr, flush=True)
            raise

    @contextmanager
    def _executor(
        self, planned: Sequence[Setting], trials: int, display: Display, on_end: Callable[[Outcome], None]
    ) -> Iterator[Executor]:
        """What does the jobs: processes of this machine, or the cluster that was named."""
        config, on = self.call.config, self.call.cluster
        if on is None:
            with running_here(
                config, self.subject, suite_dir=self.suite_dir, tasks=self.tasks, made=self.made, planned=planned,
                trials=trials, display=display, on_end=on_end, own=self.suite_dir,
            ) as runner:  # fmt: skip
                yield runner
            return
        print(f"{self.subject.title}: {counted(planned, trials)}, in {on.shares} shares at most", flush=True)
        with on:
            yield Spread(
                suite_dir=self.suite_dir,
                tasks=self.tasks,
                material=self.made,
                save_models=config.eval.save_models,
                display=display,
                on_end=on_end,
                call=self.call,
                name=self.subject.name,
                on=on,
            )

    def collected(self, outcomes: Sequence[Outcome], notes: Sequence[str]) -> Scored:
        """All that is known of the suite: of this call, and of earlier ones with the same settings and rows."""
        config = self.call.config
        failures = [Failure(o.job.task, o.job.seed, o.reason) for o in outcomes if o.result is None]
        unusable = [n for n in self.asked if self.tasks[n].trained_by is not None and n in self.made.failures]
        others = {name: Failure(name, self.settings[str(self.tasks[name].trained_by)].seeds[0], why)
                  for name, why in self.made.failures.items() if name in unusable}  # fmt: skip
        earlier_tasks, earlier = self._earlier({outcome.job.key for outcome in outcomes})
        tasks = {**earlier_tasks, **{name: self.tasks[name] for name in self.asked if name not in others}}
        scores = self._baselines(tasks)
        extra = results.Extra(
            failures=failures,
            selection=self.selections,
            provenance={
                "title": self.subject.title,
                "name": self.subject.name,
                "weights": config.weights,
                "weights_sha256": self.subject.sha256,
                "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
            },
            notes=[*notes, *(f"{self.tasks[name].title}: {failure.reason}" for name, failure in others.items())],
        )
        found = [outcome.result for outcome in outcomes if outcome.result is not None]
        order = [name for name in dict.fromkeys([*self.call.tasks, *tasks]) if name in tasks]
        together = results.collect(config.eval, [tasks[name] for name in order], [*earlier, *found], scores, extra)
        return Scored(self.subject.name, together, [*failures, *others.values()])

    def _earlier(self, known: Collection[str]) -> tuple[dict[str, Task], list[JobResult]]:
        """Tasks of the suite that this call did not ask for and an earlier one did, with what came of them.

        Args:
            known: keys of the jobs of this call, which are left out of what is returned.
        """
        config, there = self.call.config, set(self.asked)
        if set(self.call.tasks) <= there:
            return {}, []
        whole = replace(config, eval=replace(config.eval, tasks=list(self.call.tasks)))
        tasks = plan.tasks_needed(whole, [])
        weights = self.subject.weights
        settings = plan.settings_of(whole.eval, tasks.values(), partial(longest, weights), (), [])
        chosen = choosing.choose(
            whole.eval,
            tasks,
            settings,
            whole.eval.tasks,
            self.subject.sha256,
            do=lambda jobs, _: [self._kept(job) for job in jobs],
            whole=True,
        )
        self.selections = {**chosen.selections, **self.selections}
        jobs = plan.final_jobs(whole.eval, tasks, chosen.settings, whole.eval.tasks, self.subject.sha256)
        found: dict[str, list[JobResult]] = {}
        for job in jobs:
            result = None if job.task in there else self._kept(replace(job, also=())).result
            if result is not None:
                found.setdefault(job.task, []).append(result)
        shown = {name: tasks[name] for name in self.call.tasks if name in found}
        for name, task in tasks.items():
            trainer = found.get(str(task.trained_by), [])
            if name not in there and trainer and all(name in result.also for result in trainer):
                shown[name] = task
        return shown, [result for own in found.values() for result in own if result.key not in known]

    def _kept(self, job: Job) -> Outcome:
        """What an earlier call left of a job, on the rows of this one."""
        result = kept.result_of(self.suite_dir, job, None)
        same = kept.made_of(self.suite_dir, job) == json.loads(dumps(origin(self.call.config)))
        return Outcome(job, result if same else None, "it is not done")

    def _baselines(self, tasks: Mapping[str, Task]) -> dict[str, baselines.Baselines]:
        """What no reading at all would score; made once for the same rows."""
        file = self.suite_dir / _BASELINES
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        for name, task in tasks.items():
            splits = self.made.splits.get(name)
            train = self.made.splits.get(task.trained_by or name, {}).get("train")
            if splits is None or train is None:
                continue  # as it was, if an earlier call asked for it
            evaluated = {split: splits[split] for split in task.evaluated}
            rows = [train.sha256, *(encoded.sha256 for encoded in evaluated.values())]
            if known.get(name, {}).get("rows") != rows:
                known[name] = {"rows": rows, "scores": baselines.of_splits(task, train, evaluated)}
        durable.write_atomically(file, (dumps(known, indent=1) + "\n").encode())
        return {name: known[name]["scores"] for name in tasks if name in known}
