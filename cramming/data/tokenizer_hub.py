"""Tokenizers by their Hugging Face name. Files are read, code never runs."""

import json
from pathlib import Path

from cramming.data.sources.hub_connection import line, unreachable
from cramming.data.tokenizer import ALTERNATIVES, FILE, Tokenizer
from cramming.errors import UserError

_VOCABULARY = "vocab.txt"  # what the first BERTs were published with, and many others since
# Classes whose tokenizer a vocab.txt is. Others cut words in ways of their own first (Japanese ones, for example).
_BERTS = ("Bert", "DistilBert", "Electra", "MobileBert", "ConvBert")


def from_hub(name: str) -> Tokenizer:
    """A tokenizer by its name: its tokenizer.json, or its vocab.txt where it has none.

    Raises:
        UserError: there is none of that name, it cannot be used, or the hub cannot be reached.
    """
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RemoteEntryNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError as NoSuchName

    try:
        try:
            return Tokenizer.load(_fetched(name, FILE))
        except RemoteEntryNotFoundError:
            return Tokenizer.load(_vocabulary(name))
    except UserError:
        raise
    except GatedRepoError as error:
        reason = "can be read only by those its owner lets: ask there, then run `hf auth login`"
        raise UserError(f"data.tokenizer={name} {reason}; or {ALTERNATIVES}") from error
    except (NoSuchName, HFValidationError) as error:
        raise UserError(f"data.tokenizer={name} is neither on this disk nor on the hub; {ALTERNATIVES}") from error
    except RemoteEntryNotFoundError as error:
        raise UserError(f"data.tokenizer={name} has no {FILE} and no {_VOCABULARY}; {ALTERNATIVES}") from error
    except Exception as error:  # any of the library's many reasons
        raise _not_fetched(name, line(error)) from error


def _fetched(name: str, file: str) -> Path:
    """A file of a repository, from this disk if it was fetched before."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, local_files_only=True))
    except LocalEntryNotFoundError:
        if reason := unreachable():  # the library would try for half a minute
            raise _not_fetched(name, reason) from None
        return Path(hf_hub_download(name, file))


def _not_fetched(name: str, reason: str) -> UserError:
    return UserError(f"data.tokenizer={name} is not on this disk and cannot be fetched ({reason}); {ALTERNATIVES}")


def _vocabulary(name: str) -> Path:
    """The vocab.txt of a repository whose tokenizer is BERT's.

    Raises:
        UserError: it is another's.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    path = _fetched(name, _VOCABULARY)
    try:
        kind = json.loads(_fetched(name, "tokenizer_config.json").read_text()).get("tokenizer_class") or "Bert"
    except RemoteEntryNotFoundError:
        return path
    if kind.removesuffix("Fast").removesuffix("Tokenizer") not in _BERTS:
        raise UserError(
            f"data.tokenizer={name} is a {kind} without a {FILE}: it needs code to load, which is never run; "
            f"{ALTERNATIVES}"
        )
    return path
