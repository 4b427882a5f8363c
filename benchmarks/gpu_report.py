"""One command on a GPU machine: its kernels, its tests, every benchmark, and one dated report.

    make gpu-report
    python benchmarks/gpu_report.py minutes=60                      # more of it; what passed today is not run again
    python benchmarks/gpu_report.py minutes=8 archive=report.tar.gz # in parts: the same again goes on
    python benchmarks/gpu_report.py stages=[tests,step_bert_base_128] again=true
    python benchmarks/gpu_report.py glue=GLUE vocabulary=bert-base-uncased-vocab.txt      # for unpadding.py
    python benchmarks/gpu_report.py device=cpu quick=true           # tiny sizes on a processor: does all of it run?

Every stage is a process of its own with a bound on its time; what fails or does not fit is named, and loses nothing
else. Results, logs and the report, README.md, lie in ``benchmarks/results/<date>-<machine>``, and with ``archive=FILE``
in that file, too, as it was after the latest stage. The most wanted numbers come first; what failed comes again last.
"""

import datetime
import importlib.util
import io
import shlex
import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.gpu_page import page
from benchmarks.reporting import asked, circumstances, named
from benchmarks.reporting import folder as dated
from benchmarks.stages import FAILED, REPOSITORY, Outcome, Stage, run
from cramming.cli import run_command
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.interruption import Interrupted
from cramming.kernels import toolchain
from cramming.suggest import nearest

FAMILIES = ("bert", "mosaic", "modern", "crammed", "m2")
TOKENS = {"small": 65536, "base": 65536, "large": 32768}  # of a step
_PAGE = "README.md"
# As the M2 study measured: forward passes from 512 to 8,192 tokens.
_PUBLISHED = "mode=published size=base batches=m2 archs=[m2,mosaic,bert] lengths=[512,1024,2048,4096,8192] cell_s=4"
# Packages of a benchmark beside those that nothing here does without; transformers, unless something else is said.
_NEEDS = {
    "finetuning.py": ("transformers", "accelerate", "scipy", "sklearn"),
    "store.py": (),
    "unpadding.py": (),
}


@dataclass
class Options:
    """What the command line may change."""

    minutes: float = 25.0  # a stage is begun if as much as it is expected to take is left
    stages: list[str] = field(default_factory=list)  # only these; none named: all
    again: bool = False  # also what has passed today
    glue: str = ""  # folder of GLUE as its authors pack it, and a vocabulary: for unpadding.py
    vocabulary: str = ""
    device: str = "auto"
    quick: bool = False  # tiny sizes: to see that it runs
    folder: str = ""  # for the results; nothing: benchmarks/results/<date>-<machine>
    archive: str = ""  # a .tar.gz of that folder, for machines from which few files can be taken

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise UserError(f"minutes={self.minutes:g} must be above 0")
        if self.device not in ("auto", "cuda", "cpu"):
            raise UserError(f"device={self.device} is unknown{nearest(self.device, ('auto', 'cuda', 'cpu'))}")
        if self.device == "cpu" and not self.quick:
            raise UserError(
                "device=cpu is for seeing whether it runs: add quick=true; on a processor, make bench measures"
            )
        if self.folder and Path(self.folder).exists() and not Path(self.folder).is_dir():
            raise UserError(f"folder={self.folder} is a file; name a folder")
        if self.archive and (Path(self.archive).is_dir() or not self.archive.endswith(".tar.gz")):
            raise UserError(f"archive={self.archive} must be a file named .tar.gz")

    def where(self) -> torch.device:
        """The device.

        Raises:
            UserError: there is no GPU.
        """
        if self.device == "cpu":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise UserError(
                "there is no NVIDIA GPU here that torch can use; on a processor, make bench measures, and "
                "device=cpu quick=true shows whether this runs"
            )
        return torch.device("cuda")


def stages(options: Options, scratch: Path) -> list[Stage]:
    """All there are, the most wanted first.

    Args:
        options: as typed.
        scratch: a folder for what is thrown away.

    Raises:
        UserError: one that is named does not exist.
    """
    every = list(_quick(scratch) if options.quick else _full(options))
    names = [stage.name for stage in every]
    for name in options.stages:
        if name not in names:
            raise UserError(f"stages={name} is unknown{nearest(name, names)}")
    return [stage for stage in every if not options.stages or stage.name in options.stages]


def _python(name: str, script: str, words: str, expected_s: float, bound_s: float = 0.0, *, lacking: str = "") -> Stage:
    """A benchmark of this folder; it is not here where its script or a package that it needs is not."""
    if not (REPOSITORY / "benchmarks" / script).is_file():
        lacking = f"there is no benchmarks/{script}"
    command = (sys.executable, f"benchmarks/{script}", *shlex.split(words))
    needs = _NEEDS.get(script, ("transformers",))
    return Stage(name, command, expected_s, bound_s or 4 * expected_s, lacking or _not_installed(needs))


