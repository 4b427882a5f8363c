"""Where a dataset lies: on the Hugging Face hub at one commit, in the hub's cache on this disk, or in a folder.

The commit that was found first is remembered in ``<data_dir>/hub.json``: what was prepared from it opens without a
network, and a later start does not move to newer data. Deleting the file, or the dataset's line, looks again.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cramming.data.fingerprint import content_hashes, fingerprint
from cramming.data.lock import locked
from cramming.data.sources.hub_connection import connection_errors, line, listen, unreachable
from cramming.data.sources.hub_rows import ParquetRows, Rows, StreamedRows, check_column, without_torch
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.suggest import nearest

MEMORY = "hub.json"
_ASK_S = 10.0


@dataclass(frozen=True)
class Wanted:
    """Which part of which dataset, as a person named it; see ``HubConfig``. The rest is for messages."""

    dataset: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    download: str | None = None
    options: str = "data"  # the group that has the options dataset and subset
    revising: str = "data.revision="  # what precedes a revision
    offline: str = "offline, use data=python_docs, or data=local data.path=<your text>"


class Repository:
    """A dataset that was found. Without a network that is one seen before, or one in the hub's cache.

    Raises:
        UserError: it is not there, or cannot be reached.
    """

    def __init__(self, wanted: Wanted, data_dir: Path, progress: ProgressSink) -> None:
        self.name = f"{wanted.options}.dataset={wanted.dataset}"
        self._wanted = wanted
        self._progress = progress
        self._commit: str | None = None
        self._folder: Path | None = None  # where the files are, if on this disk
        part: dict[str, str | int] = {"split": wanted.split}
        if wanted.subset is not None:
            part["subset"] = wanted.subset
        given = Path(wanted.dataset).expanduser()
        if given.exists():
            if wanted.revision is not None:
                raise UserError(
                    f"{wanted.revising}{wanted.revision} is for datasets of the hub; {given} is on this disk"
                )
            self._folder = given
            files = [Path(file) for file in self._files]
            hashes = content_hashes(files, data_dir, progress)
            self.identity: list[object] = ["files", hashes, [file.suffixes[-2:] for file in files]]
            self.inputs: list[dict[str, str | int]] = [
                part | {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256}
                for file, sha256 in zip(files, hashes, strict=True)
            ]
            return
        if wanted.dataset.startswith((".", "/", "~")):
            raise UserError(f"{self.name} does not exist; it takes owner/name on the hub, or a folder or file")
        if wanted.dataset.count("/") != 1:
            raise self._no_id()
        self._memory = data_dir / MEMORY
        self._key = f"{wanted.dataset}@{wanted.revision or 'main'} {wanted.subset or ''} {wanted.split}"
        self._known = _remembered(self._memory).get(self._key) or self._found()
        self._commit = self._known["commit"]
        self.identity = ["hub", wanted.dataset, self._commit, wanted.subset, wanted.split, self._known.get("cached")]
        self.inputs = [part | {"dataset": wanted.dataset, "commit": self._known["commit"]}]

    @property
    def is_local(self) -> bool:
        """Whether looking into all files costs no requests."""
        return self._folder is not None

    def known_rows(self) -> int | None:
        """Rows of the split, as the dataset's own description has it."""
        splits = self._builder.info.splits or {}
        info = splits.get(self._wanted.split)
        return info.num_examples or None if info is not None else None

    def rows(self, column: str) -> Rows:
        """The text column of the split.

        Raises:
            UserError: there is no such subset, split or column, or it cannot be read.
        """
        files = self._files
        if all(file.endswith(".parquet") for file in files):
            return ParquetRows(files, column, self.name)
        dataset = self.streamed()
        if dataset.features is not None:
            check_column(self.name, column, {key: _kind(value) for key, value in dataset.features.items()})
        return StreamedRows(dataset, column, self.name)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits there are."""
        return tuple(str(name) for name in self._builder.config.data_files or {})

    def streamed(self) -> Any:
        """All columns of the split, as an ``IterableDataset`` of the library.

        Raises:
            UserError: it cannot be read.
        """
        with self.explaining(), without_torch():
            return self._builder.as_streaming_dataset(split=self._wanted.split)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """What goes wrong inside, where the dataset is read, is said in one line.

        Raises:
            UserError: something went wrong.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # any of the libraries' many reasons
            raise self._explained(error) from error

    @property
    def _files(self) -> list[str]:
        """Paths or addresses of the split's files, in their order."""
        return self._split_of(self._builder)

    def _split_of(self, builder: Any) -> list[str]:
        found: dict[Any, Any] = builder.config.data_files or {}
        names = [str(name) for name in found]
        if self._wanted.split not in names:
            way_out = "; choose one with data.split=<name>" if self._wanted.options == "data" else ""
            there = ", ".join(names) or "none"
            raise UserError(f"{self.name} has no split {self._wanted.split!r}; its splits are: {there}{way_out}")
        return [str(file) for file in found[self._wanted.split]]

    def _names_of(self, builder: Any) -> str:
        """A short name for which files the split has: the hub's cache may have a part of them only."""
        root = f"hf://datasets/{self._wanted.dataset}@{self._commit}" if self._folder is None else str(self._folder)
        return fingerprint([file.removeprefix(root) for file in self._split_of(builder)])

    @cached_property
    def _builder(self) -> Any:
        """The library's description of the dataset: its files, splits and columns."""
        if self._commit is None:
            return self._loaded()
        reason = "the hub's cache has it no more" if "cached" in self._known else unreachable()
        if reason:
            self._folder = self._in_cache()
            if self._folder is None:
                raise self._offline(reason)
        where = f"hub's cache, {self._folder}" if self._folder else "hub"
        self._progress.note(f"reading {self._wanted.dataset} at commit {self._commit[:12]} from the {where}")
        builder = self._loaded()
        names = self._names_of(builder)
        if self._folder is not None and self._known.get("files") != names:
            raise UserError(
                f"{self.name} is in the hub's cache with other files than it had; "
                f"run: {self._command}; or delete {self._memory} to start over with what is there"
            )
        with locked(self._memory):  # what other processes learned meanwhile stays
            everything = _remembered(self._memory) | {self._key: self._known | {"files": names}}
            write_atomically(self._memory, json.dumps(everything, indent=1, sort_keys=True).encode())
        return builder

    def _loaded(self) -> Any:
        import datasets

        listen(self._progress)
        where = str(self._folder or self._wanted.dataset)
        options: dict[str, Any] = {}
        if self._folder is None:
            options = {"revision": self._commit}
        elif self._folder.is_file():
            where, options = str(self._folder.parent), {"data_files": self._folder.name}
        # A cache of its own, or the library falls back silently on whatever version it has kept.
        with self.explaining(), tempfile.TemporaryDirectory() as cache:
            return datasets.load_dataset_builder(where, self._wanted.subset, cache_dir=cache, **options)

    def _found(self) -> dict[str, str]:
        """What is to be remembered of a dataset that is asked for the first time."""
        reason = unreachable()
        if not reason:
            try:
                return {"commit": self._asked()}
            except OSError as error:
                reason = line(error)
        self._folder = self._in_cache()
        if self._folder is None:
            raise self._offline(reason)
        folder, names = self._folder, self._names_of(self._loaded())
        self._folder = None
        return {"commit": folder.name, "cached": names, "files": names}

    def _asked(self) -> str:
        """The commit the hub has under the revision now.

        Raises:
            UserError: there is no such dataset or revision.
            OSError: it does not answer.
        """
        import huggingface_hub
        from huggingface_hub import errors

        wanted = self._wanted
        try:
            info = huggingface_hub.HfApi().dataset_info(
                wanted.dataset, revision=wanted.revision, timeout=_ASK_S, expand=["sha"]
            )
        except errors.GatedRepoError as error:
            raise self._gated() from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"{self.name} is not on the hub, or private (then: hf auth login); "
                "look its id up at https://huggingface.co/datasets"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(
                f"{self.name} has no revision {wanted.revision!r}; {wanted.revising} takes a branch, tag or commit"
            ) from error
        except errors.HFValidationError as error:
            raise self._no_id() from error
        except connection_errors() as error:
            raise OSError(line(error)) from error
        assert info.sha is not None, "asked for"
        return info.sha

    def _in_cache(self) -> Path | None:
        """The folder of the hub's cache with the dataset's files, if it was fetched with the hub's own command."""
        import huggingface_hub
        from huggingface_hub import errors

        revision = self._commit or self._wanted.revision
        try:
            found = huggingface_hub.snapshot_download(
                self._wanted.dataset, repo_type="dataset", revision=revision, local_files_only=True
            )
        except (errors.LocalEntryNotFoundError, errors.HFValidationError):
            return None
        return Path(found)

    @property
    def _command(self) -> str:
        return self._wanted.download or f"hf download {self._wanted.dataset} --repo-type dataset"

    def _offline(self, reason: str) -> UserError:
        return UserError(
            f"{self.name} is not prepared yet and the hub cannot be reached ({reason}); "
            f"where there is a network, run: {self._command}; {self._wanted.offline}"
        )

    def _no_id(self) -> UserError:
        return UserError(
            f"{self.name} is neither an id (owner/name) of the hub nor on this disk; "
            "look it up at https://huggingface.co/datasets"
        )

    def _gated(self) -> UserError:
        dataset = self._wanted.dataset
        return UserError(
            f"{self.name} is gated: accept its terms at https://huggingface.co/datasets/{dataset}, "
            "then log in with: hf auth login (or set HF_TOKEN)"
        )

    def _explained(self, error: Exception) -> UserError:
        """What a person can do about an error of the libraries."""
        import datasets

        text = str(error)
        if "gated dataset" in text or type(error).__name__ == "GatedRepoError":
            return self._gated()
        if isinstance(error, RuntimeError) and "scripts are no longer supported" in text:
            return UserError(
                f"{self.name} needs code of its own to load ({text.rsplit(maxsplit=1)[-1]}), which is never run; "
                "choose a copy in parquet or jsonl, or try the hub's own conversion: "
                f"{self._wanted.revising}refs/convert/parquet"
            )
        if isinstance(error, ValueError) and ("BuilderConfig" in text or "Config name is missing" in text):
            return self._no_subset()
        missing = (datasets.exceptions.DataFilesNotFoundError, datasets.exceptions.DefunctDatasetError)
        if isinstance(error, missing) or type(error).__name__ == "EmptyDatasetError":
            return UserError(f"{self.name} has no files that can be read (parquet, jsonl, csv, text); choose another")
        if self._folder is None and isinstance(error, (ConnectionError, TimeoutError, *connection_errors())):
            return UserError(
                f"the connection to {self.name} was lost ({line(error)}); what was finished before is kept: "
                "run the same command again to continue"
            )
        way_out = (
            f"try another revision, {self._wanted.revising}"
            if self._folder is None
            else "write or download its files again"
        )
        return UserError(f"{self.name} cannot be read ({line(error)}); {way_out}, or another dataset")

    def _no_subset(self) -> UserError:
        import datasets

        where, options = (str(self._folder), {}) if self._folder else (self._wanted.dataset, {"revision": self._commit})
        names = datasets.get_dataset_config_names(where, **options)
        asked = self._wanted.subset
        said = "comes in several subsets" if asked is None else f"has no subset {asked!r}"
        close = "" if asked is None or asked in names else nearest(asked, names) if len(names) > 20 else ""
        listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        return UserError(f"{self.name} {said}: {listed}{close}; choose one with {self._wanted.options}.subset=<name>")


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _remembered(memory: Path) -> dict[str, dict[str, str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = None
    return known if isinstance(known, dict) else {}  # only a memory: what it forgot is asked again
