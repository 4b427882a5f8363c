"""Models from released checkpoints, and their outputs at every position.

Shape legend: B sequences, S positions, H hidden, V vocabulary, C labels.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.encoder import Encoder
from cramming.architectures.layers.heads import ClassificationHead
from cramming.architectures.layers.unpadding import Layout
from cramming.architectures.reference_keys import FAMILIES, HEADS, MLM, REGRESSION, Family
from cramming.errors import UserError
from cramming.suggest import nearest

IGNORED_LABEL = -100  # positions that do not count, in the labels of a dense batch


def from_reference(family: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], head: str) -> nn.Module:
    """Our model with the weights of a released checkpoint, in evaluation mode.

    Args:
        family: whose checkpoint it is, a key of ``reference_keys.FAMILIES``.
        config: the reference's own config.
        state_dict: the reference's own tensors; read only.
        head: ``mlm``, ``classification`` or ``regression``; the classifier's rows are the number of labels, and one
            label means squared error.

    Raises:
        UserError: an unknown family or head, a config key that is missing or whose value we have no mathematics for, a
            tensor that is missing, left over, of another shape, or a duplicate that differs from its original.
    """
    if family not in FAMILIES:
        raise UserError(f"no importer for family {family!r}{nearest(family, FAMILIES)}")
    if head not in HEADS:
        raise UserError(f"no head {head!r}{nearest(head, HEADS)}")
    known = FAMILIES[family]
    _check_values(family, known, config)
    labels = None if head == MLM else _labels(known, state_dict, head)
    settings = {ours: _entry(config, theirs) for theirs, ours in known.config.items()}
    vocab_size, positions = _entry(config, known.vocab_size), _entry(config, known.positions)
    model = known.arch(**settings).build(vocab_size, positions, labels)
    _load(model, known.names(settings["layers"], head), known, state_dict)
    # The lookup's gradient-free row is the one part of the reference's mathematics that no tensor carries.
    model.embeddings.padding_id = config.get(known.padding_id)  # type: ignore[union-attr]
    return model.eval()


def dense_outputs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """Everything a model computes, at every position, in the reference systems' terms.

    Args:
        model: a model of this package with any head.
        input_ids: (B, S) token ids.
        attention_mask: (B, S), nonzero where a token is; None: everywhere.
        token_type_ids: (B, S); None: all of type 0.
        labels: (B, S) token ids, -100 where none counts; or (B,) classes or values with a classification head.

    Returns:
        ``hidden`` (B, S, H), zero at padding; ``logits`` (B, S, V), or (B, C) with a classification head; and with
        labels the scalar ``loss``: the mean over those that count.
    """
    assert isinstance(model, Encoder), type(model)
    layout = Layout.of(input_ids, attention_mask)
    x, decoder = model.encode(input_ids, layout, token_type_ids)
    outputs = {"hidden": layout.pad(x)}
    head = model.head
    if isinstance(head, ClassificationHead):
        outputs["logits"] = head(outputs["hidden"][:, 0])
        if labels is not None:
            outputs["loss"] = head.loss(outputs["logits"], labels)
        return outputs
    outputs["logits"] = logits = layout.pad(head(x, decoder))
    if labels is not None:
        wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        outputs["loss"] = F.cross_entropy(wide, labels.flatten(), ignore_index=IGNORED_LABEL)
    return outputs


def _entry(config: Mapping[str, Any], key: str) -> Any:
    if key not in config:
        raise UserError(f"the reference's config lacks {key!r}")
    return config[key]


def _check_values(family: str, known: Family, config: Mapping[str, Any]) -> None:
    for key, accepted in known.required.items():
        if config.get(key, accepted[0]) not in accepted:
            raise UserError(f"{family} with {key}={config[key]!r} is not supported: only {accepted[0]!r} is")


def _labels(known: Family, state_dict: Mapping[str, Tensor], head: str) -> int:
    if known.classifier not in state_dict:
        raise UserError(f"head={head} needs {known.classifier!r}, which the checkpoint lacks")
    labels = state_dict[known.classifier].shape[0]
    if head == REGRESSION and labels != 1:
        raise UserError(f"head=regression needs one label, {known.classifier!r} has {labels}: use head=classification")
    return labels


@torch.no_grad()
def _load(
    model: nn.Module, names: Mapping[str, tuple[str, ...]], known: Family, state_dict: Mapping[str, Tensor]
) -> None:
    """Copy every tensor to its place, having checked that nothing is missing, left over or misshapen."""
    wanted = {theirs for sources in names.values() for theirs in sources}
    missing = sorted(wanted - set(state_dict))
    if missing:
        raise UserError(f"the checkpoint lacks {_some(missing)}")
    extra = sorted(set(state_dict) - wanted - _verified_copies(known, state_dict))
    if extra:
        raise UserError(f"the checkpoint has tensors without a place in the model: {_some(extra)}")
    parameters = dict(model.named_parameters())
    assert parameters.keys() == names.keys(), parameters.keys() ^ names.keys()
    for ours, sources in names.items():
        target = parameters[ours]
        for part, theirs in zip(target.chunk(len(sources)), sources, strict=True):
            if part.shape != state_dict[theirs].shape:
                raise UserError(
                    f"{theirs!r} has shape {tuple(state_dict[theirs].shape)}, the config says {tuple(part.shape)}"
                )
            part.copy_(state_dict[theirs])


def _verified_copies(known: Family, state_dict: Mapping[str, Tensor]) -> set[str]:
    """The tied duplicates and derived buffers that are present, each equal to what it must be."""
    expected = {copy: state_dict[original] for copy, original in known.tied.items() if original in state_dict}
    expected |= {name: derive(state_dict[name]) for name, derive in known.buffers.items() if name in state_dict}
    present = {name for name in expected if name in state_dict}
    for name in sorted(present):
        there = state_dict[name]
        if there.shape != expected[name].shape or not torch.equal(there, expected[name].to(there)):
            raise UserError(f"{name!r} differs from {known.tied.get(name, 'what it is derived from')!r}")
    return present


def _some(names: list[str]) -> str:
    """All of a few names, or the first five and how many more."""
    listed = ", ".join(repr(name) for name in names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"
