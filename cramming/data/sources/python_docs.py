"""``data=python_docs``: prose of the documentation strings of Python and the packages this project installs anyway.

Nothing is downloaded, so this is what the demo and the tests train on. The text depends on what is installed.
"""

import hashlib
import json
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from cramming import faults
from cramming.data.config import DataConfig
from cramming.data.fingerprint import fingerprint
from cramming.data.lock import locked
from cramming.data.sources import prose
from cramming.data.sources.source import Piece, Source, beginning, documents_to_pieces
from cramming.data.workers import Workers
from cramming.durable import write_file
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.registry import register

# This project's direct dependencies; what they depend on is followed.
DISTRIBUTIONS = (
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "datasets",
    "huggingface-hub",
    "rensa",
    "tokenizers",
    "evaluate",
    "transformers",
    "safetensors",
    "lion-pytorch",
    "pytorch-optimizer",
    "pyarrow",
    "zstandard",
    "filelock",
    "rich",
    "matplotlib",
    "wandb",
    "scipy",
    "scikit-learn",
)
SAMPLE_BYTES = 4_000_000
HARVEST_VERSION = 1  # of the code that turns files into text; part of every fingerprint

_SEED = 89
_CHUNK_FILES = 64
_LARGEST_FILE = 1_000_000  # bytes; larger ones are generated tables and cost a worker its memory
_LEFT_OUT_FOLDERS = frozenset({"test", "tests", "idle_test", "_vendor", "site-packages", "__pycache__"})
_SHORTEST_DOCUMENT = 150  # characters


@register("data", "python_docs")
@dataclass
class PythonDocsConfig(DataConfig):
    """Documentation strings of what is installed."""

    kind: str = "python_docs"
    name: str = "python_docs"

    def source(self, data_dir: Path, workers: int, progress: ProgressSink) -> Source:
        """See ``DataConfig.source``."""
        return PythonDocs(data_dir, workers, DISTRIBUTIONS)


class PythonDocs:
    """One document a file, files in a shuffled order that is the same everywhere.

    The text is harvested as it is asked for, a chunk of files at a time; each chunk is kept, so it is done once.
    """

    name = "data=python_docs"
    unit = "B"
    shuffled = True
    sample_bytes = SAMPLE_BYTES

    def __init__(self, data_dir: Path, workers: int, distributions: tuple[str, ...]) -> None:
        found = installed(distributions)
        versions = sorted((name, one.version) for name, one in found.items())
        self.inputs: list[dict[str, str | int]] = [
            {"distribution": name, "version": version} for name, version in versions
        ]
        self.inputs.append({"distribution": "python", "version": platform.python_version()})
        self.fingerprint = fingerprint("python_docs", HARVEST_VERSION, [list(item.values()) for item in self.inputs])
        self._distributions = found
        self._workers = workers
        self._folder = data_dir / f"python_docs-{self.fingerprint}"

    @cached_property
    def total(self) -> float:
        """Bytes of all the files."""
        return float(sum(size for chunk in self._chunks for _, size in chunk))

    @cached_property
    def _chunks(self) -> list[list[tuple[Path, int]]]:
        """Files and their sizes, a chunk harvested at a time. (Looking for them takes a second.)"""
        files = _files(self._distributions)
        return [files[start : start + _CHUNK_FILES] for start in range(0, len(files), _CHUNK_FILES)]

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """See ``Source.pieces``."""
        return documents_to_pieces(self._documents())

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        """See ``Source.glimpse``: the first documents, which are as good as any."""
        return beginning(self.pieces(), characters)

    def _documents(self) -> Iterator[tuple[str, float]]:
        self._folder.mkdir(parents=True, exist_ok=True)
        seen: set[bytes] = set()
        before = 0.0
        with Workers(self._workers) as pool:
            numbered = list(enumerate(self._chunks))

            def harvested(chunk: tuple[int, list[tuple[Path, int]]]) -> list[list[str]]:
                """The documents of a chunk, from the disk where it was kept, else fresh with repetitions still in."""
                number, files = chunk
                kept = self._folder / f"chunk-{number:05d}.json"
                if kept.exists():
                    documents: list[list[str]] = json.loads(kept.read_text(encoding="utf-8"))
                    return documents
                answer, _ = pool.call(f"{__name__}:harvest", {"files": [str(path) for path, _ in files]})
                fresh: list[list[str]] = answer["documents"]
                return fresh

            for (number, files), documents in zip(numbered, pool.ordered(harvested, numbered), strict=True):
                unique = deduplicated(documents, seen)
                kept = self._folder / f"chunk-{number:05d}.json"
                if not kept.exists():
                    faults.point("harvest-chunk")
                    with locked(self._folder):  # other tokenizers and stores, made at the same time, need it too
                        write_file(kept, [json.dumps(unique, ensure_ascii=False, indent=0).encode()], "harvest")
                size = sum(size for _, size in files)
                for place, document in enumerate(unique, 1):
                    yield "\n\n".join(document), before + size * place / len(unique)
                before += size


