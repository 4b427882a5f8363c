"""``make kernels``: compile the CUDA submodule for all targets, link it, and say what each kernel takes.

    python -m cramming.kernels.build                      # every target
    python -m cramming.kernels.build archs=native         # the GPUs that are here
    python -m cramming.kernels.build archs=sm_90,sm_120 verbose=true

What has not changed is not compiled again. The library loads with every torch from 2.11, with a GPU or without.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from cramming.cli import parse, run_command
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.kernels import cuda, resources, sources, toolchain
from cramming.progress import ProgressSink, progress_for
from cramming.text import quantity

_log = logging.getLogger(__name__)
_MOST_SAID = 60  # lines of a compiler's complaint
_OLD = 30 * 86400.0  # seconds after which what other installations have built counts as left behind


@dataclass
class Options:
    """What the command line may change.

    Attributes:
        archs: ``all``, ``native``, or names with commas between.
        verbose: print every call of the compiler.
        jobs: compilers at once; 0: one for each core.
    """

    archs: str = "all"
    verbose: bool = False
    jobs: int = 0


@dataclass(frozen=True)
class Built:
    """A library.

    Attributes:
        path: of it.
        compiler: nvcc's version.
        archs: it has code for.
        left_out: targets that this nvcc does not know.
        usages: what its kernels take.
        compiled: sources that were compiled now; the others had been.
    """

    path: Path
    compiler: str
    archs: tuple[str, ...]
    left_out: tuple[str, ...]
    usages: tuple[resources.Usage, ...]
    compiled: int


def build(options: Options, progress: ProgressSink, here: Sequence[str] = ()) -> Built:
    """Compile what has changed, and link.

    Args:
        options: of the command.
        progress: of the sources.
        here: architectures of the GPUs that are here, for ``archs=native``.

    Raises:
        UserError: no nvcc, no headers, no such target, no compiler of C++ that nvcc takes, no folder to write in.
        RuntimeError: a source does not compile; the message is the compiler's.
    """
    nvcc = toolchain.compiler()
    toolchain.torch_folder()
    archs, left_out = toolchain.targets(options.archs, nvcc, here)
    with _locked() as folder:
        return _build(nvcc, archs, left_out, folder, options, progress)


def build_for(arch: str, progress: ProgressSink) -> None:
    """Have a library that runs on ``arch``, ``sm_90`` and the like, besides what the one that is there runs on.

    Of several processes that ask at the same time one builds, and the others wait for it.

    Raises:
        UserError: as of ``build``, or this nvcc does not know ``arch``.
        RuntimeError: a source does not compile.
    """
    nvcc = toolchain.compiler()
    toolchain.torch_folder()
    toolchain.targets(arch, nvcc, ())
    with _locked() as folder:
        there = sources.architectures()
        if sources.runs_on(arch, there):
            return
        archs, left_out = toolchain.targets(",".join((arch, *there)), nvcc, ())
        names = " and ".join(archs)
        _log.warning("kernels: compiling the CUDA submodule for %s, once; make kernels compiles it for all", names)
        _build(nvcc, archs, left_out, folder, Options(), progress)


@contextmanager
def _locked() -> Iterator[Path]:
    """The folder to build in, which no other process builds in meanwhile; what was known of libraries is forgotten."""
    sources.digest.cache_clear()
    folder = sources.writable()
    try:
        with FileLock(folder / ".lock"):
            yield folder
    except BrokenPipeError:  # the reader of our output is gone
        raise
    except OSError as error:
        raise UserError(f"the kernels cannot be built in {folder}: {error}") from error
    finally:
        cuda.forget()


def _build(
    nvcc: toolchain.Compiler,
    archs: list[str],
    left_out: list[str],
    folder: Path,
    options: Options,
    progress: ProgressSink,
) -> Built:
    info = f"{sources.digest()} nvcc {nvcc.version} {' '.join(archs)}"
    units = sources.units()
    shared = [path.read_text("utf-8") for path in sources.headers()]
    objects = folder / "objects"
    objects.mkdir(exist_ok=True)
    jobs = options.jobs or _cores()
    calls: dict[Path, tuple[Path, list[str]]] = {}
    for unit in units:
        words = toolchain.compile_words(nvcc, unit, Path("made.o"), archs, info, threads=1)
        stamp = sources.digest_of(nvcc.version, *words, unit.read_text("utf-8"), *shared)
        made = objects / f"{unit.name}-{stamp}.o"
        threads = min(jobs, len(archs))
        calls[unit] = made, toolchain.compile_words(nvcc, unit, made.with_suffix(".new"), archs, info, threads)
    due = {unit: call for unit, call in calls.items() if not (call[0].exists() and _log_of(call[0]).exists())}
    due = dict(sorted(due.items(), key=lambda item: -item[0].stat().st_size))  # the longest first
    progress.stage("compiling", sum(unit.stat().st_size for unit in due), "B") if due else None
    with ThreadPoolExecutor(max(1, min(jobs, len(due)))) as pool:
        begun = {pool.submit(_compile, *call, options.verbose, progress): unit for unit, call in due.items()}
        try:
            for done in as_completed(begun):
                done.result()
                progress.advance(begun[done].stat().st_size)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    progress.done()
    library = sources.library(folder)
    kept = [made for made, _ in calls.values()]
    if due or not library.exists() or sources.facts(library).get("objects") != [made.name for made in kept]:
        fresh = library.with_suffix(".new")
        _call(toolchain.link_words(nvcc, kept, fresh), options.verbose, progress)
        facts = {"archs": archs, "compiler": nvcc.version, "objects": [made.name for made in kept]}
        sources.facts_file(library).unlink(missing_ok=True)  # at no moment do they speak of another library
        fresh.replace(library)
        write_atomically(sources.facts_file(library), json.dumps(facts).encode())
    else:
        library.touch()  # of two libraries of the same sources the one that was asked for last is taken
    _remove_all_but(folder, library, kept)
    usages = [usage for made in kept for usage in resources.parse(_log_of(made).read_text("utf-8"))]
    return Built(library, nvcc.version, tuple(archs), tuple(left_out), tuple(usages), len(due))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile(made: Path, words: list[str], verbose: bool, progress: ProgressSink) -> None:
    said = _call(words, verbose, progress)
    _log_of(made).write_text(said, "utf-8")
    made.with_suffix(".new").replace(made)


def _call(words: list[str], verbose: bool, progress: ProgressSink) -> str:
    """What the compiler printed.

    Raises:
        UserError: it finds no compiler of C++ that it takes.
        RuntimeError: it failed.
    """
    if verbose:
        progress.note(" ".join(words))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        lines = [line for line in said.splitlines() if not line.startswith("ptxas info")]
        if toolchain.lacks_host_compiler(said):
            raise UserError(
                f"nvcc finds no C++ compiler that it takes ({lines[0]}): install g++, or name one: NVCC_CCBIN"
            )
        more = [f"... {len(lines) - _MOST_SAID} lines more"] if len(lines) > _MOST_SAID else []
        raise RuntimeError("\n".join([*lines[:_MOST_SAID], *more]) or f"{words[0]} ended with {done.returncode}")
    return said


def _log_of(made: Path) -> Path:
    return made.with_suffix(".log")


def _remove_all_but(folder: Path, library: Path, objects: list[Path]) -> None:
    """Libraries and objects of sources that are no more; a process that uses one keeps it.

    Where other installations keep theirs, too, only what nobody has used for long.
    """
    kept = {library, sources.facts_file(library), *objects, *map(_log_of, objects)}
    youngest = time.time() - _OLD if sources.is_shared(folder) else float("inf")
    paths = (*folder.glob(f"{sources.STEM}-*"), *(folder / "objects").iterdir())
    left = [path for path in paths if path not in kept and sources.last_used(path) < youngest]
    for path in left:
        path.unlink(missing_ok=True)


def gpus_here() -> list[str]:
    """Architectures of the GPUs that are here, ``sm_90`` and the like."""
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return []
    capabilities = (torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count()))
    return [f"sm_{major}{minor}" for major, minor in capabilities]


def main(argv: Sequence[str]) -> None:
    """Build, and print what came out."""
    options, rest = parse(argv, Options, __doc__ or "")
    if rest:
        raise UserError(f"{rest[0]} is no option: archs=..., verbose=true, jobs=...")
    here = gpus_here()
    try:
        built = build(options, progress_for(), here)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        raise UserError("a source does not compile; what the compiler says stands above") from None
    console = Console(width=None if sys.stdout.isatty() else 140)  # names of kernels are long
    console.print(resources.table(built.usages))
    console.print(resources.LEGEND)
    for name in built.left_out:
        console.print(f"{name} is left out: nvcc {built.compiler} does not know it")
    size = quantity(built.path.stat().st_size, "B")
    said = f"{built.compiled} compiled" if built.compiled else "nothing had changed"
    console.print(f"{built.path}: {size}, {', '.join(built.archs)}, by nvcc {built.compiler}; {said}", soft_wrap=True)
    console.print(_tried(here), soft_wrap=True)


def _tried(here: Sequence[str]) -> str:
    """That the library loads, and whether it runs on the GPUs that are here.

    Raises:
        UserError: it does not load.
    """
    import torch

    try:
        cuda.ops()
    except (OSError, RuntimeError) as error:
        raise UserError(f"the library is built but does not load: {str(error).partition(chr(10))[0]}") from error
    if not here:
        return "it loads; there is no GPU here to try it on"
    devices = [torch.device("cuda", n) for n in range(torch.cuda.device_count())]
    return "\n".join(f"{torch.cuda.get_device_name(d)} ({d}): {cuda.lacks(d) or 'runs it'}" for d in devices)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
