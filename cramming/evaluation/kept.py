"""What jobs leave on the disk: ``jobs/<key>/job.json``, ``result.json`` and, while it is needed, ``model/``."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cramming import durable, faults
from cramming.evaluation.finished import JOBS, MODEL, RESULT
from cramming.evaluation.job import Job, JobResult
from cramming.recording.strict_json import dumps

ABOUT = "job.json"
ERROR = "error.log"
_REMOVING = f".{MODEL}.part"


def folder_of(suite_dir: Path, key: str) -> Path:
    """A job's folder."""
    return suite_dir / JOBS / key


def model_of(suite_dir: Path, key: str) -> Path:
    """Where a job's final model is, if it was kept."""
    return folder_of(suite_dir, key) / MODEL


def result_of(suite_dir: Path, job: Job, data_sha256: Mapping[str, str] | None) -> JobResult | None:
    """The result of a job that is done; None: it is to be done, again if need be.

    Args:
        suite_dir: where results are.
        job: with its key.
        data_sha256: by split, of the rows it is to be made of; None: whatever they were.
    """
    try:
        values = json.loads((folder_of(suite_dir, job.key) / RESULT).read_text(encoding="utf-8"))
        result = JobResult.of_json(values)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # absent or damaged: what is not whole does not count
    if result.key != job.key or not set(job.also) <= set(result.also) or not result.evaluations:
        return None
    if data_sha256 is not None and dict(result.data_sha256) != dict(data_sha256):
        return None
    return result


def made_of(suite_dir: Path, job: Job) -> Mapping[str, Any] | None:
    """Which rows a job was made of, as ``write`` was told; None: nobody knows."""
    try:
        about = json.loads((folder_of(suite_dir, job.key) / ABOUT).read_text(encoding="utf-8"))
        return dict(about["rows"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(suite_dir: Path, job: Job, result: JobResult, rows: Mapping[str, Any]) -> None:
    """Put a result on the disk; the job is done from then on.

    Args:
        suite_dir: where results are.
        job: what was done.
        result: what came out.
        rows: which rows it was made of.

    Raises:
        UserError: the disk is full.
    """
    folder = folder_of(suite_dir, job.key)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"job": asdict(job), "rows": dict(rows)}
    durable.write_file(folder / ABOUT, [(dumps(about, indent=2) + "\n").encode()], "job-about")
    durable.write_file(folder / RESULT, [(dumps(result.as_json(), indent=2) + "\n").encode()], "job-result")
    (folder / ERROR).unlink(missing_ok=True)


def write_error(suite_dir: Path, key: str, trace: str) -> Path:
    """Keep what a job failed with; returns where."""
    folder = folder_of(suite_dir, key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).write_text(trace, encoding="utf-8")
    return folder / ERROR


def tidy(suite_dir: Path, key: str, with_model: bool) -> None:
    """Leave of a job that is done what is to stay; what a kill left half-written or half-removed goes too.

    Args:
        suite_dir: where results are.
        key: of a job that nobody is doing.
        with_model: whether its model stays, if it was kept.
    """
    folder = folder_of(suite_dir, key)
    if not with_model and (folder / MODEL).is_dir():
        shutil.rmtree(folder / _REMOVING, ignore_errors=True)
        durable.replace(folder / MODEL, folder / _REMOVING, "job-model-drop")  # half a model does not pass for one
        faults.point("job-model-dropped")
    for unfinished in folder.glob(".*"):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
