"""A fine-tuned model as a folder, whole or absent: one that transformers loads, too, where it has such a classifier.

What a folder holds: ``model.safetensors``; ``cramming_task.json``, from which we read everything; the tokenizer; and,
where the whole model is a text classifier of a family that others have, its ``config.json``, the tensors then having
that family's names. Heads that read single words, and poolings that a family does not know, are ours alone.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cramming import registry
from cramming.architectures.configs import ArchConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.reference import fill, tensors_of, to_reference
from cramming.architectures.references import CLASSIFICATION, FAMILIES, Plan
from cramming.data.tokenizer import Tokenizer
from cramming.durable import replace as rename
from cramming.durable import room_for, sync, sync_folder, write_atomically
from cramming.errors import UserError
from cramming.evaluation.config import Setting
from cramming.evaluation.finetuned import FineTuned
from cramming.evaluation.tasks.task import Task
from cramming.exchange import tokenizers
from cramming.exchange.importing import FRESH
from cramming.exchange.weights import Weights, sha256
from cramming.exchange.written import reference_config, special_ids, transformers_class
from cramming.hashing import key

DESCRIPTION, WEIGHTS, CONFIG = "cramming_task.json", "model.safetensors", "config.json"
FORMAT = 1
OWN_NAMES = "cramming"  # in the place of a family's name
_PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
_TOLERANCE = 1e-4  # of logits, between one of our models and the same in a family's form


@dataclass(frozen=True)
class Saved:
    """A fine-tuned model read from its folder.

    Attributes:
        model: in evaluation mode, on the CPU.
        tokenizer: its own.
        setting: how it was fine-tuned.
        about: what was said of it when it was saved, such as its run, seed and scores.
        loads_with: the class of transformers that loads the folder, too; None: there is none.
    """

    model: FineTuned
    tokenizer: Tokenizer
    setting: Setting
    about: Mapping[str, Any]
    loads_with: str | None

    @property
    def task(self) -> Task:
        """What it decides."""
        return self.model.task

    @property
    def max_length(self) -> int:
        """Tokens of a text, special tokens included: as in fine-tuning, and no more than the model takes."""
        return min(self.setting.max_length, self.model.positions)


@dataclass(frozen=True)
class _Form:
    """Under whose names the tensors are: a family's, for which ``plan`` says what is what."""

    family: str
    config: Mapping[str, Any]
    plan: Plan
    library: str | None


def save(
    model: FineTuned, folder: Path, *, tokenizer: Tokenizer, setting: Setting, about: Mapping[str, Any] | None = None
) -> str | None:
    """Write a folder, whole or not at all, in the place of what was there. It is read back before it takes its place.

    Args:
        model: fine-tuned.
        folder: the new one.
        tokenizer: the model's.
        setting: how it was fine-tuned.
        about: JSON values: what it was trained on, its seed, its scores.

    Returns:
        The class of transformers that loads the folder, too; None: only ``load`` does.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    encoder: Any = model.encoder
    arch, vocab_size = model.arch, int(encoder.vocab_size)
    if isinstance(arch, HfConfig):
        arch = _without_place(arch, vocab_size, model.positions, tokenizer)
    alone = _built(arch, vocab_size, model.positions, model.task, setting)
    alone.load_state_dict(state)
    form = _form(alone, tokenizer)
    description = {
        "format": FORMAT,
        "names": OWN_NAMES if form is None else form.family,
        "loads_with": None if form is None or form.library is None else f"transformers.{form.library}",
        "arch": asdict(arch),
        "vocab_size": vocab_size,
        "positions": model.positions,
        "task": asdict(model.task),
        "setting": asdict(setting),
        "about": dict(about or {}),
    }
    temporary = folder.with_name(f".saving-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with room_for(folder):
            temporary.mkdir(parents=True)
            _write_weights(alone, form, temporary)
            _write_json(temporary / DESCRIPTION, description)
            tokenizers.write(_without_template(tokenizer), temporary, model.positions, types=model._types)
            _check_readable(temporary, state)
            for file in temporary.iterdir():
                sync(file, "saved")
            _take_place(temporary, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return None if form is None else form.library


def load(folder: Path) -> Saved:
    """The model of a folder that ``save`` wrote. No code of others is run.

    Raises:
        UserError: it is none, or damaged.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise UserError(f"{folder} is no fine-tuned model: it has no {DESCRIPTION}, which eval.py writes into each")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise UserError(f"{file} is of format {said['format']}, this version reads {FORMAT}: fine-tune again")
        schema = OmegaConf.structured(registry.lookup("arch", said["arch"]["kind"]))
        arch = OmegaConf.to_object(OmegaConf.merge(schema, said["arch"]))
        assert isinstance(arch, ArchConfig)
        setting, task = Setting(**said["setting"]), _task(said["task"])
        model = _built(arch, said["vocab_size"], said["positions"], task, setting)
        tensors = load_file(folder / WEIGHTS)
        if said["names"] == OWN_NAMES:
            model.load_state_dict(tensors)
        else:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            plan = FAMILIES[said["names"]](config, CLASSIFICATION)
            if plan.sources.keys() != tensors_of(model.encoder).keys():
                raise ValueError(f"{CONFIG} is of another model")
            fill(model.encoder, plan, tensors)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder} is damaged ({reason}): fine-tune again") from error
    tokenizer = Tokenizer.kept(folder)
    return Saved(model.eval(), tokenizer, setting, said["about"], said["loads_with"])


