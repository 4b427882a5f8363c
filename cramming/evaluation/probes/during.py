"""Probes inside pretraining (``impl.probes=[...]``): asked whenever the run validates, and charged to nobody.

Their answers go to ``metrics.jsonl`` under ``probe/<label>`` and, whole, to the run's ``probes.json``.
"""

import io
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cramming.config import PretrainConfig
from cramming.errors import UserError
from cramming.parallel.ranks import here
from cramming.progress import PlainProgress
from cramming.recording.logfile import FILE_ONLY

if TYPE_CHECKING:
    from cramming.train import Run

# What probes are made of (scikit-learn, scipy, the tasks) is imported only where some are asked for.

_log = logging.getLogger(__name__)
_EVERY_S = 30.0  # between lines of progress


def refuse(config: PretrainConfig) -> None:
    """Find what is wrong with the probes asked for before a run begins.

    Raises:
        UserError: an unknown probe, or a file or task that is missing or cannot be used.
    """
    impl = config.impl
    if not impl.probes:
        return
    from cramming.evaluation.probes import probing

    probing.read(impl.probes, impl.probe, Path(config.data_dir))


def probed(run: "Run", run_dir: Path) -> dict[str, float | None]:
    """Ask the run's probes about the weights its method lends for evaluation: score by ``probe/<label>``.

    Probes that cannot be asked end no run: a warning says why.
    """
    impl = run.config.impl
    if not impl.probes:
        return {}
    from cramming.evaluation.probes import probing
    from cramming.evaluation.probes.reader import Reader
    from cramming.evaluation.probes.result import FILE, keep

    began_s = time.monotonic()
    stream: Any = _ToLog()

    def failed(what: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        trace = None if isinstance(error, UserError) else error  # for the file
        _log.warning("probe %s has no answer at step %d: %s", what, run.step, reason, exc_info=trace)

    inputs = None
    try:
        inputs = probing.read(impl.probes, impl.probe, Path(run.config.data_dir))
    except UserError as error:  # of files that have changed since the run began
        failed(", ".join(impl.probes), error)
    if here().largest(int(inputs is None)):  # passes of ranks that share a model are made together, or not at all
        return {}
    assert inputs is not None
    try:
        with run.method.evaluating(run):
            results = probing.ask(Reader.of_run(run), inputs, PlainProgress(stream, _EVERY_S), failed)
        if here().main:
            keep(run_dir / FILE, run.step, results)
    except UserError as error:
        failed(", ".join(impl.probes), error)
        return {}
    said = ", ".join(f"{result.label} {result.shown}" for result in results)
    _log.info("probes at step %d: %s (%.1f s)", run.step, said or "none", time.monotonic() - began_s)
    return {f"probe/{result.label}": result.score for result in results}


class _ToLog(io.TextIOBase):
    """A stream whose lines are log messages: they reach ``run.log``, where a bar would not."""

    def write(self, text: str) -> int:
        if text.strip():
            waiting = "ETA" in text  # someone may be; that a stage is done is for the file alone
            _log.info("%s", text.rstrip("\n"), extra=None if waiting else FILE_ONLY)
        return len(text)
