"""``python -m cramming.evaluation.submit name=x``: the zip that the test server of GLUE or SuperGLUE takes."""

import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cramming.cli import load_schemas, parse, run_command
from cramming.durable import write_file
from cramming.errors import UserError
from cramming.evaluation import finished
from cramming.evaluation.submission import check
from cramming.evaluation.submission.benchmarks import BENCHMARKS, Benchmark, File, benchmark_of
from cramming.recording.strict_json import dumps
from cramming.suggest import nearest

_USAGE = """\
Answer the test sets of GLUE or SuperGLUE with a run's fine-tuned models, and write the zip that the server takes.

  python -m cramming.evaluation.submit name=first suite=glue_sane
  python -m cramming.evaluation.submit name=first suite=superglue eval.data_dir=my/superglue out=first.zip
  python -m cramming.evaluation.submit check=first.zip            look at a zip, whoever wrote it

Each task is answered by the seed that is best on dev at its end, AX by MNLI's model, AX-b and AX-g by RTE's. The zip is
checked before it takes its place; beside it, in a .json, is which model answered what.
Options: name (default: the run evaluated last), base_dir=outputs, suite (default: the newest with such tasks),
         benchmark=glue or superglue (default: by the suite's tasks), out=<run>/eval/<suite>/<benchmark>.zip,
         eval.data_dir (where the official test sets are; default: as in the suite), data_dir=<base_dir>/_data,
         fill=majority (tasks without a model or test rows get their commonest class; default: they are refused),
         allow_partial=false (also test sets of other than the official size: to try out, not to submit)"""
_FILLS = ("majority",)
_TEST_SETS = "eval.data_dir="


@dataclass
class Options:
    """What can be set."""

    name: str | None = None
    base_dir: str = "outputs"
    suite: str | None = None
    benchmark: str | None = None
    out: str | None = None
    data_dir: str | None = None
    fill: str | None = None
    allow_partial: bool = False
    check: str | None = None


