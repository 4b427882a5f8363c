"""Tokenizers that come with weights: read from a checkpoint's folder, and written beside exported ones."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from cramming.data.sources.hub_connection import line
from cramming.data.tokenizer import FILE, Tokenizer, is_local
from cramming.data.tokenizer_hub import from_hub
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.exchange.places import TOKENIZERS

# Classes whose tokenizer a vocab.txt alone is. Others cut words in ways of their own first.
_VOCABULARY_IS_ENOUGH = ("Bert", "DistilBert", "Electra", "MobileBert", "ConvBert", "PreTrained")


def chosen(name: str) -> Tokenizer:
    """The tokenizer a person names: a place on this disk, or a hub id.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    return Tokenizer.load(Path(name).expanduser()) if is_local(name) else from_hub(name)


def beside(weights: Path) -> Tokenizer | None:
    """The tokenizer in the folder of a file of weights; None where there is none.

    Raises:
        UserError: it is damaged, or of a kind that cannot be used.
    """
    folder = weights.parent
    if (folder / FILE).is_file():
        return Tokenizer.load(folder / FILE)
    kind = str(_settings(folder).get("tokenizer_class") or "Bert").removesuffix("Fast").removesuffix("Tokenizer")
    if (folder / "vocab.txt").is_file() and kind in _VOCABULARY_IS_ENOUGH:
        return Tokenizer.load(folder / "vocab.txt")
    about = ("tokenizer_config.json", "special_tokens_map.json")
    forms = [name for name in TOKENIZERS if name not in about and (folder / name).is_file()]
    return _converted(folder, kind, forms) if forms else None


def _converted(folder: Path, kind: str, forms: list[str]) -> Tokenizer:
    """A tokenizer in one of the older forms, as transformers' own classes read it."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    way_out = f"give one with a {FILE}, tokenizer=<place or hub id>"
    if "vocab.txt" in forms:
        raise UserError(f"the tokenizer in {folder} is a {kind}: it needs code to load, which is never run; {way_out}")
    if any(name.endswith(".model") for name in forms) and find_spec("sentencepiece") is None:
        raise UserError(f"{folder / forms[-1]} is read with sentencepiece: pip install sentencepiece; or {way_out}")
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it has to say is raised, too
    try:
        backend = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
        return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), str(folder))
    except UserError:
        raise
    except Exception as error:  # the library raises what its many parts raise
        raise UserError(
            f"the tokenizer in {folder} cannot be read from {', '.join(forms)} ({line(error)}): {way_out}"
        ) from error
    finally:
        logging.set_verbosity(before)


def filled_up(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """The tokenizer with as many ids as a model has rows: those that no text has are named ``[unused<n>]``.

    Models have rows to spare, because matrix units like round numbers. Text is cut into the same ids as before.

    Raises:
        UserError: it has more ids than the model has rows.
    """
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the checkpoint {rows} rows of embeddings: it is not the "
            "checkpoint's; give that one with tokenizer="
        )
    if tokenizer.vocab_size == rows:
        return tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    known = backend.get_vocab(with_added_tokens=True)
    names = (f"[unused{number}]" for number in range(2 * rows))
    free = [name for name in names if name not in known][: rows - tokenizer.vocab_size]
    backend.add_special_tokens(free)
    made = Tokenizer(backend)
    if made.vocab_size != rows:
        raise UserError(
            f"the tokenizer leaves out some ids, so that its {tokenizer.vocab_size} cannot be filled up to the "
            f"checkpoint's {rows} rows of embeddings; give another with tokenizer="
        )
    return made


def write(tokenizer: Tokenizer, folder: Path, positions: int, *, types: bool) -> None:
    """``tokenizer.json`` and what Hugging Face's ``AutoTokenizer`` wants beside it, for any machine to load.

    A tokenizer trained here gets the template that puts ``[CLS]`` and ``[SEP]`` around a text, which pretraining does
    itself; one that came with a template keeps it.

    Args:
        tokenizer: to be written.
        folder: that exists.
        positions: longest sequence of the model, in tokens.
        types: whether the model looks at token types.
    """
    parts = json.loads(tokenizer.to_json())
    backend = tokenizers.Tokenizer.from_str(json.dumps(parts))
    if parts["post_processor"] is None:
        cls, sep = tokenizer.token(tokenizer.cls_id), tokenizer.token(tokenizer.sep_id)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
        )
    backend.encode_special_tokens = False
    write_atomically(folder / FILE, backend.to_str(pretty=True).encode())
    roles = {"pad": tokenizer.pad_id, "cls": tokenizer.cls_id, "sep": tokenizer.sep_id, "mask": tokenizer.mask_id}
    if tokenizer.unk_id is not None:
        roles["unk"] = tokenizer.unk_id
    names = {f"{role}_token": tokenizer.token(number) for role, number in roles.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "model_input_names": ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **names,
    }
    for file, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", names)):
        write_atomically(folder / file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
