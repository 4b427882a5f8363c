"""The config of another system that says what a model of ours is."""

from collections.abc import Mapping
from typing import Any

from cramming.architectures.configs import ArchConfig
from cramming.architectures.references import WRITERS
from cramming.architectures.references.plan import with_padding
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError

_ROLES = ("pad", "cls", "sep", "mask")
_SAME = {"bos_token_id": "cls", "eos_token_id": "sep"}  # theirs -> our word for it


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """A tokenizer's special tokens by role."""
    return {role: int(getattr(tokenizer, f"{role}_id")) for role in _ROLES}


def reference_config(
    arch: ArchConfig, vocab_size: int, positions: int, ids: Mapping[str, int]
) -> tuple[str, dict[str, Any]]:
    """The family that has an architecture, and its config for a tokenizer with these special ids.

    Raises:
        UserError: no other system has it, or not with these options.
    """
    if arch.kind not in WRITERS:
        known = ", ".join(sorted(WRITERS))
        raise UserError(f"arch={arch.kind} cannot be exported, no other system has it; those that can: {known}")
    family, config = WRITERS[arch.kind](arch, vocab_size, positions)
    if "pad_token_id" in config or transformers_class(config):
        config = with_padding(family, {"pad_token_id": 0, **config}, ids["pad"])
    return family, _with_ids({**_defaults(config), **config}, ids)


def transformers_class(config: Mapping[str, Any]) -> str | None:
    """The class of transformers that loads a folder with this config; None: there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    known = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(str(config.get("model_type")))
    return known if known is not None and known in (config.get("architectures") or ()) else None


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special ids that the library's class would take a config that is silent to mean."""
    if transformers_class(config) is None:
        return {}
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = CONFIG_MAPPING[config["model_type"]]().to_dict()
    return {key: value for key, value in known.items() if key.endswith("_token_id") and value is not None}


def _with_ids(config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """The config with the special ids, wherever it has a place for them."""
    changed = {key: _with_ids(value, ids) if isinstance(value, dict) else value for key, value in config.items()}
    for key, value in config.items():
        role = _SAME.get(key, str(key).removesuffix("_token_id"))
        if str(key).endswith("_token_id") and role in ids and value is not None:
            changed[key] = ids[role]
    return changed
