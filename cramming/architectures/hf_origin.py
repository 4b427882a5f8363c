"""Where a transformers network comes from: a hub id, a folder, or a config of its kind. Code of theirs never runs."""

import functools
import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cramming.architectures.configs.hf import HfConfig
from cramming.data.sources.hub_connection import line, unreachable
from cramming.errors import UserError
from cramming.suggest import nearest

_log = logging.getLogger(__name__)
T = TypeVar("T")
# Of the tokenizers trained here; a network made for another vocabulary has other ids.
_SPECIAL_IDS = {
    "pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "mask_token_id": 4
}  # fmt: skip
_OWN_ROWS = 1024  # embeddings are padded by fewer rows than this beyond the tokenizer's ids
_OF_HEADS = ("classif", "cls", "summary", "pooler")  # in the names of dropouts that pretraining does not have


def transformers_config(arch: HfConfig) -> Any:
    """The config of the network as it was published, or of its kind's defaults, with ``arch.config`` over it.

    Raises:
        UserError: no such id, folder or kind; a kind without a masked language model here; an option it does not have.
    """
    return _config(arch.model, arch.model_type, json.dumps(arch.config or {}, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _config(model: str | None, model_type: str, options: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    chosen = json.loads(options)
    published = {} if model is None else _published(model)
    said = f"arch.model_type={model_type}" if model is None else f"arch.model={model} of type {model_type!r}"
    if model is not None:
        model_type = str(published.get("model_type"))
        said = f"arch.model={model}, of type {model_type!r},"
    if "auto_map" in published and model_type not in CONFIG_MAPPING:
        raise UserError(f"{said} needs code from its repository, which is never run: choose another model")
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(
            f"{said} has no masked language model in transformers"
            f"{nearest(model_type, MODEL_FOR_MASKED_LM_MAPPING_NAMES)}"
        )
    kind = CONFIG_MAPPING[model_type]
    if "num_hidden_layers" in chosen and "layer_types" not in chosen:
        published.pop("layer_types", None)  # one for each layer, worked out from their number
    try:
        config = kind.from_dict({**published, **chosen}) if published else kind(**chosen)
    except (NotImplementedError, TypeError, ValueError) as error:  # the library's own checks are ValueErrors
        raise UserError(f"{said} cannot be made with arch.config={chosen}: {' '.join(str(error).split())}") from error
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise UserError(f"{said} has a decoder: only encoders are pretrained here")
    _check_known(config, chosen)
    config.return_dict = True
    return config


def _published(model: str) -> dict[str, Any]:
    """The config.json of a folder or hub id."""
    from transformers import PreTrainedConfig

    folder = Path(model).expanduser()
    if folder.is_dir():
        try:
            found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"arch.model={model}: config.json in it cannot be read ({line(error)})") from error
    else:
        found, _ = from_hub(model, lambda **where: PreTrainedConfig.get_config_dict(model, **where))
    if not isinstance(found, dict) or "model_type" not in found:
        raise UserError(f"arch.model={model}: its config.json lacks 'model_type', so it is no model of transformers")
    return found


def from_hub(model: str, load: Callable[..., T]) -> T:
    """What ``load`` gets from the hub, from this disk if it was fetched before.

    Args:
        model: its id, for the message.
        load: takes ``local_files_only``.

    Raises:
        UserError: it is neither on this disk nor to be had.
    """
    try:
        return load(local_files_only=True)
    except (OSError, ValueError) as error:
        reason = unreachable() or None  # the library would try for half a minute
        if reason is not None:
            raise UserError(
                f"arch.model={model} is no folder here, was not fetched from the hub before and cannot be now "
                f"({reason}): give a folder, or arch.model_type= and arch.config= for fresh weights"
            ) from error
    try:
        return load()
    except (OSError, ValueError) as error:
        raise UserError(f"arch.model={model} is no folder, and not to be had from the hub: {line(error)}") from error


def _check_known(config: Any, chosen: Mapping[str, Any]) -> None:
    """Refuse options that the network's code would never look at."""
    known = {*type(config)().to_dict(), *config.attribute_map}
    source = ""
    for key in chosen:
        if "drop" in key and not any(head in key for head in _OF_HEADS):
            raise UserError(f"arch.config.{key} is set by arch.dropout and arch.attention_dropout: use those")
        if key in ("vocab_size", "model_type"):
            raise UserError(f"arch.config.{key} is not set here: it follows the tokenizer and arch.model_type")
        if key not in known:
            read = (type(config), network_class(config, None))
            source = source or "".join(Path(inspect.getfile(kind)).read_text(encoding="utf-8") for kind in read)
            if not re.search(rf"\b{re.escape(key)}\b", source):
                raise UserError(f"arch.config.{key} is no option of {config.model_type!r}{nearest(key, known)}")


def network_class(config: Any, labels: int | None) -> Any:
    """The class of a config's masked language model, or of its classifier.

    Raises:
        UserError: transformers has none.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    mapping = MODEL_FOR_MASKED_LM_MAPPING if labels is None else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    try:
        return mapping[type(config)]
    except KeyError:
        raise UserError(f"transformers has no classifier of type {config.model_type!r}") from None


def fitted(config: Any, vocab_size: int, dropout: float, attention_dropout: float, labels: int | None) -> Any:
    """A copy of a config for this vocabulary, these dropouts and this many labels.

    Special ids are those of tokenizers trained here, unless the vocabulary is the config's own.
    """
    made = type(config).from_dict(config.to_dict())
    if vocab_size != config.vocab_size:
        made.vocab_size = vocab_size
        for key, value in _SPECIAL_IDS.items():
            if getattr(made, key, None) is not None or key == "pad_token_id":
                setattr(made, key, value)
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float | int) and not isinstance(value, bool):
            if key == "layerdrop":
                setattr(made, key, 0.0)
            elif labels is not None or not any(head in key for head in _OF_HEADS):
                setattr(made, key, attention_dropout if "att" in key else dropout)
    if labels is not None:
        made.num_labels = labels
    return made


def fresh_network(config: Any, labels: int | None, said: str) -> Any:
    """A network with fresh float32 weights.

    Args:
        config: fitted.
        labels: None: the masked language model; else a classifier.
        said: what the user asked for, for the message.

    Raises:
        UserError: sizes that no network can have.
    """
    import torch

    try:
        return network_class(config, labels)._from_config(config, dtype=torch.float32)
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{said}: transformers refuses it: {' '.join(str(error).split())[:300]}") from error


def pretrained_network(model: str, config: Any, labels: int | None) -> Any:
    """A network with its published weights, in float32; what they lack starts fresh, and is named in the log.

    Raises:
        UserError: there are no weights, or they are of another shape.
    """
    import torch

    kind = network_class(config, labels)

    def load(**where: bool) -> Any:
        return kind.from_pretrained(
            model, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **where
        )

    folder = Path(model).expanduser()
    try:
        network, report = load() if folder.is_dir() else from_hub(model, load)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"arch.model={model}: its weights cannot be read: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        _log.warning("arch.model=%s has no %s: fresh weights there", model, ", ".join(missing))
    return network


def check_tokenizer(arch: HfConfig, config: Any, vocab_size: int) -> None:
    """Published weights mean what their own tokenizer's ids mean.

    Raises:
        UserError: the tokenizer in use has more ids than they have rows, or far fewer.
    """
    if not 0 <= config.vocab_size - vocab_size < _OWN_ROWS:
        raise UserError(
            f"arch.pretrained=true needs the tokenizer of arch.model={arch.model}, of about {config.vocab_size} ids, "
            f"and the one in use has {vocab_size}: give data.tokenizer={arch.model}"
        )
