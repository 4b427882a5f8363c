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
# Keys of a config.json that say nothing of how the network is made.
_OF_FILES = (
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "id2label", "label2id", "model_type",
    "num_labels", "problem_type", "return_dict", "transformers_version", "vocab_size",
)  # fmt: skip
_OF_HEADS = ("classif", "cls", "summary", "pooler")  # in the names of dropouts that pretraining does not have


def transformers_config(arch: HfConfig) -> Any:
    """The config of the network as it was published, or of its kind's defaults, with ``arch.config`` over it.

    Raises:
        UserError: no such id, folder or kind; a kind without a masked language model here; an option it does not have.
    """
    return _config(arch.model, arch.model_type, json.dumps(arch.config or {}, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _config(model: str | None, model_type: str, options: str) -> Any:
    chosen = json.loads(options)
    if model is None:
        return _made({"model_type": model_type}, f"arch.model_type={model_type}", chosen)
    published = _published(model)
    return _made(published, f"arch.model={model}, of type {published['model_type']!r},", chosen)


def _made(published: dict[str, Any], said: str, chosen: Mapping[str, Any] | None = None) -> Any:
    """A config of transformers from a config.json with other options over it.

    Raises:
        UserError: it is of no kind that has a masked language model in transformers, or cannot have these options.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    chosen = chosen or {}
    model_type = str(published["model_type"])
    if "auto_map" in published and model_type not in CONFIG_MAPPING:
        raise UserError(f"{said} needs code from its repository, which is never run: choose another model")
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(
            f"{said} has no masked language model in transformers"
            f"{nearest(model_type, MODEL_FOR_MASKED_LM_MAPPING_NAMES)}"
        )
    given = {key: value for key, value in published.items() if key not in ("model_type", "auto_map")}
    if "num_hidden_layers" in chosen and "layer_types" not in chosen:
        given.pop("layer_types", None)  # one for each layer, worked out from their number
    try:
        config = CONFIG_MAPPING[model_type].from_dict({**given, **chosen})
    except (NotImplementedError, StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"{said} cannot be made with {dict(chosen)}: {' '.join(str(error).split())}") from error
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
        if reason := unreachable():  # the library would try for half a minute
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
    for key in chosen:
        if "drop" in key and not any(head in key for head in _OF_HEADS):
            raise UserError(f"arch.config.{key} is set by arch.dropout and arch.attention_dropout: use those")
        if key in ("vocab_size", "model_type"):
            raise UserError(f"arch.config.{key} is not set here: it follows the tokenizer and arch.model_type")
        if not _is_read(config, key):
            known = {*type(config)().to_dict(), *config.attribute_map}
            raise UserError(f"arch.config.{key} is no option of {config.model_type!r}{nearest(key, known)}")


def _is_read(config: Any, key: str) -> bool:
    """Whether a network's code looks at an option: one that its config declares, or whose name its files contain."""
    if key in type(config)().to_dict() or key in config.attribute_map:
        return True
    classes: Any = (type(config), network_class(config, None))
    return re.search(rf"\b{re.escape(key)}\b", _source(*classes)) is not None


@functools.lru_cache(maxsize=8)
def _source(*classes: Any) -> str:
    return "".join(Path(inspect.getfile(kind)).read_text(encoding="utf-8") for kind in classes)


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


def fitted(arch: HfConfig, config: Any, vocab_size: int, labels: int | None) -> Any:
    """A copy of a config for this vocabulary, the dropouts asked for and this many labels.

    Special ids are those of tokenizers trained here, unless they are given or the vocabulary is the config's own.
    """
    made = type(config).from_dict(config.to_dict())
    if vocab_size != config.vocab_size:
        made.vocab_size = vocab_size
        for key, value in _SPECIAL_IDS.items():
            if key not in (arch.config or {}) and (getattr(made, key, None) is not None or key == "pad_token_id"):
                setattr(made, key, value)
    for key, value in config.to_dict().items():
        if key == "layerdrop":
            setattr(made, key, 0.0)
        elif _is_dropout(key, value) and (labels is not None or not any(head in key for head in _OF_HEADS)):
            setattr(made, key, arch.attention_dropout if "att" in key else arch.dropout)
    if labels is not None:
        made.num_labels = labels
    return made


def _is_dropout(key: str, value: object) -> bool:
    return "drop" in key and isinstance(value, float | int) and not isinstance(value, bool)


def options_of(config: Mapping[str, Any]) -> HfConfig:
    """The options that make a network of a config.json, whatever the tokenizer in use; the config's own ids are kept.

    Raises:
        UserError: a kind without a masked language model in transformers.
    """
    model_type = str(config.get("model_type"))
    made = _made(dict(config), f"a checkpoint of model_type {model_type!r}")
    plain, values = type(made)().to_dict(), made.to_dict()
    kept = {k: v for k, v in values.items() if k in _SPECIAL_IDS or (k not in _OF_FILES and plain.get(k) != v)}
    dropouts = {k: v for k, v in values.items() if _is_dropout(k, v) and not any(head in k for head in _OF_HEADS)}
    return HfConfig(
        model_type=model_type,
        config={key: value for key, value in kept.items() if key not in dropouts and _is_read(made, key)},
        dropout=max((v for k, v in dropouts.items() if "att" not in k and k != "layerdrop"), default=0.0),
        attention_dropout=max((v for k, v in dropouts.items() if "att" in k), default=0.0),
    )


def fresh_network(config: Any, labels: int | None, said: str) -> Any:
    """A network with fresh weights.

    Args:
        config: fitted.
        labels: None: the masked language model; else a classifier.
        said: what the user asked for, for the message.

    Raises:
        UserError: sizes that no network can have.
    """
    from cramming.architectures.hf import made

    try:
        return made(network_class(config, labels), config)
    except (ValueError, TypeError, RuntimeError, AssertionError, ZeroDivisionError, KeyError) as error:
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
