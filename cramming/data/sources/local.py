"""``data=local``: your own text: txt, jsonl, csv or parquet; a file, a folder or a glob; plain, .gz, .xz or .zst.

A folder of shards with their index is read as its index says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming.data.config import DataConfig
from cramming.data.fingerprint import content_hashes, fingerprint
from cramming.data.sources import formats
from cramming.data.sources.files import find, stem_suffix
from cramming.data.sources.shard_text import ShardText, holds_shards
from cramming.data.sources.source import Piece, Source
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.registry import register
from cramming.suggest import nearest

DOCUMENTS = ("line", "block", "file")
SAMPLE_BYTES = 16_000_000
_GLIMPSE_FILES = 4
_MEASURED_CHARACTERS = 4_000_000  # read of a file to learn how much text its bytes hold: a tenth of a second


@register("data", "local")
@dataclass
class LocalConfig(DataConfig):
    """Files on this machine."""

    kind: str = "local"
    name: str = "local"
    path: str | None = None  # file, folder (recursive) or glob
    text_column: str = "text"  # of jsonl, csv and parquet files, and of shards
    document: str = "block"  # what is one document of a plain text: line, block (between blank lines) or file

    def check(self) -> None:
        """See ``DataConfig.check``."""
        super().check()
        if not self.path:
            raise UserError("data=local needs data.path=<file, folder or glob>")
        if self.document not in DOCUMENTS:
            raise UserError(f"data.document={self.document} is not known{nearest(self.document, DOCUMENTS)}")

    def source(self, data_dir: Path, workers: int, progress: ProgressSink) -> Source:
        """See ``DataConfig.source``."""
        assert self.path, "check() comes first"
        folder = Path(self.path).expanduser()
        if holds_shards(folder):
            return ShardText(folder, self.text_column, data_dir, progress)
        return LocalSource(self.path, self.document, self.text_column, data_dir, progress)


class LocalSource:
    """Documents of files, in the order of their sorted paths.

    Raises:
        UserError: nothing is at ``path``, or it cannot be read.
    """

    unit = "B"
    shuffled = False
    sample_bytes = SAMPLE_BYTES

    def __init__(self, path: str, document: str, text_column: str, data_dir: Path, progress: ProgressSink) -> None:
        self.name = f"data.path={path}"
        self._document = document
        self._text_column = text_column
        self._files = find(path)
        hashes = content_hashes(self._files, data_dir, progress)
        self._sizes = [file.stat().st_size for file in self._files]
        self.total = float(sum(self._sizes))
        self.inputs: list[dict[str, str | int]] = [
            {"file": file.name, "bytes": size, "sha256": sha256}
            for file, size, sha256 in zip(self._files, self._sizes, hashes, strict=True)
        ]
        # The format and the compression belong to the content; where the files lie and what they are called do not.
        formats_read = [(stem_suffix(file), file.suffix) for file in self._files]
        self.fingerprint = fingerprint("local", 1, hashes, formats_read, document, text_column)

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """See ``Source.pieces``."""
        before = 0.0
        for file, size in zip(self._files, self._sizes, strict=True):
            for piece in formats.read(file, self._document, self._text_column):
                yield piece._replace(position=before + piece.position)
            before += size

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        """See ``Source.glimpse``: the beginnings of a few files spread over the corpus."""
        step = max(1, len(self._files) // _GLIMPSE_FILES)
        chosen = list(zip(self._files, self._sizes, strict=True))[::step][:_GLIMPSE_FILES]
        texts: list[str] = []
        expected = 0.0
        for file, size in chosen:
            beginning, whole = self._beginning(file, size, characters / len(chosen))
            texts += beginning
            expected += whole
        return texts, sum(size for _, size in chosen) * sum(map(len, texts)) / max(1.0, expected)

    def _beginning(self, file: Path, size: int, characters: float) -> tuple[list[str], float]:
        """About ``characters`` of text a file begins with, and how many it may hold in all.

        Read further than that, because the beginning of a compressed file takes more bytes than what follows it.
        """
        texts: list[str] = []
        read = 0
        halfway = (0, 0.0)
        for piece in formats.read(file, self._document, self._text_column):
            if read < characters:
                texts.append(piece.text)
            read += len(piece.text)
            if read < _MEASURED_CHARACTERS / 2:
                halfway = (read, piece.position)
            if read >= _MEASURED_CHARACTERS:
                before, begun = halfway if piece.position > halfway[1] else (0, 0.0)
                return texts, read + (read - before) / max(1.0, piece.position - begun) * (size - piece.position)
        return texts, float(read)
