"""A miniature of the study's published irreducible losses, pickled by Python in a process of its own."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ARCHIVE = "il_losses_c4.tar"
CHUNK = 70  # losses in each
# The study's program: what a microbatch gives is entered place by place, and dumped every so often with the defaults of
# its Python, which are protocol 4.
_WRITE = """
import pickle, sys
folder, chunk = sys.argv[1], int(sys.argv[2])
losses = [float(line) for line in sys.stdin]
for number, start in enumerate(range(0, len(losses), chunk)):
    part = {start + i: loss for i, loss in enumerate(losses[start : start + chunk])}
    with open(f"{folder}/dict_chunk_{number}.pkl", "wb") as file:
        pickle.dump(part, file, protocol=int(sys.argv[3]))
"""
_WRITE_ANY = """
import collections, json, os, pickle, sys
import numpy
class Calls:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)
for value, protocol in json.load(sys.stdin):
    print(pickle.dumps(eval(value), protocol=protocol).hex())
"""


def make(folder: Path, losses: NDArray[np.floating], chunk: int = CHUNK, protocol: int = 4) -> None:
    """Write the chunks of ``losses``, by place, into ``folder``."""
    folder.mkdir(parents=True)
    lines = "\n".join(map(repr, losses.tolist()))
    subprocess.run(
        [sys.executable, "-c", _WRITE, str(folder), str(chunk), str(protocol)], input=lines, text=True, check=True
    )


def pickled(*values: tuple[str, int]) -> list[bytes]:
    """The pickles of Python expressions, each in a protocol; ``Calls()`` makes a folder in whoever unpickles it."""
    asked = json.dumps(values)
    told = subprocess.run(
        [sys.executable, "-c", _WRITE_ANY], input=asked, stdout=subprocess.PIPE, text=True, check=True
    )
    return [bytes.fromhex(line) for line in told.stdout.split()]


def archive(folder: Path) -> bytes:
    """The chunks as the published tar has them: below a folder of the study's, in any order, with what a disk adds."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(folder.iterdir(), key=lambda path: path.name[::-1]):
            tar.add(path, arcname=f"outputs/il_model/examples_to_loss/{path.name}")
            other = tarfile.TarInfo(f"outputs/il_model/examples_to_loss/._{path.name}")
            tar.addfile(other)
    return packed.getvalue()