def command(argv: list[str]) -> None:
    """Write or check a submission.

    Raises:
        UserError: no such run or suite, tasks that are missing, test sets of another size, or a zip that the server
            would not take.
    """
    given = next((word.removeprefix(_TEST_SETS) for word in reversed(argv) if word.startswith(_TEST_SETS)), None)
    options, words = parse([word for word in argv if not word.startswith(_TEST_SETS)], Options, _USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not an option: give name=..., suite=...")
    if options.fill is not None and options.fill not in _FILLS:
        raise UserError(f"fill={options.fill} is not known{nearest(options.fill, _FILLS)}")
    if options.check is not None:
        path = Path(options.check).expanduser()
        benchmark = benchmark_of(options.benchmark) if options.benchmark else _benchmark_in(path)
        check.check(path, benchmark)
        print(f"{path}: all {len(benchmark.files)} files are as {benchmark.server} takes them")
        return
    _submit(options, given)


def _submit(options: Options, test_sets: str | None) -> None:
    run_dir = finished.run_folder(options.base_dir, options.name)
    suite_dir, benchmark = _suite(run_dir, options)
    load_schemas()
    from cramming import resolve
    from cramming.evaluation.submission import answering, writing

    config = finished.config_of(suite_dir)
    if test_sets is not None:
        config = replace(config, data_dir=test_sets)
    data_dir = Path(options.data_dir or f"{options.base_dir}/_data").expanduser()
    chosen = answering.choose(benchmark, finished.finished(suite_dir))
    for line in chosen.said:
        print(line)
    if chosen.missing and options.fill is None:
        raise UserError(
            f"{benchmark.title} needs all of its tasks, and {run_dir.name}'s {suite_dir.name} lacks "
            f"{', '.join(chosen.missing)} ({'; '.join(dict.fromkeys(chosen.missing.values()))}): fine-tune them, or "
            f"give fill={_FILLS[0]} to answer them with their commonest class"
        )
    notes: list[str] = []
    answers = answering.Answering(config, data_dir, resolve.device(), notes)
    contents: dict[str, bytes] = {}
    described: dict[str, Any] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for file in benchmark.files:
        job, examples = chosen.models.get(file.task), None
        if job is not None:
            try:
                examples = answers.test_rows(file)
            except UserError as error:
                if options.fill is None:
                    raise UserError(f"{file.name}: {error}; or give fill={_FILLS[0]}") from error
                notes.append(f"{file.name}: {error}")
        if job is not None and examples is not None:
            said = answers.by_model(file, job, examples)
            described[file.name] = {"task": job.result.task, "seed": job.result.seed, "job": job.result.key,
                                    "metric": job.metric, "dev": job.score}  # fmt: skip
        else:
            said, filled = answers.by_majority(file)
            described[file.name] = {"filled": filled}
            print(f"{file.name} is filled with {filled}")
        sizes[file.name] = answering.size_of(file, said)
        contents[file.name] = writing.content(file, said)
    unfit = _unfit(benchmark, sizes)
    for note in dict.fromkeys(notes):
        print(note)
    if unfit is not None and not options.allow_partial:
        raise UserError(
            f"{unfit}: give eval.data_dir=<the official files>; or allow_partial=true, to try out and not to submit"
        )
    stem = benchmark.name if unfit is None else f"{benchmark.name}-not-to-be-submitted"
    to = suite_dir / f"{stem}.zip" if options.out is None else Path(options.out).expanduser()
    rows, decided = ({name: size[part] for name, size in sizes.items()} for part in (0, 1))
    writing.write(to, benchmark.resized(rows, decided), contents, unfit)
    about = {"run": run_dir.name, "suite": suite_dir.name, "benchmark": benchmark.name, "submittable": unfit is None}
    write_file(to.with_suffix(".json"), [f"{dumps({**about, 'files': described}, indent=2)}\n".encode()], "submission")
    where = f"to be uploaded at {benchmark.server}" if unfit is None else f"NOT TO BE SUBMITTED: {unfit}"
    print(f"{to}: {len(contents)} files, {where}")


def _suite(run_dir: Path, options: Options) -> tuple[Path, Benchmark]:
    """The suite's folder, and whose tasks it has.

    Raises:
        UserError: there is none, or it has tasks of neither benchmark.
    """
    asked = benchmark_of(options.benchmark) if options.benchmark else None
    names = finished.suites(run_dir) if options.suite is None else [options.suite]
    for name in names:
        suite_dir = finished.suite_folder(run_dir, name)
        tasks = set(finished.finished(suite_dir))
        shared = {b.name: len(tasks & set(b.tasks)) for b in ([asked] if asked else BENCHMARKS.values())}
        most = max(shared, key=lambda b: shared[b])
        if shared[most]:
            return suite_dir, BENCHMARKS[most]
    wanted = asked.title if asked else " or ".join(b.title for b in BENCHMARKS.values())
    raise UserError(
        f"{run_dir.name} is fine-tuned on no task of {wanted} in {', '.join(names)}: there is nothing to submit"
    )


def _unfit(benchmark: Benchmark, sizes: Mapping[str, tuple[int, int]]) -> str | None:
    """Which test sets have another size than the official one; None: none."""
    differing = [
        f"{file.name} has {found:,} {unit}, the official test set {wanted:,}"
        for file in benchmark.files
        for unit, found, wanted in _compared(file, sizes[file.name])
        if found != wanted
    ]
    return "; ".join(differing) or None


def _compared(file: File, size: tuple[int, int]) -> Sequence[tuple[str, int, int]]:
    if file.answers:
        return (("passages", size[0], file.rows), ("answers", size[1], file.answers))
    return (("rows", size[0], file.rows),)


def _benchmark_in(path: Path) -> Benchmark:
    """The benchmark whose files most of a zip's are.

    Raises:
        UserError: it is no zip, or of neither.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            names = {name.rpartition("/")[2] for name in opened.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"check={path} is no zip that can be read ({error})") from error
    shared = {b.name: len(names & {file.name for file in b.files}) for b in BENCHMARKS.values()}
    most = max(shared, key=lambda b: shared[b])
    if not shared[most]:
        raise UserError(f"check={path} has none of the files of {' or '.join(b.title for b in BENCHMARKS.values())}")
    return BENCHMARKS[most]


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