def encoder_of(folder: Path, title: str, head: str) -> Weights | None:
    """The encoder of a fine-tuned model whose tensors have our own names, to begin another training with.

    Args:
        folder: any.
        title: what to call it.
        head: of the model to be made: ``fresh``; it has no other.

    Returns:
        A masked language model's weights, its head begun anew; None: the folder is none of ours, or its tensors have a
        family's names, by which it is read like everybody's.

    Raises:
        UserError: it is damaged, or another head is asked for.
    """
    if not (folder / DESCRIPTION).is_file() or (folder / CONFIG).is_file():
        return None
    if head != FRESH:
        raise UserError(
            f"{title} is fine-tuned and has no masked-language-model head: head=fresh (init_head=fresh in training) "
            "begins a new one"
        )
    found = load(folder)
    encoder: Any = found.model.encoder
    arch, sizes = found.model.arch, (int(encoder.vocab_size), found.model.positions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key("exchange", "weights"))  # what begins anew does so the same every time
        model = arch.build(*sizes)
    names = {name for name in model.state_dict() if not name.startswith("head.")}
    model.load_state_dict({n: t for n, t in encoder.state_dict().items() if n in names}, strict=False)
    state = model.state_dict()
    return Weights(
        title,
        arch,
        *sizes,
        state,
        found.tokenizer,
        origin={"family": OWN_NAMES, "file": WEIGHTS, "weights_sha256": sha256(state)},
        fresh=tuple(name for name, _ in model.named_parameters() if name not in names & set(encoder.state_dict())),
    )


def _built(arch: ArchConfig, vocab_size: int, positions: int, task: Task, setting: Setting) -> FineTuned:
    """A model with fresh weights; nothing else that is random notices."""
    with torch.random.fork_rng(devices=[]):
        encoder: Any = arch.build(vocab_size, positions, labels=task.outputs)
        return FineTuned(encoder, task, setting, arch, arch.dropout).eval()


def _task(said: Mapping[str, Any]) -> Task:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    return Task(**values)


def _form(model: FineTuned, tokenizer: Tokenizer) -> _Form | None:
    """How another system would have the model; None: it would not, or would compute something else."""
    if model.head is not None:
        return None
    encoder: Any = model.encoder
    try:
        family, config = reference_config(model.arch, encoder.vocab_size, model.positions, special_ids(tokenizer))
        config = dict(config)
        library = _classifier_class(config)
        if transformers_class(config) is not None:
            config |= _about_labels(model.task) | {"architectures": [library]}
        config = json.loads(json.dumps(config))  # as it will be read
        plan = FAMILIES[family](config, CLASSIFICATION)
        if plan.sources.keys() != tensors_of(encoder).keys():
            return None
        with torch.random.fork_rng(devices=[]):
            twin = plan.arch.build(plan.vocab_size, plan.positions, model.task.outputs).eval()
        fill(twin, plan, to_reference(encoder, plan, copies=False))
    except UserError:
        return None
    return _Form(family, config, plan, library) if _agree(encoder, twin, tokenizer) else None


def _classifier_class(config: Mapping[str, Any]) -> str | None:
    """The class of transformers that classifies texts with a config whose language model it has, too."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if transformers_class(config) is None:
        return None
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(str(config["model_type"]))


def _about_labels(task: Task) -> dict[str, Any]:
    """What transformers' configs say of the outputs."""
    names = list(task.labels) if task.outputs == len(task.labels) else ["score"]
    return {
        "num_labels": len(names),
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": _PROBLEMS.get(task.kind),  # none for a choice: a score of each text by itself
        "dtype": "float32",
    }


@torch.no_grad()
def _agree(ours: Any, theirs: Any, tokenizer: Tokenizer) -> bool:
    """Whether two classifiers say the same of two texts of which one is padded."""
    length = min(12, int(ours.max_positions))
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.vocab_size, (2, length), generator=draw)
    mask = torch.arange(length) < torch.tensor([[length], [max(1, length - 4)]])
    tokens = tokens.where(
        mask & (tokens != tokenizer.pad_id), torch.where(mask, tokenizer.unk_id or 0, tokenizer.pad_id)
    )
    return torch.allclose(ours(tokens, mask), theirs(tokens, mask), rtol=_TOLERANCE, atol=_TOLERANCE)


def _write_weights(model: FineTuned, form: _Form | None, folder: Path) -> None:
    if form is None:
        state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    else:
        state = to_reference(model.encoder, form.plan, copies=form.library is None)
        _write_json(folder / CONFIG, form.config)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)  # the library leaves its file to its owner alone


def _without_place(arch: HfConfig, vocab_size: int, positions: int, tokenizer: Tokenizer) -> ArchConfig:
    """Options that mean the same on another machine: those of arch=hf may name a folder or an id."""
    _, config = reference_config(arch, vocab_size, positions, special_ids(tokenizer))
    plan = FAMILIES["hf"](json.loads(json.dumps(config)), CLASSIFICATION)
    return replace(plan.arch, name=arch.name, batch_size=arch.batch_size, vocab_size=arch.vocab_size)


def _without_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without its makers' way to put special tokens around texts: fine-tuning has its own, BERT's."""
    import tokenizers as library

    parts = json.loads(tokenizer.to_json()) | {"post_processor": None}
    return Tokenizer(library.Tokenizer.from_str(json.dumps(parts)))


def _check_readable(folder: Path, state: Mapping[str, Tensor]) -> None:
    """What was written gives the weights that went in."""
    there = load(folder).model.state_dict()
    assert there.keys() == state.keys(), there.keys() ^ state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, there[name]), f"{name} differs after saving"


def _take_place(temporary: Path, folder: Path) -> None:
    sync_folder(temporary)
    old = folder.with_name(f".replaced-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    rename(temporary, folder, "saved")
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
