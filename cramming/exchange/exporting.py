"""A model of ours as a folder that others load: transformers, the system its family comes from, or us."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cramming.architectures.configs import ArchConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.reference import tensors_of, to_reference
from cramming.architectures.references import FAMILIES, MLM, Plan
from cramming.durable import replace as rename
from cramming.durable import room_for, sync, sync_folder, write_atomically
from cramming.errors import UserError
from cramming.exchange import importing, model_card, onnx_graph, tokenizers
from cramming.exchange.importing import Request
from cramming.exchange.places import OWN
from cramming.exchange.weights import Weights
from cramming.exchange.written import reference_config, special_ids, transformers_class
from cramming.model import Model


def export(
    weights: Weights, to: Path, *, name: str, facts: Mapping[str, str], overwrite: bool, onnx: bool
) -> list[str]:
    """Write a model's folder, whole or not at all.

    It is read back before it takes its place, and must give the same weights to the last bit.

    Args:
        weights: what to export; of them, the layers that are active.
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
    given, weights = weights, weights.trained()
    tokenizer = weights.tokenizer
    assert tokenizer is not None, "selected"
    model = weights.model()
    ids = special_ids(tokenizer)
    family, config = reference_config(weights.arch, weights.vocab_size, weights.seq_length, ids)
    library = transformers_class(config)
    # The library ties what is tied by itself; others may read strictly.
    plan = FAMILIES[family](config, MLM)
    state = to_reference(model, plan, copies=library is None)
    temporary = to.with_name(f".exporting-{to.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with room_for(to):
            temporary.mkdir(parents=True)
            save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
            _write_json(temporary / "config.json", {**config, **(_about_library() if library else {})})
            types = int(config.get("type_vocab_size") or 0) > 1
            tokenizers.write(tokenizer, temporary, weights.seq_length, types=types)
            sizes = {"vocab_size": weights.vocab_size, "positions": weights.seq_length, "special_ids": ids}
            about = {
                "name": name,
                "trained": dict(facts),
                "origin": dict(weights.origin),
                "data": _shared(weights.data),
            }
            _write_json(temporary / OWN, {"arch": asdict(_self_contained(weights.arch, plan)), **sizes, **about})
            if onnx:
                onnx_graph.write(model, temporary / "encoder.onnx")
            count = sum(parameter.numel() for parameter in model.parameters())
            card = model_card.card(
                weights, facts, name=name, parameters=count, family=family, library=library, onnx=onnx
            )
            write_atomically(temporary / "README.md", card.encode())
            mode = (temporary / OWN).stat().st_mode & 0o777  # the library leaves its file to its owner alone
            (temporary / "model.safetensors").chmod(mode)
            _check_readable(temporary, model)
            for file in temporary.iterdir():
                sync(file, "export")
            _take_place(temporary, to)
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    some = [] if weights is given else [f"{model.layers} layers, those that were active when it was saved"]
    loads = f"transformers.{library}" if library else f"the reference's own loader ({family})"
    said = f"{to}: {len(state)} tensors under the names of {family}, for {loads}"
    return [said, *some, *(["encoder.onnx"] if onnx else [])]


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


def _self_contained(arch: ArchConfig, plan: Plan) -> ArchConfig:
    """Options that mean the same on another machine: those of arch=hf may name a folder or an id."""
    if not isinstance(arch, HfConfig):
        return arch
    return replace(plan.arch, name=arch.name, batch_size=arch.batch_size, vocab_size=arch.vocab_size)


def _shared(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The corpus, if it can be had elsewhere: where a person keeps files is nobody's business."""
    if data is None or data.get("path") or data.get("sources"):
        return None
    return dict(data)


def _about_library() -> dict[str, str]:
    import transformers

    return {"dtype": "float32", "transformers_version": transformers.__version__}


def _check_readable(folder: Path, model: Model) -> None:
    """What was written gives the weights that went in."""
    read = importing.of_files(folder / "model.safetensors", str(folder), Request())
    ours, theirs = tensors_of(model), tensors_of(read.model())
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), f"{name} differs after export"


def _take_place(temporary: Path, to: Path) -> None:
    sync_folder(temporary)
    if to.exists():
        old = to.with_name(f".replaced-{to.name}")
        shutil.rmtree(old, ignore_errors=True)
        to.rename(old)
        rename(temporary, to, "export")
        shutil.rmtree(old)
    else:
        rename(temporary, to, "export")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