def _not_installed(packages: tuple[str, ...]) -> str:
    """Which of these are missing, in words; nothing if none is."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _kernels() -> Stage:
    """The CUDA submodule for the GPUs that are here, by this interpreter: the report installs nothing."""
    lacking = "" if torch.cuda.is_available() else "there is no GPU here to compile for"
    try:
        toolchain.located()
    except UserError as error:
        lacking = str(error)
    command = (sys.executable, "-m", "cramming.kernels.build", "archs=native")
    return Stage("kernels", command, 60, 480, lacking, writes=False)


def _tests(name: str, files: list[str], expected_s: float) -> Stage:
    words = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files)
    return Stage(name, words, expected_s, 8 * expected_s, _not_installed(("pytest", "hypothesis")), writes=False)


def _marked() -> list[str]:
    """Files with tests for a GPU; that all others can be imported does not matter to them."""
    found = (path for path in (REPOSITORY / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text())
    return sorted(str(path.relative_to(REPOSITORY)) for path in found)


def _data_share(words: str, expected_s: float) -> Stage:
    command = (sys.executable, "-m", "benchmarks.data_share", *shlex.split(words))
    lacking = _not_installed(("zstandard", "rensa"))
    return Stage("data_share", command, expected_s, 5 * expected_s, lacking, writes=False)


def _step(family: str, size: str, length: int, compiled: bool = True, graphs: bool = False) -> Stage:
    baselines = "[limit,scoring,forward_limit,autocast,low]" if family == "bert" else "[limit,scoring,autocast]"
    baselines = "[launched,limit,scoring]" if graphs else baselines
    words = f"archs=[{family}] size={size} lengths=[{length}] tokens={TOKENS[size]} baselines={baselines} mfu=true"
    words += f" pairs=9 cell_s=10 compile={str(compiled).lower()}"
    words += " cuda_graphs=true" if graphs else ""
    name = f"step_{family}_{size}_{length}{'' if compiled else '_eager'}{'_graphs' if graphs else ''}"
    return _python(name, "step.py", words, 100 if size == "large" else 60)


def _full(options: Options) -> Iterator[Stage]:
    """At the sizes that are asked about."""
    yield _kernels()
    every = {Path(file).stem: _tests(Path(file).stem.replace("test_", "tests_", 1), [file], 60) for file in _marked()}
    of_runs = [every.pop("test_gpu")] if "test_gpu" in every else []
    first, *steps = [(family, length) for length in (128, 512) for family in FAMILIES]
    yield _step(first[0], "base", first[1])
    yield from of_runs
    yield _python("kernel_speed", "kernels.py", "pairs=7 cell_s=5", 120)
    yield _python("forward_published", "forward.py", _PUBLISHED, 120)
    yield from (_step(family, "base", length) for family, length in steps)
    yield from (_step("bert", "large", length) for length in (128, 512))
    yield from (_step("bert", size, 128, graphs=True) for size in ("base", "small"))
    yield from every.values()
    share = "pairs=20 data=python_docs arch=bert_base data.vocab_size=30522 train.batch_size=512"
    yield _data_share(f"{share} impl.microbatch_size=512", 90)
    yield _python("store", "store.py", "gigabytes=10", 30)
    for length in (512, 8192, 2048, 128):
        words = f"size=base lengths=[{length}] cell_s=5 compile=true"
        yield _python(f"attention_{length}", "attention_scaling.py", words, 90)
    for order in ("random", "grouped"):
        words = f"layers=12 hidden=768 heads=12 vocab_size=30522 batch_size=32 their_order={order}"
        yield _python(f"finetuning_{order}", "finetuning.py", words, 60)
    for length in (128, 512):
        words = f"mode=infer archs=[bert,modern,m2] size=base lengths=[{length}] tokens=65536"
        yield _python(f"forward_base_{length}", "forward.py", words, 60)
    own = "archs=[modern] size=base layers=22 vocab_size=50368 lengths=[128] tokens=32768 baselines=[limit,scoring]"
    yield _python("step_modern_22x768_128", "step.py", f"{own} mfu=true pairs=9 cell_s=10 compile=true", 60)
    yield _step("bert", "base", 128, compiled=False)
    yield _python("fused_pieces", "fused_pieces.py", "tokens=65536 cell_s=10", 90)
    yield _python("optimizers", "optimizers.py", "size=base optimizers=[adamw,lion,sophiag,muon,soap] cell_s=5", 90)
    unpadded = f"glue={shlex.quote(options.glue)} vocabulary={shlex.quote(options.vocabulary)} device=cuda"
    unpadded += " layers=12 hidden=768 heads=12 vocab_size=30528"
    lacking = "" if options.glue and options.vocabulary else "give glue=FOLDER and vocabulary=vocab.txt"
    yield _python("unpadding", "unpadding.py", unpadded, 60, lacking=lacking)
    yield from (_step(family, "large", 512) for family in FAMILIES[1:])


def _quick(scratch: Path) -> Iterator[Stage]:
    """Of everything the tiniest, on a processor."""
    tiny = (
        "archs=[bert] size=tiny lengths=[16] tokens=32 pairs=3 cell_s=0.1 device=cpu threads=1 isolated=false mfu=true"
    )
    yield _kernels()
    yield _tests("tests", _marked(), 10)
    yield _python("step_bert_tiny_16", "step.py", tiny, 10, 60)
    text, base = (shlex.quote(str(path)) for path in (REPOSITORY / "docs", scratch))
    share = f"pairs=2 data=local data.path={text} base_dir={base} arch=bert_tiny data.vocab_size=512"
    yield _data_share(f"{share} train.batch_size=8", 15)
    yield _python(
        "store", "store.py", "gigabytes=0.002 vocab_size=512 batch_size=8 draws=2 pairs=3 device=cpu threads=1", 10, 60
    )
    yield _python("forward_tiny", "forward.py", tiny, 10, 60)
    few = "tokens=64 pairs=3 device=cpu threads=1 lengths=[16] channels=8 cell_s=0.1 isolated=false"
    yield _python("kernel_speed", "kernels.py", few, 10, 60)
    yield _python("attention_quick", "attention_scaling.py", "quick=true device=cpu threads=1 isolated=false", 15, 90)
    one = "optimizers=[lion] size=tiny seq_length=16 pairs=3 steps=2 cell_s=0.1 isolated=false device=cpu threads=1"
    yield _python("optimizers", "optimizers.py", one, 10, 60)
    yield _python("unpadding", "unpadding.py", "", 10, lacking="give glue=FOLDER and vocabulary=vocab.txt")
    sizes = "layers=2 hidden=32 heads=2 vocab_size=300 max_length=32 batch_size=8 pairs=2 warmup=1 steps=2 words_mean=3"
    yield _python("finetuning", "finetuning.py", f"{sizes} device=cpu threads=1", 10, 60)


def machine(device: torch.device) -> dict[str, str]:
    """What the report says about where it was made."""
    found: dict[str, Any] = circumstances(device)
    about = found["environment"]
    lines = {"device": str(about["device"])}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        lines["memory of the device"] = f"{properties.total_memory / 2**30:.0f} GiB"
        lines["compute capability, CUDA"] = f"{properties.major}.{properties.minor}, {torch.version.cuda}"
    lines["processor"] = f"{about['cpu']}, {about['cpu_cores']} cores, {about['memory_gb']} GB"
    lines["system"] = f"{about['platform']}, Python {about['python']}"
    lines["versions"] = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines["revision"] = str(found["revision"])
    lines["command"] = f"`{about['command']}`"
    return lines


def pack(folder: Path, archive: Path) -> None:
    """All files of a folder under its name; what the archive was before stays until it is whole."""
    packed, own = io.BytesIO(), archive.resolve()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder, folder.name, filter=lambda file: None if folder.parent / file.name == own else file)
    archive.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(archive, packed.getvalue())


def report(options: Options) -> Path:
    """Run the stages and write the page, which is written anew after every stage.

    Returns:
        The page.

    Raises:
        UserError: there is no GPU; or, after everything, which stages failed.
    """
    device = options.where()
    folder = (Path(options.folder) if options.folder else dated(device)).resolve()
    title = f"GPU report, {datetime.date.today().isoformat()}, {named(device)}"
    title += ": tiny sizes, to see that it runs" if options.quick else ""
    about = machine(device)

    def write(outcomes: Mapping[str, Outcome]) -> None:
        write_atomically(folder / _PAGE, page(folder, about, outcomes, title).encode())
        if options.archive:
            pack(folder, Path(options.archive))

    with tempfile.TemporaryDirectory() as scratch:
        outcomes = run(
            stages(options, Path(scratch)),
            folder,
            budget_s=60 * options.minutes,
            again=options.again,
            tell=lambda line: print(line, flush=True),
            after=write,
        )
    write(outcomes)
    print(f"\nkept in {folder / _PAGE}")
    failed = [name for name, outcome in outcomes.items() if outcome.state == FAILED]
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; {folder / _PAGE} says how, and their logs lie beside it")
    return folder / _PAGE


def main() -> None:
    """Parse, run, report; SIGTERM, as Ctrl-C, ends the stage that is under way, too."""
    options = asked(Options, __doc__)

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(128 + number)

    signal.signal(signal.SIGTERM, end)
    report(options)


if __name__ == "__main__":
    run_command(main)
