"""The token store: fixed-length sequences on the disk, mapped into memory.

Shape legend: N rows, S positions, n rows asked for.

A folder with ``tokens.bin`` (N, S), ``lengths.bin`` (N,) int32 in the document layout, ``manifest.json`` and the
tokenizer. A sequence's id is its row number, for ever.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cramming.data.fingerprint import file_sha256
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError

STORE_VERSION = 2  # of the files and of the code that decides their content; part of every fingerprint
MANIFEST = "manifest.json"


class TokenStore:
    """Prepared sequences, read only. ``TokenStore.open(folder)`` makes one."""

    def __init__(self, folder: Path, manifest: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.rows: int = manifest["rows"]
        self.seq_length: int = manifest["seq_length"]
        self.layout: str = manifest["layout"]
        self.fingerprint: str = manifest["fingerprint"]
        dtype = np.dtype(manifest["dtype"])
        self._tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r", shape=(self.rows, self.seq_length))
        self._lengths: np.ndarray | None = None
        if self.layout == "document":
            self._lengths = np.memmap(folder / "lengths.bin", dtype=np.int32, mode="r", shape=(self.rows,))

    @staticmethod
    def open(folder: Path) -> "TokenStore":
        """The store in ``folder``.

        Raises:
            UserError: none is there, it is damaged, or of another version.
        """
        again = f"delete {folder} and prepare the data again"
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            version = manifest["versions"]["store"]
            size = manifest["rows"] * manifest["seq_length"] * np.dtype(manifest["dtype"]).itemsize
            sizes = {"tokens.bin": size}
            if manifest["layout"] == "document":
                sizes["lengths.bin"] = 4 * manifest["rows"]
            found = {name: (folder / name).stat().st_size for name in sizes}
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing: there is no whole token store; {again}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the token store's manifest cannot be used ({error}); {again}") from error
        if version != STORE_VERSION:
            raise UserError(f"the token store is of version {version}, this program's is {STORE_VERSION}; {again}")
        for name, expected in sizes.items():
            if found[name] != expected:
                raise UserError(f"{folder / name} has {found[name]} bytes, not {expected}: it is damaged; {again}")
        tokenizer = Tokenizer.kept(folder)
        if tokenizer.sha256 != manifest["tokenizer_sha256"]:
            raise UserError(f"the token store's tokenizer is not the one it was made with; {again}")
        return TokenStore(folder, manifest, tokenizer)

    def read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows ``ids`` (n,) int64 -> tokens (n, S) in the storage type, lengths (n,) int32 (``None`` if packed)."""
        lengths = None if self._lengths is None else np.asarray(self._lengths[ids])
        return np.asarray(self._tokens[ids]), lengths

    def about_reading(self) -> dict[str, float]:
        """What reading waited for, for the summary: nothing, all is here."""
        return {}

    def verify(self) -> None:
        """Read everything and compare its checksum.

        Raises:
            UserError: the tokens are not the ones written.
        """
        if file_sha256(self.folder / "tokens.bin") != self.manifest["tokens_sha256"]:
            raise UserError(
                f"{self.folder}/tokens.bin is damaged (checksum); delete {self.folder} and prepare the data again"
            )
