"""What ptxas says a kernel takes: registers, what is spilled of them, shared memory."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table

LEGEND = "registers of a thread; + bytes of them spilled, written and read; / bytes of shared memory a kernel fixes"


class Usage(NamedTuple):
    """Of a kernel compiled for an architecture.

    Attributes:
        kernel: its name in the object.
        arch: ``sm_90`` and the like.
        registers: of a thread.
        spilled: bytes of registers written to memory and read back, stores and loads together, a thread.
        stack: bytes of a thread's frame.
        shared: bytes of shared memory that the kernel fixes itself; what a launch adds is not among them.
    """

    kernel: str
    arch: str
    registers: int
    spilled: int
    stack: int
    shared: int


_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '(sm_\w+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse(said: str) -> list[Usage]:
    """Kernels in the order of what ``nvcc -Xptxas -v`` printed; functions that are no kernels are left out."""
    made: list[Usage] = []
    entry: tuple[str, str] | None = None
    frame = (0, 0)
    function = ""
    for line in said.splitlines():
        if found := _ENTRY.search(line):
            entry, frame, function = (found[1], found[2]), (0, 0), ""
        elif found := _PROPERTIES.search(line):
            function = found[1]
        elif entry is None:
            continue
        elif (found := _FRAME.search(line)) and function in ("", entry[0]):
            frame = (int(found[1]), int(found[2]) + int(found[3]))
        elif found := _USED.search(line):
            shared = _SHARED.search(line)
            made.append(Usage(*entry, int(found[1]), frame[1], frame[0], int(shared[1]) if shared else 0))
            entry = None
    return made


def readable(names: Sequence[str]) -> dict[str, str]:
    """Names as in the source, without parameters and namespaces, where binutils are at hand."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=False)
    return {name: _short(plain) for name, plain in zip(names, done.stdout.splitlines(), strict=True)}


def _short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::", "", name).removeprefix("void ")
    depth = 0
    for place, letter in enumerate(name):  # parameters begin at the first bracket outside the template's
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            name = name[:place]
            break
    return re.sub(r"\((?:int|bool|unsigned int|long)\)", "", name)


def table(usages: Iterable[Usage]) -> Table:
    """A row for each kernel, a column for each architecture: registers, and bytes spilled where there are any."""
    usages = list(usages)
    archs = sorted({usage.arch for usage in usages}, key=lambda arch: (len(arch), arch))
    kernels = list(dict.fromkeys(usage.kernel for usage in usages))
    names = readable(kernels)
    cells = {(usage.kernel, usage.arch): usage for usage in usages}
    made = Table()
    made.add_column("kernel", overflow="fold")
    for arch in archs:
        made.add_column(arch, justify="right")
    for kernel in kernels:
        made.add_row(names[kernel], *(_cell(cells.get((kernel, arch))) for arch in archs))
    return made


def _cell(usage: Usage | None) -> str:
    if usage is None:
        return "-"
    spilled = f" +{usage.spilled}" if usage.spilled else ""
    return f"{usage.registers}{spilled}{f' /{usage.shared}' if usage.shared else ''}"
