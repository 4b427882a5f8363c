"""A model of ours as a folder that others load: transformers, the system its family comes from, or us."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cramming.architectures.reference import tensors_of, to_reference
from cramming.architectures.references import FAMILIES, MLM, WRITERS
from cramming.durable import replace, room_for, sync, sync_folder, write_atomically
from cramming.errors import UserError
from cramming.exchange import importing, model_card, onnx_graph, tokenizers
from cramming.exchange.importing import Request
from cramming.exchange.places import OWN
from cramming.exchange.weights import Weights
from cramming.model import Model

_SPECIAL = ("pad", "cls", "sep", "mask")
_SAME_IDS = {"bos_token_id": "cls", "eos_token_id": "sep"}  # theirs -> our word for it, where a family has them


def export(
    weights: Weights, to: Path, *, name: str, facts: Mapping[str, str], overwrite: bool, onnx: bool
) -> list[str]:
    """Write a model's folder, whole or not at all.

    It is read back before it takes its place, and must give the same weights to the last bit.

    Args:
        weights: what to export.
        to: the new folder.
        name: the model's.
        facts: how it was trained, for its card.
        overwrite: replace a folder that is there.
        onnx: also write the encoder as an ONNX graph.

    Returns:
        Lines about what was written.

    Raises:
        UserError: the folder is there, the architecture has an option nobody else knows, or the disk is full.
    """
    check_free(to, overwrite)
    tokenizer = weights.tokenizer
    if tokenizer is None:
        raise UserError(f"{weights.title} has no tokenizer: name its own with tokenizer=")
    model = weights.model()
    family, config, state = reference_form(weights, model)
    library = _transformers_class(config)
    ids = {role: getattr(tokenizer, f"{role}_id") for role in _SPECIAL}
    config = _with_ids(config, ids, library is not None)
    temporary = to.with_name(f".exporting-{to.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with room_for(to):
            temporary.mkdir(parents=True)
            save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
            _write_json(temporary / "config.json", config)
            types = int(config.get("type_vocab_size") or 0) > 1
            tokenizers.write(tokenizer, temporary, weights.seq_length, types=types)
            own = {"arch": asdict(weights.arch), "vocab_size": weights.vocab_size, "positions": weights.seq_length}
            _write_json(temporary / OWN, {**own, "name": name, "trained": dict(facts), "origin": dict(weights.origin)})
            if onnx:
                onnx_graph.write(model, temporary / "encoder.onnx", family)
            card = model_card.card(name, weights, facts, family=family, library=library, onnx=onnx)
            write_atomically(temporary / "README.md", card.encode())
            mode = (temporary / OWN).stat().st_mode & 0o777  # the library leaves its file to its owner alone
            (temporary / "model.safetensors").chmod(mode)
            _check_readable(temporary, weights)
            for file in temporary.iterdir():
                sync(file, "export")
            _take_place(temporary, to)
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    loads = f"transformers.{library}" if library else f"the reference's own loader ({family})"
    return [f"{to}: {len(state)} tensors under the names of {family}, for {loads}", *(["encoder.onnx"] if onnx else [])]


def check_free(to: Path, overwrite: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        UserError: a file, or a folder with something in it that is not to be replaced or is no export.
    """
    if not to.exists():
        return
    if not to.is_dir():
        raise UserError(f"to={to} is a file: name a folder")
    if any(to.iterdir()) and not overwrite:
        raise UserError(f"to={to} is there and not empty: name another folder, or replace it with overwrite=true")
    if any(to.iterdir()) and not (to / OWN).is_file():
        raise UserError(f"to={to} was not written by an export, so overwrite=true does not remove it: name another")


def reference_form(weights: Weights, model: Model) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """A model as its family has it: the family, their config, their tensors.

    Raises:
        UserError: there is no other system that has this architecture, or not with these options.
    """
    kind = weights.arch.kind
    if kind not in WRITERS:
        raise UserError(
            f"arch={kind} cannot be exported: no other system has it; there are: {', '.join(sorted(WRITERS))}"
        )
    family, config = WRITERS[kind](weights.arch, weights.vocab_size, weights.seq_length)
    plan = FAMILIES[family](config, MLM)
    copies = _transformers_class(config) is None  # the library ties them itself; others may read strictly
    return family, config, to_reference(model, plan, copies=copies)


def _transformers_class(config: Mapping[str, Any]) -> str | None:
    """The class of transformers that loads a folder with this config; None: there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    known = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(str(config.get("model_type")))
    return known if known is not None and known in (config.get("architectures") or ()) else None


def _with_ids(config: dict[str, Any], ids: Mapping[str, int], library: bool) -> dict[str, Any]:
    """The config with the tokenizer's special ids, wherever it has a place for them."""
    changed = {key: _with_ids(value, ids, False) if isinstance(value, dict) else value for key, value in config.items()}
    for key in changed:
        role = _SAME_IDS.get(key, key.removesuffix("_token_id"))
        if key.endswith("_token_id") and role in ids:
            changed[key] = ids[role]
    if library:
        import transformers

        changed |= {"pad_token_id": ids["pad"], "dtype": "float32", "transformers_version": transformers.__version__}
    return changed


def _check_readable(folder: Path, weights: Weights) -> None:
    """What was written gives the weights that went in."""
    read = importing.of_files(folder / "model.safetensors", str(folder), Request())
    ours, theirs = tensors_of(weights.model()), tensors_of(read.model())
    assert read.arch == weights.arch, (read.arch, weights.arch)
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), f"{name} differs after export"


def _take_place(temporary: Path, to: Path) -> None:
    sync_folder(temporary)
    if to.exists():
        old = to.with_name(f".replaced-{to.name}")
        shutil.rmtree(old, ignore_errors=True)
        to.rename(old)
        replace(temporary, to, "export")
        shutil.rmtree(old)
    else:
        replace(temporary, to, "export")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