def deduplicated(documents: list[list[str]], seen: set[bytes]) -> list[list[str]]:
    """Documents (lists of paragraphs) without the paragraphs that were ``seen``, which is updated.

    What too little is left of is dropped whole and its paragraphs stay unseen, so that doing it again to the result
    changes nothing: that is what lets a kept chunk stand for a fresh one.
    """
    unique: list[list[str]] = []
    for document in documents:
        new: dict[bytes, str] = {}
        for paragraph in document:
            key = hashlib.blake2b(" ".join(paragraph.lower().split()).encode(), digest_size=8).digest()
            if key not in seen:
                new.setdefault(key, paragraph)
        if sum(map(len, new.values())) >= _SHORTEST_DOCUMENT:
            unique.append(list(new.values()))
            seen.update(new)
    return unique


def harvest(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Worker task: the prose of ``files``, as one list of paragraphs a file."""
    documents: list[list[str]] = []
    for name in request["files"]:
        try:
            source = Path(name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{name} cannot be read: {error.strerror}; repair the installation, or use data=local"
            ) from error
        found = [text for string in prose.docstrings(source, name) for text in prose.paragraphs(string)]
        # Half of a surrogate pair is possible in a Python string and in no text.
        documents.append([text.encode("utf-8", "replace").decode() for text in found])
    return {"documents": documents}, b""


def installed(names: tuple[str, ...]) -> dict[str, Distribution]:
    """The distributions of these names and all they require, as far as they are installed."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    tried: set[str] = set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in tried:
            continue
        tried.add(name)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # an extra, or for another platform
        for requirement in found[name].requires or []:
            needed, _, marker = requirement.partition(";")
            match = re.match(r"[A-Za-z0-9._-]+", needed)
            if match and "extra" not in marker:
                waiting.append(match[0])
    return found


def _files(distributions: dict[str, Distribution]) -> list[tuple[Path, int]]:
    """Python files of the standard library and of ``distributions`` with their sizes, shuffled by their names."""
    return [(path, size) for _, path, size in named_files(distributions)]


def named_files(distributions: dict[str, Distribution]) -> list[tuple[str, Path, int]]:
    """Those files with their names: distribution (``python``: the standard library), slash, path; and their sizes."""
    named: dict[str, Path] = {}
    for name, one in distributions.items():
        for file in one.files or []:
            if file.suffix == ".py" and not _LEFT_OUT_FOLDERS.intersection(file.parts):
                named[f"{name}/{file.as_posix()}"] = Path(str(file.locate()))
    library = Path(sysconfig.get_path("stdlib"))
    for path in library.rglob("*.py"):
        relative = path.relative_to(library)
        if not _LEFT_OUT_FOLDERS.intersection(relative.parts):
            named[f"python/{relative.as_posix()}"] = path

    def shuffled(name: str) -> bytes:
        return hashlib.blake2b(f"{_SEED} {name}".encode(), digest_size=16).digest()

    files: list[tuple[str, Path, int]] = []
    for name in sorted(named, key=shuffled):
        if named[name].is_file():
            size = named[name].stat().st_size
            if size <= _LARGEST_FILE:
                files.append((name, named[name], size))
    return files
