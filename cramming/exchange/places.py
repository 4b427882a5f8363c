"""Where a checkpoint is: what a person types as ``checkpoint=`` or ``init_from=``, and what it means.

In this order: a run's name (``first``, ``first@step=4000``, ``first@12h``), a place on this disk (a run's folder, a
folder that was exported here, one of Hugging Face's or of an earlier system, a file of weights), an id of the Hugging
Face hub (``google/bert_uncased_L-2_H-128_A-2``, with ``@<revision>`` another than its newest).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from cramming import folder, remote
from cramming.data.sources.hub_connection import line, unreachable
from cramming.errors import UserError
from cramming.exchange import containers
from cramming.saving import fetching
from cramming.suggest import nearest

CONFIGS = ("config.json", "model_config.json")
TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "spiece.model", "spm.model", "sentencepiece.bpe.model",
)  # fmt: skip
OWN = "training.json"  # what an exported folder says to us alone
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is.

    Attributes:
        title: what to call it in a message.
        run: one of our runs and its checkpoint; None: files.
        weights: the file, or the index of files, that holds the weights of what is no run.
    """

    title: str
    run: folder.Found | None = None
    weights: Path | None = None


def locate(given: str, base_dir: str) -> Place:
    """What a person means.

    Args:
        given: what was typed.
        base_dir: where runs live.

    Raises:
        UserError: there is nothing of that name, it holds no checkpoint, or the hub cannot be reached.
    """
    if remote.is_remote(given):
        fetched, chosen = fetching.fetched(given, base_dir)
        if chosen is None:
            return Place(remote.shown(given), weights=containers.weights_of(fetched))
        found = folder.find(str(fetched.parent), None, f"{fetched.name}@{chosen}")
        return Place(f"{found} at {remote.shown(given)}", run=found)
    name, _, at = given.partition("@")
    if "/" not in name and (Path(base_dir) / name / "config.yaml").is_file() and name:
        found = folder.find(base_dir, None, given)
        return Place(str(found), run=found)
    for text, which in ((given, ""), (name, at)):
        path = Path(text).expanduser()
        if path.is_file() and not which:
            return Place(f"file {given}", weights=path)
        if path.is_dir():
            if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
                path = path.resolve()
                found = folder.find(str(path.parent), None, f"{path.name}@{which}")
                return Place(str(found), run=found)
            if not which:
                return Place(f"folder {given}", weights=containers.weights_of(path))
    runs = sorted(path.parent.name for path in Path(base_dir).glob("*/config.yaml"))
    if given.startswith((".", "/", "~")) or Path(name).suffix in containers.SUFFIXES or not _ID.fullmatch(name):
        raise UserError(f"{given} is neither a run in {base_dir}, nor a folder or file of weights{nearest(name, runs)}")
    fetched = _fetched(name, at or None, base_dir, runs)
    return Place(f"{given} of the hub, commit {fetched.name[:12]}", weights=containers.weights_of(fetched))


def _fetched(name: str, revision: str | None, base_dir: str, runs: list[str]) -> Path:
    """The folder of the hub's cache with what is needed of a repository; fetched, unless it is there.

    Raises:
        UserError: there is none of that name, it holds no weights, or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    there = _cached(name, revision, with_tokenizer=True)
    if there is not None:
        return there
    instead = f"and {name} is no run in {base_dir}{nearest(name, runs)}" if "/" not in name else ""
    if reason := unreachable():  # the library would try for half a minute
        there = _cached(name, revision, with_tokenizer=False)
        if there is not None:
            return there
        raise UserError(
            f"{name} is not on this disk and cannot be fetched from the hub ({reason}) {instead}".rstrip()
            + "; where there is a network, run: hf download " + name
        )  # fmt: skip
    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision)
        files = _needed([file.rfilename for file in info.siblings or []], name)
        # Not by the commit just seen, or the cache would not know by what name it was asked for.
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name} is only for those its owner lets: ask at https://huggingface.co/{name}, then run: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision!r} on the hub: give a branch, tag or commit") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(f"{name} is neither on this disk nor on the hub {instead}".rstrip()) from error
    except Exception as error:  # any of the library's many reasons
        raise UserError(f"{name} cannot be fetched from the hub ({line(error)}); try again, it goes on") from error


def _cached(name: str, revision: str | None, *, with_tokenizer: bool) -> Path | None:
    """The folder of the hub's cache, if all that is needed was fetched before."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, local_files_only=True, allow_patterns=list(CONFIGS)
            )
        )
        weights = containers.weights_of(found)
        shards = containers.shards_of(weights) if weights.name.endswith(".index.json") else [weights]
    except (UserError, errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    wanted = [CONFIGS, TOKENIZERS] if with_tokenizer else [CONFIGS]
    there = all(any((found / file).is_file() for file in files) for files in wanted)
    return found if there and all(shard.is_file() for shard in shards) else None


def _needed(files: list[str], name: str) -> list[str]:
    """Of a repository's files, those of one form of its weights, its config and its tokenizer.

    Raises:
        UserError: it has no weights that can be read here.
    """
    kept = [file for file in files if file in (*CONFIGS, *TOKENIZERS, OWN) or re.fullmatch(r"[^/]*vocab\.txt", file)]
    for weights in containers.NAMES:
        if weights in files:
            stem = weights.split(".")[0]
            shards = [file for file in files if re.fullmatch(rf"{stem}-\d+-of-\d+\.\w+", file)]
            return [*kept, weights, *(shards if weights.endswith(".index.json") else [])]
    others = [file for file in files if "/" not in file and Path(file).suffix in containers.SUFFIXES]
    if len(others) != 1:
        raise UserError(
            f"{name} has no weights under a usual name ({', '.join(containers.NAMES)}): "
            + (
                f"fetch one of {', '.join(others)} with hf download and name the file"
                if others
                else "choose another id"
            )
        )
    return [*kept, *others]
