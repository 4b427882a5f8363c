"""Files of weights as a model of ours: which family they are of, what goes where, and what is refused."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from cramming import registry
from cramming.architectures.configs import ArchConfig
from cramming.architectures.reference import fill, listed
from cramming.architectures.references import CLASSIFICATION, DETECTORS, FAMILIES, MLM, Plan
from cramming.architectures.references.plan import completed
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.exchange import containers, tokenizers
from cramming.exchange.places import CONFIGS, OWN
from cramming.exchange.weights import LONGEST, Weights, sha256
from cramming.exchange.written import reference_config
from cramming.hashing import key
from cramming.suggest import nearest

FRESH = "fresh"
HEADS = (MLM, FRESH)
# Where a trainer's file or a recipe keeps the model's config.
_CONFIG_INSIDE = (
    ("state", "integrations", "huggingface", "model", "config", "content"),
    ("model", "model_config"),
)
_COMMON_PREFIXES = ("bert", "roberta", "albert", "deberta", "model")  # of an encoder within a model with a head


@dataclass(frozen=True)
class Request:
    """What a person says about a checkpoint beyond where it is.

    Attributes:
        head: ``mlm``, or ``fresh``: take the encoder and begin the head anew.
        family: whose it is; None: found out.
        config: a file with the reference's config; None: the one beside the weights, or within their file.
        tokenizer: a place or hub id; None: the one beside the weights.
    """

    head: str = MLM
    family: str | None = None
    config: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UserError(
                f"head={self.head} is not known: mlm takes the checkpoint's masked-language-model head, fresh a new one"
            )
        if self.family is not None and self.family not in FAMILIES:
            raise UserError(f"family={self.family} is not known{nearest(self.family, FAMILIES)}")


def of_files(weights: Path, title: str, request: Request) -> Weights:
    """A checkpoint in files of any origin.

    Args:
        weights: the file, or the index of files, that holds them.
        title: what to call it.
        request: what is said about it.

    Raises:
        UserError: a file that is damaged or holds code, a config that is missing or lacks a key, a family that is not
            known, tensors missing or left over, a tokenizer that does not fit.
    """
    tensors, rest = containers.read(weights)
    config, config_title = _config(weights, rest, request.config)
    own = _own(weights.parent, config)
    family = request.family or (own.family if own else _detected(config, tensors, weights, config_title))
    tensors = _with_prefix(family, completed(family, config, tensors), tensors)
    config = dict(completed(family, config, tensors))
    try:
        plan = FAMILIES[family](config, MLM)
    except UserError as error:
        raise UserError(f"{config_title}: {error}") from error
    arch = own.arch if own and own.family == family else plan.arch
    torch.manual_seed(key("exchange", "weights"))  # what has no weights in the checkpoint begins the same every time
    model = arch.build(plan.vocab_size, plan.positions)
    classifying = _classifying(family, config)
    head = _head_of(plan, classifying)
    fresh = head if request.head == FRESH else []
    left_out = _other_heads(plan, classifying, tensors, fresh)
    try:
        fill(model, plan, {n: t for n, t in tensors.items() if n not in left_out}, without=fresh)
    except UserError as error:
        raise UserError(f"{weights}: {error}{_way_out(plan, head, tensors, request)}") from error
    tokenizer = tokenizers.beside(weights) if request.tokenizer is None else tokenizers.chosen(request.tokenizer)
    vocab_size = plan.vocab_size
    if tokenizer is not None:
        tokenizer, vocab_size = _fitted(tokenizer, arch, plan)
    state = model.state_dict()
    return Weights(
        title=title,
        arch=arch,
        vocab_size=vocab_size,
        seq_length=plan.positions if plan.positions < 1 << 20 else LONGEST,
        state=state,
        tokenizer=tokenizer,
        origin={"family": family, "file": weights.name, "tensors": len(tensors), "weights_sha256": sha256(state)},
        fresh=tuple(fresh),
        left_out=tuple(sorted(left_out)),
        data=own.data if own else None,
    )


def _config(weights: Path, rest: Mapping[str, Any], given: str | None) -> tuple[dict[str, Any], str]:
    """The reference's config, and what to call it."""
    if given is not None:
        path = Path(given).expanduser()
        try:
            found = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except (OSError, ValueError, OmegaConfBaseException) as error:
            raise UserError(f"config={given} cannot be read: {' '.join(str(error).split())[:160]}") from error
        except Exception as error:  # the parser of YAML has errors of its own
            raise UserError(f"config={given} is neither JSON nor YAML") from error
        if not isinstance(found, dict):
            raise UserError(f"config={given} holds no keys")
        return _inner({str(k): v for k, v in found.items()}), str(path)
    for name in CONFIGS:
        path = weights.parent / name
        if path.is_file():
            try:
                parsed = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read as JSON ({error})") from error
            if not isinstance(parsed, dict):
                raise UserError(f"{path} holds no keys")
            return parsed, str(path)
    inside = _inner(dict(rest))
    if inside is not rest and inside != dict(rest):
        return inside, f"the config within {weights}"
    return {}, f"{weights} has no {' or '.join(CONFIGS)} beside it; give its config with config=<file>"


