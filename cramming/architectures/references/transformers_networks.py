"""Families whose modules are transformers' own: every tensor has the library's name, behind ``network.``."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.references.plan import DETECTORS, MLM, Plan, Source, detector, entry, family, writer
from cramming.errors import UserError

_LABELS = 7  # of a classifier that is only looked at: no other matrix has so few rows
# Tables of old checkpoints that count from 0, or hold zeros; nothing is learned in them.
_COUNTS = (r".*\.(position_ids|token_type_ids)",)
_LONGEST = 512  # tokens, where a network's config knows no limit


def network_plan(
    arch: ArchConfig,
    vocab_size: int,
    positions: int,
    head: str,
    *,
    padding_id: int | None,
    other_heads: tuple[str, ...] = (),
) -> Plan:
    """The plan of a network, found out by making it without memory for its weights.

    Args:
        arch: our options.
        vocab_size: V.
        positions: the longest sequence, in tokens.
        head: kind of head.
        padding_id: the token whose lookup gives no gradient.
        other_heads: regular expressions of weights that the head has no use for.
    """  # fmt: skip
    with torch.device("meta"):
        model = arch.build(vocab_size, positions, None if head == MLM else _LABELS)
    saved = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters())
    names = {id(tensor): name for name, tensor in parameters.items()}
    ours = [*parameters, *(name for name, _ in model.named_buffers() if name in saved)]
    copies = {name: names[id(tensor)] for name, tensor in saved.items() if names.get(id(tensor), name) != name}
    return Plan(
        arch=arch,
        vocab_size=vocab_size,
        positions=positions,
        padding_id=padding_id,
        sources={name: Source((_theirs(name),)) for name in ours},
        classifier="" if head == MLM else _theirs(_classifier(parameters)),
        tied={_theirs(copy): _theirs(original) for copy, original in copies.items()},
        ignored=_COUNTS,
        other_heads=other_heads,
    )


def _theirs(name: str) -> str:
    return name.removeprefix("network.")


def _classifier(parameters: Mapping[str, nn.Parameter]) -> str:
    """The matrix whose rows are the labels: the last of so many rows."""
    return [name for name, p in parameters.items() if p.dim() == 2 and p.shape[0] == _LABELS][-1]


@family("hf")
def plan(config: Mapping[str, Any], head: str) -> Plan:
    """The plan for any masked language model of transformers, or its classifier, from its config.json."""
    from cramming.architectures.hf_origin import options_of

    vocab_size = int(entry(config, "vocab_size"))
    arch = options_of(config)
    with torch.device("meta"):
        known: Any = arch.build(vocab_size, 1)
    positions = int(known.max_positions)
    return network_plan(
        arch, vocab_size, positions if positions > 1 else _LONGEST, head, padding_id=config.get("pad_token_id")
    )


@detector("hf")
def is_hf(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a checkpoint is of a kind that transformers knows and no other family here claims."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    claimed = any(detect(config, names) for name, detect in DETECTORS.items() if name != "hf")
    return config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not claimed


@writer("hf")
def write(arch: ArchConfig, vocab_size: int, positions: int) -> tuple[str, dict[str, Any]]:
    """The config.json of the network."""
    from cramming.architectures.hf_origin import fitted, network_class, transformers_config

    assert isinstance(arch, HfConfig)
    config = transformers_config(arch)
    if arch.pretrained:
        vocab_size = int(config.vocab_size)
    made = fitted(arch, config, vocab_size, None)
    theirs = {key: value for key, value in made.to_dict().items() if key not in ("_name_or_path", "dtype")}
    return "hf", {**theirs, "architectures": [network_class(made, None).__name__], "model_type": made.model_type}


def check_unread(name: str, config: Mapping[str, Any], required: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse values that our options for a family cannot express, though arch=hf can.

    Raises:
        UserError: another value.
    """
    for key, accepted in required.items():
        if config.get(key, accepted[0]) not in accepted:
            raise UserError(f"{name} with {key}={config[key]!r} is not supported: import it with family=hf")
