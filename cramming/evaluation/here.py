"""A suite's jobs in processes of this machine: what they have in common, and what is put away behind them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cramming.evaluation import means
from cramming.evaluation.composing import UNTRAINED, origin
from cramming.evaluation.config import EvaluateConfig, Setting
from cramming.evaluation.executor import Outcome
from cramming.evaluation.live import Display
from cramming.evaluation.preparing import Material
from cramming.evaluation.runner import Runner
from cramming.evaluation.subject import Subject
from cramming.evaluation.tasks.task import Task
from cramming.evaluation.worker import LOG, Shared, without_tensors

START = "start.safetensors"  # the tensors all jobs begin with, while they run


@contextmanager
def running_here(
    config: EvaluateConfig,
    subject: Subject,
    *,
    suite_dir: Path,
    tasks: Mapping[str, Task],
    made: Material,
    planned: Sequence[Setting],
    trials: int,
    display: Display,
    on_end: Callable[[Outcome], None],
    own: Path,
) -> Iterator[Runner]:
    """What runs the jobs of a call on this machine.

    Args:
        config: of the call.
        subject: the checkpoint.
        suite_dir: where results go.
        tasks: by name.
        made: encoded rows.
        planned: the setting of every job.
        trials: how many of them are trials.
        display: shows how they stand.
        on_end: told of every job that is done.
        own: folder of what this process needs meanwhile, and of how it computes.
    """
    how, need = _means(config, subject, planned, trials, own)
    start = own / START
    shared = Shared(
        suite_dir=suite_dir,
        weights=without_tensors(subject.weights, start),
        tensors=start,
        untrained=config.weights == UNTRAINED,
        precision=how.precision,
        threads=how.threads,
        microbatch_size=how.microbatch_size,
        rows=origin(config),
    )
    try:
        with Runner(
            suite_dir=suite_dir,
            tasks=tasks,
            material=made,
            save_models=config.eval.save_models,
            display=display,
            on_end=on_end,
            shared=shared,
            means=how,
            need=need,
        ) as runner:
            yield runner
    finally:
        start.unlink(missing_ok=True)
        log = suite_dir / LOG
        if log.is_file() and not log.stat().st_size:
            log.unlink()


def _means(
    config: EvaluateConfig, subject: Subject, planned: Sequence[Setting], trials: int, own: Path
) -> tuple[means.Means, float]:
    """How jobs compute, stored; and the memory one takes, as far as is known."""
    impl, lines = config.impl, list[str]()
    microbatch = None if impl.microbatch_size == "auto" else impl.microbatch_size
    need = means.need_of(subject.weights, planned, microbatch)
    how = means.resolved(impl, means.read(own), len(planned), need, lines)
    means.write(own, how)
    print(*lines, f"{subject.title}: {counted(planned, trials)}, {means.said(how)}", sep="\n", flush=True)
    return how, need


def counted(planned: Sequence[Setting], trials: int) -> str:
    """How many jobs there are, for people."""
    return f"{len(planned)} job{'s' * (len(planned) != 1)}" + (f", {trials} of them trials" if trials else "")
