"""Models from released checkpoints, and their outputs at every position.

Shape legend: B sequences, S positions, H hidden, V vocabulary, C labels.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.encoder import Encoder
from cramming.architectures.layers.heads import ClassificationHead
from cramming.architectures.references import FAMILIES, HEADS, MLM, REGRESSION, Plan, Source, completed
from cramming.errors import UserError
from cramming.suggest import nearest

IGNORED_LABEL = -100  # positions that do not count, in the labels of a dense batch


def from_reference(family: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], head: str) -> nn.Module:
    """Our model with the weights of a released checkpoint, in evaluation mode, computing what the reference computes.

    Where the reference lets padding leak, so does the model: set its ``attend_padding``, and ``pool_padding`` of a
    classification head, to False to stop that.

    Args:
        family: whose checkpoint it is, a key of ``references.FAMILIES``.
        config: the reference's own config; some families' tensors tell what it lacks.
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
    plan = FAMILIES[family](completed(family, config, state_dict), head)
    labels = None if head == MLM else _labels(plan, state_dict, head)
    model = plan.arch.build(plan.vocab_size, plan.positions, labels)
    fill(model, plan, state_dict)
    # The lookup's gradient-free row is the one part of the reference's mathematics that no tensor carries.
    model.embeddings.padding_id = plan.padding_id  # type: ignore[union-attr,assignment]
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
        ``hidden`` (B, S, H), zero at padding unless the model computes that too; ``logits`` (B, S, V), or (B, C) with a
        classification head; and with labels the scalar ``loss``: the mean over those that count.
    """
    assert isinstance(model, Encoder), type(model)
    layout = model.layout(input_ids, attention_mask)
    x, decoder = model.encode(input_ids, layout, token_type_ids)
    outputs = {"hidden": layout.scatter(x)}
    head = model.head
    if isinstance(head, ClassificationHead):
        mask = None if attention_mask is None else attention_mask.bool()
        outputs["logits"] = head(outputs["hidden"], mask)
        if labels is not None:
            outputs["loss"] = head.loss(outputs["logits"], labels)
        return outputs
    outputs["logits"] = logits = layout.scatter(head(x, decoder))
    if labels is not None:
        wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        outputs["loss"] = F.cross_entropy(wide, labels.flatten(), ignore_index=IGNORED_LABEL)
    return outputs


def _labels(plan: Plan, state_dict: Mapping[str, Tensor], head: str) -> int:
    if plan.classifier not in state_dict:
        raise UserError(f"head={head} needs {plan.classifier!r}, which the checkpoint lacks")
    labels = state_dict[plan.classifier].shape[0]
    if head == REGRESSION and labels != 1:
        raise UserError(f"head=regression needs one label, {plan.classifier!r} has {labels}: use head=classification")
    return labels


@torch.no_grad()
def fill(model: nn.Module, plan: Plan, state_dict: Mapping[str, Tensor], *, without: Collection[str] = ()) -> nn.Module:
    """Copy every tensor of a checkpoint to its place, having checked that none is missing, left over or misshapen.

    Args:
        model: ours, as ``plan`` builds it.
        plan: where everything comes from.
        state_dict: the reference's tensors; read only.
        without: parameters of ours that stay as they are, whatever the checkpoint has for them.

    Raises:
        UserError: a tensor that is missing, left over, of another shape, or a duplicate that differs from its original.
    """
    places = tensors_of(model)
    assert places.keys() == plan.sources.keys(), places.keys() ^ plan.sources.keys()
    sources = {ours: source for ours, source in plan.sources.items() if ours not in without}
    wanted = {theirs for source in sources.values() for theirs in source.names}
    missing = sorted(wanted - set(state_dict))
    if missing:
        raise UserError(f"the checkpoint lacks {listed(missing)}")
    ignored = {name for name in state_dict if any(re.fullmatch(pattern, name) for pattern in plan.ignored)}
    extra = sorted(set(state_dict) - wanted - ignored - _verified_copies(plan, state_dict))
    if extra:
        raise UserError(f"the checkpoint has tensors without a place in the model: {listed(extra)}")
    for ours, source in sources.items():
        target = places[ours]
        parts = target.chunk(len(source.names)) if target.dim() else [target]
        for part, theirs in zip(parts, source.names, strict=True):
            given = state_dict[theirs][source.unread :] if source.unread else state_dict[theirs]
            lacking = part.shape[0] - given.shape[0] if part.dim() and given.dim() else 0
            there = part
            if 0 < lacking <= source.spare:
                part[-lacking:] = source.filler
                there = part[:-lacking]
            if there.shape != given.shape:
                raise UserError(f"{theirs!r} has shape {_shape(given, source)}, the config says {_shape(part, source)}")
            there.copy_(given)
        if source.order is not None:
            target.copy_(target[source.order.to(target.device)])
    return model


def to_reference(model: nn.Module, plan: Plan, *, copies: bool) -> dict[str, Tensor]:
    """A model's weights under the reference's names and in its order: what ``fill`` reads back to the last bit.

    Args:
        model: ours, as ``plan`` builds it.
        plan: where everything would come from.
        copies: write tied duplicates too, each with memory of its own.
    """
    places = tensors_of(model)
    assert places.keys() == plan.sources.keys(), places.keys() ^ plan.sources.keys()
    state: dict[str, Tensor] = {}
    for ours, source in plan.sources.items():
        state |= source.apart(places[ours].detach())
    state |= {name: value.clone() for name, value in plan.constants.items()}
    if copies:
        state |= {copy: state[original].clone() for copy, original in plan.tied.items()}
    return state


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Everything a checkpoint of a model must hold, each once: its parameters, and the buffers it saves."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}


def _verified_copies(plan: Plan, state_dict: Mapping[str, Tensor]) -> set[str]:
    """The tied duplicates and derived buffers that are present, each equal to what it must be."""
    expected = {copy: state_dict[original] for copy, original in plan.tied.items() if original in state_dict}
    expected |= {name: derive(state_dict[name]) for name, derive in plan.buffers.items() if name in state_dict}
    expected |= plan.constants
    present = {name for name in expected if name in state_dict}
    for name in sorted(present):
        there, due = state_dict[name], expected[name].to(state_dict[name])
        # A constant may have been computed another way and be off by rounding.
        exact = name in plan.tied or not there.is_floating_point()
        rounding = 0.0 if exact else 4 * torch.finfo(there.dtype).eps
        if there.shape != due.shape or not torch.allclose(there, due, rtol=rounding, atol=0.0):
            raise UserError(f"{name!r} differs from {plan.tied.get(name, 'what it is derived from')!r}")
    return present


def _shape(tensor: Tensor, source: Source) -> tuple[int, ...]:
    """Theirs, of what is left of a tensor without its unread rows."""
    return (tensor.shape[0] + source.unread, *tensor.shape[1:]) if source.unread else tuple(tensor.shape)


def listed(names: list[str]) -> str:
    """All of a few names, or the first five and how many more."""
    first = ", ".join(repr(name) for name in names[:5])
    return first if len(names) <= 5 else f"{first} and {len(names) - 5} more"
