"""An nvcc that makes files of what it is given, and what tests of builds do with it."""

import os
import stat
import sys
from pathlib import Path

import pytest

from cramming.kernels import cuda, sources

# An nvcc that records how it is called and makes files of what it is given.
FAKE = """#!{python}
import sys
words = sys.argv[1:]
if words == ["--version"]:
    print("Cuda compilation tools, release {version}, V{version}.88")
elif words == ["--list-gpu-code"]:
    print("{known}")
else:
    with open("{log}", "a") as log:
        print(*words, sep="\\t", file=log)
    source = words[words.index("-c") + 1] if "-c" in words else ""
    if source and "hostless" in open(source).read():
        print("gcc: No such file or directory", file=sys.stderr)
        print("nvcc fatal   : Failed to preprocess host compiler properties.", file=sys.stderr)
        sys.exit(1)
    if source and "broken" in open(source).read():
        print(source + "(1): error: broken", file=sys.stderr)
        sys.exit(2)
    if source.endswith(".cu"):
        print("ptxas info    : Compiling entry function 'fake' for 'sm_90'", file=sys.stderr)
        print("ptxas info    : Used 40 registers, used 1 barriers", file=sys.stderr)
    open(words[words.index("-o") + 1], "w").write("made of " + " ".join(words))
"""


def fake_nvcc(
    folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "13.0", known: str = "sm_80 sm_90 sm_120"
) -> Path:
    """An nvcc that knows some targets, first on PATH."""
    program, log = folder / "bin" / "nvcc", folder / "calls"
    program.parent.mkdir(exist_ok=True)
    program.write_text(FAKE.format(python=sys.executable, version=version, known=known, log=log))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return log


def made_by(log: Path) -> list[list[str]]:
    """The calls so far."""
    return [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []


def look_again() -> None:
    """Forget what this process knows of sources and libraries."""
    sources.digest.cache_clear()
    cuda.ops.cache_clear()
    cuda.forget()


def unwritable_package(csrc: Path) -> None:
    """A package that takes no library, not even from root: a file stands in the folder's place."""
    (csrc.parent / "lib").write_text("")