def _inner(config: dict[str, Any]) -> dict[str, Any]:
    """The model's part of a trainer's file or of a recipe."""
    for path in _CONFIG_INSIDE:
        found: Any = config
        for step in path:
            found = found.get(step) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            return dict(found)
    return config


def _detected(config: Mapping[str, Any], names: Collection[str], weights: Path, config_title: str) -> str:
    """The one family whose checkpoint this is."""
    forms = [names, *([f"{prefix}.{name}" for name in names] for prefix in _prefixes(config))]
    for form in forms:
        found = [family for family, detect in DETECTORS.items() if detect(config, form)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{weights} could be of {' or '.join(sorted(found))}: say which with family=")
    kind = config.get("model_type") or ", ".join(map(str, config.get("architectures") or ())) or "of no named type"
    if "auto_map" in config:
        raise UserError(
            f"{config_title} (model_type {kind}) needs code of its own to load (auto_map), which is never run, and is "
            f"of no family known here: {', '.join(sorted(FAMILIES))}"
        )
    raise UserError(
        f"{weights} ({kind}, with tensors such as {next(iter(sorted(names)))!r}) is of no family known here: "
        f"{', '.join(sorted(FAMILIES))}; if it is one of them, say so with family="
    )


def _prefixes(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("model_type")
    return [kind, "model"] if isinstance(kind, str) else list(_COMMON_PREFIXES)


def _with_prefix(family: str, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as in a model with a head, where an encoder was saved alone, without the name it has within one."""
    try:
        wanted = {name for source in FAMILIES[family](config, MLM).sources.values() for name in source.names}
    except UserError:
        return tensors  # said when it is planned
    if wanted & set(tensors):
        return tensors
    for prefix in sorted({name.split(".")[0] for name in wanted}):
        if any(f"{prefix}.{name}" in wanted for name in tensors):
            return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
    return tensors


@dataclass(frozen=True)
class _Own:
    """What an exported folder says to us alone."""

    family: str
    arch: ArchConfig
    data: Mapping[str, Any] | None


def _own(place: Path, config: Mapping[str, Any]) -> _Own | None:
    """What we wrote into an exported folder, if its config still says what our options say.

    Raises:
        UserError: it is damaged.
    """
    file = place / OWN
    if not file.is_file():
        return None
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        node, sizes = said["arch"], (said["vocab_size"], said["positions"], said["special_ids"])
        schema = OmegaConf.structured(registry.lookup("arch", node["kind"]))
        arch = OmegaConf.to_object(OmegaConf.merge(schema, node))
        data = said.get("data")
        assert isinstance(arch, ArchConfig)
        family, written = reference_config(arch, *sizes)
    except UserError:  # options that need what is not on this machine, such as a folder: config.json says enough
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OmegaConfBaseException) as error:
        raise UserError(
            f"{file} is damaged ({' '.join(str(error).split())[:160]}): delete it, the rest is enough"
        ) from error
    unchanged = all(config.get(name) == value for name, value in json.loads(json.dumps(written)).items())
    return _Own(family, arch, data if isinstance(data, dict) else None) if unchanged else None


def _head_of(plan: Plan, classifying: Plan | None) -> list[str]:
    """Our parameters of the masked-language-model head: those called so, and those a classifier does without."""
    encoder = {name for name in plan.sources if not name.startswith("head.")}
    if classifying is not None:
        encoder &= set(classifying.sources)
    return [name for name in plan.sources if name not in encoder]


def _classifying(family: str, config: Mapping[str, Any]) -> Plan | None:
    """The plan of the family's classifier; None where it has none."""
    try:
        return FAMILIES[family](config, CLASSIFICATION)
    except UserError:
        return None


def _other_heads(plan: Plan, classifying: Plan | None, tensors: Collection[str], fresh: Collection[str]) -> set[str]:
    """Tensors of heads that are not wanted."""
    wanted = {name for ours, source in plan.sources.items() if ours not in fresh for name in source.names}
    unwanted = {name for ours in fresh for name in plan.sources[ours].names}
    if fresh:
        unwanted |= set(plan.tied)
    if classifying is not None:
        unwanted |= {name for source in classifying.sources.values() for name in source.names}
    unwanted -= wanted
    return {n for n in tensors if n in unwanted or any(re.fullmatch(pattern, n) for pattern in plan.other_heads)}


def _way_out(plan: Plan, head: Collection[str], tensors: Collection[str], request: Request) -> str:
    theirs = {name for ours in head for name in plan.sources[ours].names}
    encoder = {name for ours, source in plan.sources.items() if ours not in head for name in source.names}
    if request.head == MLM and encoder <= set(tensors) and not theirs & set(tensors):
        return "; it has no masked-language-model head: head=fresh (init_head=fresh in training) begins a new one"
    return ""


def _fitted(tokenizer: Tokenizer, arch: ArchConfig, plan: Plan) -> tuple[Tokenizer, int]:
    """The tokenizer, filled up if need be, and the number of ids that gives a model of the checkpoint's shape."""
    if tokenizer.vocab_size == plan.vocab_size:
        return tokenizer, plan.vocab_size
    with torch.device("meta"):
        shapes = [
            [tuple(tensor.shape) for tensor in arch.build(size, min(plan.positions, LONGEST)).parameters()]
            for size in (tokenizer.vocab_size, plan.vocab_size)
        ]
    if shapes[0] != shapes[1]:
        tokenizer = tokenizers.filled_up(tokenizer, plan.vocab_size)
    return tokenizer, tokenizer.vocab_size


def summary(weights: Weights, model: torch.nn.Module | None = None) -> str:
    """What was found, in a line; ``model``: one of its architecture, if there is one already."""
    parameters = sum(tensor.numel() for tensor in (model or weights.outline()).parameters())
    kind = weights.origin.get("family")
    said = f"{weights.title}: {kind}, " if kind else f"{weights.title}: "
    if "tensors" in weights.origin:
        said += f"{weights.origin['tensors'] - len(weights.left_out)} tensors matched, "
    said += f"{parameters:,} parameters, arch={weights.arch.kind} with {_options(weights.arch)}"
    if weights.left_out:
        said += f"; left out, as no part of a masked language model: {listed(list(weights.left_out))}"
    if weights.fresh:
        said += f"; begins anew: {listed(list(weights.fresh))}"
    return said


def _options(arch: ArchConfig) -> str:
    names = ("layers", "hidden", "heads")
    known = {field.name for field in fields(arch)}
    return ", ".join(f"{name}={asdict(arch)[name]}" for name in names if name in known) or arch.name
