"""Files of tensors as safetensors lays them out, and reading rows of them one file after the other."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cramming.saving.layout import SIZES, Entry, Outline, Pieces, Rows, Slice, from_json

NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32", torch.complex64: "C64",
    torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in NAMES.items()}
WEIGHTS, OTHERS, TREE, INDEX = "model.safetensors", "state.safetensors", "state.json", "index.json"
MODEL = "model."  # in front of the names of weights, where they stand among those of other tensors
_ORDER = {name: place for place, name in enumerate(SIZES)}


def header(tensors: Mapping[str, Outline]) -> tuple[bytes, dict[str, int]]:
    """What stands before the values in a file of tensors, and the byte of the file at which each tensor begins.

    Wide types come first, then names in order, so that the file is, to the byte, what safetensors writes.
    """
    said: dict[str, Any] = {}
    position = 0
    for name in sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name.encode())):
        outline = tensors[name]
        end = position + outline.bytes
        said[name] = {"dtype": outline.dtype, "shape": list(outline.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + one["data_offsets"][0] for name, one in said.items()}


def rank_file(rank: int, world: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}-of-{world:05d}.safetensors"


def sha256(file: Path) -> str:
    """A file's SHA-256."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Parts:
    """Where the tensors of a checkpoint lie, sharded or whole, under the same names.

    Args:
        folder: the checkpoint's.

    Attributes:
        index: its tensors; weights have ``MODEL`` in front of their names.
        world: how many ranks wrote it.

    Raises:
        OSError, SafetensorError, ValueError, KeyError, TypeError: damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sharded = (folder / INDEX).is_file()
        if self.sharded:
            self.index, self.world = from_json(json.loads((folder / INDEX).read_text()))
            return
        self.index, self.world = {}, 1
        for file, prefix in ((WEIGHTS, MODEL), (OTHERS, "")):
            with safe_open(folder / file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (it is no dict)
                    part = opened.get_slice(key)
                    outline = Outline(tuple(part.get_shape()), part.get_dtype())
                    pieces = (Pieces(0, 0, outline.rows),) if outline.bytes else ()
                    self.index[prefix + key] = Entry(outline, pieces)

    def file_of(self, name: str, rank: int) -> tuple[str, str]:
        """The file that a rank wrote a tensor's rows to, and what the tensor is called there."""
        if self.sharded:
            return rank_file(rank, self.world), name
        return (WEIGHTS, name.removeprefix(MODEL)) if name.startswith(MODEL) else (OTHERS, name)

    def read(self, wanted: Mapping[str, tuple[Rows, list[Slice]]]) -> dict[str, Tensor]:
        """Rows of tensors; every file they lie in is opened once, one at a time, and no other bytes are read.

        Args:
            wanted: as ``layout.reading_plan`` has it.

        Returns:
            By name, (rows, ...), in the processor's memory.
        """
        found = {}
        for name, (rows, _) in wanted.items():
            outline = self.index[name].outline
            found[name] = torch.empty(outline.part(rows.length), dtype=DTYPES[outline.dtype])
        for file, reads in self.by_file(wanted).items():
            with safe_open(self._folder / file, framework="pt") as opened:
                for name, key, one in reads:
                    part = self._rows(opened, name, key, one)
                    if part.ndim:
                        found[name][one.at : one.at + one.rows.length] = part
                    else:
                        found[name] = part
        return found

    def copy(self, wanted: Mapping[str, tuple[Rows, list[Slice]]], places: Mapping[str, tuple[Path, int]]) -> None:
        """Write the values of tensors to files, one piece in memory at a time.

        Args:
            wanted: as for ``read``.
            places: for each tensor a file that is there, and the byte at which its rows begin.
        """
        with ExitStack() as stack:
            targets = {path: stack.enter_context(path.open("r+b")) for path, _ in places.values()}
            for file, reads in self.by_file(wanted).items():
                with safe_open(self._folder / file, framework="pt") as opened:
                    for name, key, one in reads:
                        rows = self._rows(opened, name, key, one)
                        path, start = places[name]
                        targets[path].seek(start + one.at * self.index[name].outline.row_bytes)
                        targets[path].write(rows.contiguous().view(-1).view(torch.uint8).numpy().data)

    def _rows(self, opened: Any, name: str, key: str, one: Slice) -> Tensor:
        if not self.index[name].outline.shape:
            number: Tensor = opened.get_tensor(key)
            return number
        rows: Tensor = opened.get_slice(key)[one.rows.start : one.rows.end]
        return rows

    def by_file(self, wanted: Mapping[str, tuple[Rows, list[Slice]]]) -> dict[str, list[tuple[str, str, Slice]]]:
        """The same slices file by file: (tensor, what it is called there, slice)."""
        files: dict[str, list[tuple[str, str, Slice]]] = {}
        for name, (_, slices) in wanted.items():
            for one in slices:
                file, key = self.file_of(name, one.rank)
                files.setdefault(file, []).append((name, key, one))
        return files


def weights_and_others(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights, and every other tensor, each by its own name."""
    weights = {name.removeprefix(MODEL): one for name, one in tensors.items() if name.startswith(MODEL)}
    return weights, {name: one for name, one in tensors.items() if not name.startswith(MODEL)}
