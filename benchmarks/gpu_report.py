"""One command on a GPU machine: its kernels, its tests, every benchmark, and one dated report.

    make gpu-report
    python benchmarks/gpu_report.py minutes=60                      # more of it; what passed today is not run again
    python benchmarks/gpu_report.py stages=[tests,step_bert_base_128] again=true
    python benchmarks/gpu_report.py glue=GLUE vocabulary=bert-base-uncased-vocab.txt      # for unpadding.py
    python benchmarks/gpu_report.py device=cpu quick=true           # tiny sizes on a processor: does all of it run?

Every stage is a process of its own with a bound on its time; what fails or does not fit is named, and loses nothing
else. Results, logs and the report, README.md, lie in ``benchmarks/results/<date>-<machine>``. The most wanted numbers
come first.
"""

import datetime
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
from cramming.suggest import nearest

FAMILIES = ("bert", "mosaic", "modern", "crammed", "m2")
TOKENS = {"base": 65536, "large": 32768}  # of a step
_PAGE = "README.md"


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

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise UserError(f"minutes={self.minutes:g} must be above 0")
        if self.device not in ("auto", "cuda", "cpu"):
            raise UserError(f"device={self.device} is unknown{nearest(self.device, ('auto', 'cuda', 'cpu'))}")
        if self.device == "cpu" and not self.quick:
            raise UserError(
                "device=cpu is for seeing whether it runs: add quick=true; on a processor, make bench measures"
            )

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
    """A benchmark of this folder; it is not here where its script is not."""
    if not (REPOSITORY / "benchmarks" / script).is_file():
        lacking = f"there is no benchmarks/{script}"
    command = (sys.executable, f"benchmarks/{script}", *words.split())
    return Stage(name, command, expected_s, bound_s or 3 * expected_s, lacking)


def _kernels() -> Stage:
    has = re.search(r"^kernels:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    return Stage(
        "kernels", ("make", "kernels"), 120, 600, "" if has else "the Makefile has no target kernels", writes=False
    )


def _tests(folder: str, expected_s: float) -> Stage:
    words = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", folder)
    return Stage("tests", words, expected_s, 6 * expected_s, writes=False)


def _step(family: str, size: str, length: int, compiled: bool = True) -> Stage:
    baselines = "[limit,scoring,forward_limit,autocast,low]" if family == "bert" else "[limit,scoring,autocast]"
    words = f"archs=[{family}] size={size} lengths=[{length}] tokens={TOKENS[size]} baselines={baselines} mfu=true"
    words += f" pairs=9 cell_s=10 compile={str(compiled).lower()}"
    name = f"step_{family}_{size}_{length}{'' if compiled else '_eager'}"
    return _python(name, "step.py", words, 60 if size == "base" else 100)


def _full(options: Options) -> Iterator[Stage]:
    """At the sizes that are asked about."""
    yield _kernels()
    yield _tests("tests", 90)
    yield from (_step(family, "base", length) for length in (128, 512) for family in FAMILIES)
    yield from (_step("bert", "large", length) for length in (128, 512))
    own = "archs=[modern] size=base layers=22 vocab_size=50368 lengths=[128] tokens=32768 baselines=[limit,scoring]"
    yield _python("step_modern_22x768_128", "step.py", f"{own} mfu=true pairs=9 cell_s=10 compile=true", 60)
    share = ("-m", "benchmarks.data_share", "pairs=20", "data=python_docs", "arch=bert_base", "data.vocab_size=30522")
    yield Stage("data_share", (sys.executable, *share), 120, 400, writes=False)
    yield _python("store", "store.py", "gigabytes=10", 30)
    yield _python(
        "forward_base", "forward.py", "mode=infer archs=[bert,modern,m2] size=base lengths=[128,512] tokens=65536", 90
    )
    yield _step("bert", "base", 128, compiled=False)
    scaling = "size=base lengths=[128,512,2048,8192] cell_s=5 compile=true"
    yield _python("attention_scaling", "attention_scaling.py", scaling, 240)
    yield _python("optimizers", "optimizers.py", "size=base optimizers=[adamw,lion,sophiag,muon,soap] cell_s=5", 90)
    unpadded = f"glue={options.glue} vocabulary={options.vocabulary} device=cuda"
    unpadded += " layers=12 hidden=768 heads=12 vocab_size=30528"
    lacking = "" if options.glue and options.vocabulary else "give glue=FOLDER and vocabulary=vocab.txt"
    yield _python("unpadding", "unpadding.py", unpadded, 60, lacking=lacking)
    yield _python("finetuning", "finetuning.py", "", 60, lacking="finetuning.py measures on a processor, both sides")
    yield from (_step(family, "large", 512) for family in FAMILIES[1:])


def _quick(scratch: Path) -> Iterator[Stage]:
    """Of everything the tiniest, on a processor."""
    tiny = (
        "archs=[bert] size=tiny lengths=[16] tokens=32 pairs=3 cell_s=0.1 device=cpu threads=1 isolated=false mfu=true"
    )
    yield _kernels()
    yield _tests("tests/gpu", 10)
    yield _python("step_bert_tiny_16", "step.py", tiny, 10, 60)
    share = ["-m", "benchmarks.data_share", "pairs=2", "data=local", f"data.path={REPOSITORY / 'docs'}"]
    share += ["arch=bert_tiny", "data.vocab_size=512", "train.batch_size=8", f"base_dir={scratch}"]
    yield Stage("data_share", (sys.executable, *share), 15, 90, writes=False)
    yield _python(
        "store", "store.py", "gigabytes=0.002 vocab_size=512 batch_size=8 draws=2 pairs=3 device=cpu threads=1", 10, 60
    )
    yield _python("forward_tiny", "forward.py", tiny, 10, 60)
    yield _python("attention_scaling", "attention_scaling.py", "quick=true device=cpu threads=1 isolated=false", 15, 90)
    one = "optimizers=[lion] size=tiny seq_length=16 pairs=3 steps=2 cell_s=0.1 isolated=false device=cpu threads=1"
    yield _python("optimizers", "optimizers.py", one, 10, 60)
    yield _python("unpadding", "unpadding.py", "", 10, lacking="give glue=FOLDER and vocabulary=vocab.txt")
    yield _python("finetuning", "finetuning.py", "", 10, lacking="finetuning.py measures on a processor, both sides")


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
    """Parse, run, report."""
    report(asked(Options, __doc__))


if __name__ == "__main__":
    run_command(main)
