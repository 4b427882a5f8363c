"""The CUDA compiler: where it is, what it can compile for, and how it is called."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cramming.errors import UserError
from cramming.kernels.sources import TORCH_TARGET
from cramming.suggest import nearest

# Ampere, consumer Ampere, Ada, Hopper, Blackwell, consumer Blackwell.
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
OLDEST = (8, 0)  # bfloat16 products and copies under way
INSTALL = "install the CUDA toolkit, or pip install 'budget-bert[kernels]'; everything works without, by other backends"


@dataclass(frozen=True)
class Compiler:
    """An nvcc.

    Attributes:
        path: of the program.
        version: as in ``13.0``.
        targets: architectures it has code for, ``sm_90`` and the like.
    """

    path: Path
    version: str
    targets: frozenset[str]

    @property
    def roots(self) -> list[Path]:
        """Folders that hold its ``include`` and ``lib``."""
        return list(dict.fromkeys([self.path.parents[1], self.path.resolve().parents[1]]))


def candidates() -> Iterator[Path]:
    """Where an nvcc may be: PATH, CUDA_HOME, CUDA_PATH, NVIDIA's packages for Python, /usr/local/cuda."""
    on_path = shutil.which("nvcc")
    if on_path is not None:
        yield Path(on_path)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]) / "bin" / "nvcc"
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from sorted(Path(folder).glob("cu[0-9]*/bin/nvcc"), reverse=True)
    yield Path("/usr/local/cuda/bin/nvcc")


def located() -> Path:
    """The first nvcc there is.

    Raises:
        UserError: there is none.
    """
    path = next((path for path in candidates() if os.access(path, os.X_OK) and path.is_file()), None)
    if path is None:
        raise UserError(f"no nvcc on PATH, in CUDA_HOME, /usr/local/cuda or Python's packages: {INSTALL}")
    return path


def compiler() -> Compiler:
    """The first nvcc there is, and what it can do.

    Raises:
        UserError: there is none, or it does not run.
    """
    path = located()
    said = _output([str(path), "--version"])
    version = re.search(r"release (\d+\.\d+)", said)
    if version is None:
        last = said.strip().rpartition("\n")[2] or "it prints nothing"
        raise UserError(f"{path} --version does not say which nvcc it is: {last}")
    return Compiler(path, version[1], frozenset(re.findall(r"sm_\d+", _output([str(path), "--list-gpu-code"]))))


def _output(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{words[0]} does not run: {error.strerror}") from error
    return done.stdout + done.stderr


@cache
def torch_folder() -> Path:
    """torch's folder, with the headers and libraries to compile against.

    Raises:
        UserError: this torch has no headers of the stable interface.
    """
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    header = folder / "include" / "torch" / "csrc" / "stable" / "library.h"
    if not header.exists():
        raise UserError(f"torch's headers are missing ({header}): install a torch that has them, 2.11 or newer")
    return folder


def targets(asked: str, of: Compiler, here: Sequence[str]) -> tuple[list[str], list[str]]:
    """-> (architectures to compile for, those asked for that this nvcc does not know).

    Args:
        asked: ``all`` for ``TARGETS``, ``native`` for the GPUs that are here, or names with commas between.
        of: the compiler.
        here: architectures of the GPUs that are here.

    Raises:
        UserError: no such architecture, none that the compiler knows, or no GPU for ``native``.
    """
    if asked == "native":
        if not here:
            raise UserError("archs=native: there is no GPU here; name them (archs=sm_90), or leave it out for all")
        wanted = sorted(set(here), key=_number)
    elif asked == "all":
        wanted = list(TARGETS)
    else:
        wanted = sorted({word.strip() for word in asked.split(",") if word.strip()}, key=_number)
    if not wanted:
        raise UserError("archs= names no target: all, native, or names with commas between (archs=sm_80,sm_90)")
    for name in wanted:
        if not re.fullmatch(r"sm_\d{2,3}", name) or _number(name) < OLDEST[0] * 10:
            raise UserError(f"archs={asked}: {name} is no target{nearest(name, ('all', 'native', *TARGETS))}")
    known = [name for name in wanted if name in of.targets]
    if not known:
        raise UserError(f"nvcc {of.version} ({of.path}) is too old for {', '.join(wanted)}: {INSTALL}")
    return known, [name for name in wanted if name not in known]


# What nvcc, the shell or gcc print where there is no compiler of C++, or none that nvcc takes.
_NO_HOST_COMPILER = re.compile(
    r"^nvcc fatal\s*:.*host compiler"
    r"|cannot find compiler"
    r"|unsupported (GNU|clang) version"
    r"|error trying to exec 'cc1plus'"
    r"|^(sh: .*)?\S*(gcc|g\+\+): .*not found",
    re.IGNORECASE | re.MULTILINE,
)


def lacks_host_compiler(said: str) -> bool:
    """Whether a call of nvcc failed, by what it printed, for want of a compiler of C++ that it takes."""
    return _NO_HOST_COMPILER.search(said) is not None


def _number(name: str) -> int:
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else 0


def compile_words(of: Compiler, source: Path, made: Path, archs: Sequence[str], info: str, threads: int) -> list[str]:
    """The call that compiles one source for all architectures, and the last one's virtual one for those to come."""
    words = [str(of.path), "-std=c++17", "-O3", "-c", str(source), "-o", str(made), "--threads", str(threads)]
    words += ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Werror,-fPIC,-fvisibility=hidden"]
    words += [word for root in of.roots if (root / "include").is_dir() for word in ("-isystem", str(root / "include"))]
    if source.suffix == ".cu":
        words += ["-Xptxas", "-v", *code_words(archs)]
    else:
        words += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f'-DCRAMMING_BUILD_INFO="{info}"']
        words += ["-isystem", str(torch_folder() / "include")]
    return words


def code_words(archs: Sequence[str]) -> list[str]:
    """``-gencode`` for each architecture."""
    words = []
    for name in archs:
        number = name.removeprefix("sm_")
        code = f"[{name},compute_{number}]" if name == archs[-1] else name
        words += ["-gencode", f"arch=compute_{number},code={code}"]
    return words


def link_words(of: Compiler, objects: Sequence[Path], made: Path) -> list[str]:
    """The call that links objects to a library: CUDA's runtime inside, torch's libraries as the process has them."""
    words = [str(of.path), "-shared", "-o", str(made), *map(str, objects)]
    words += ["-cudart", "static", "-Xlinker", "-Bsymbolic,--no-undefined"]
    folders = [root / name for root in of.roots for name in ("lib64", "lib")]
    words += [word for folder in folders if folder.is_dir() for word in ("-L", str(folder))]
    return [*words, "-L", str(torch_folder() / "lib"), "-ltorch_cpu"]
