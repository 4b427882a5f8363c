"""``init_from=``: a run that begins with the weights of a checkpoint, at step 0 with its whole budget before it.

The architecture is the checkpoint's unless ``arch=`` names one, the tokenizer the checkpoint's unless
``data.tokenizer=`` does. The weights are read once: the first thing such a run does is to save them as its own step 0,
and with its tokenizer beside them it goes on wherever the checkpoint it began with may be by then.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from cramming import registry
from cramming.architectures import growth
from cramming.architectures.configs import ArchConfig
from cramming.architectures.references import MLM
from cramming.config import PretrainConfig
from cramming.data.config import OF_CHECKPOINT, TRAINED_HERE, DataConfig
from cramming.data.fingerprint import LENGTH
from cramming.data.tokenizer import Tokenizer
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.exchange import importing
from cramming.exchange.importing import Request
from cramming.exchange.opening import opened
from cramming.exchange.weights import INIT, Weights
from cramming.model import Model
from cramming.saving.mirror import Mirror, address_of

_OPTION = "checkpoint"  # of the group arch, while a command is composed
_BEGUN = "metrics.jsonl"
_log = logging.getLogger(__name__)


def adopted(given: str, words: Sequence[str], experiments: Path) -> list[str]:
    """The words that give a command what it does not choose itself: the checkpoint's architecture, and its data.

    A run that has begun to train keeps what it was given then, whatever has become of the checkpoint.

    Args:
        given: what ``init_from`` names.
        words: the command line.
        experiments: the folder of recipes, which may choose an architecture.

    Raises:
        UserError: there is no such checkpoint, there are several in a sweep, or a new tokenizer is asked for.
    """
    chosen = dict(word.partition("=")[::2] for word in words)
    if chosen.get("data.tokenizer") == TRAINED_HERE:
        raise UserError(
            f"data.tokenizer={TRAINED_HERE} would give new words the places of those that init_from={given} knows: "
            "leave it out, and the checkpoint's is used"
        )
    head = chosen.get("init_head", MLM)
    if head not in importing.HEADS:
        return []  # said when the whole is checked
    recipe = _recipe(chosen.get("experiment"), experiments)
    groups = {
        "arch": "arch" in chosen or "arch" in recipe,
        "data": "data" in recipe or any(word.startswith(("data=", "data.mix=", "+data@")) for word in words),
    }
    if all(groups.values()):
        return []
    if "," in given and {"-m", "--multirun"} & set(words):
        raise UserError(f"init_from={given}: several checkpoints in one sweep need arch=, which all of them then have")
    base_dir = Path(chosen.get("base_dir", "outputs"))
    found = None
    if chosen.get("resume", "true").lower() not in ("false", "0", "no", "off"):
        name = chosen.get("name", "default")
        found = _begun(given, base_dir, name) or _begun_elsewhere(given, chosen.get("impl.mirror", ""), name)
    if found is None:
        weights = opened(given, str(base_dir), Request(head=head)).trained()
        found = {"arch": _architecture(weights), "data": weights.data}
    options = {group: node for group, node in found.items() if node is not None and not groups[group]}
    for group, node in options.items():
        ConfigStore.instance().store(group=group, name=_OPTION, node=node)
    if "data" in options:
        print(f"data={options['data'].get('name')}: what {given} was trained on; data= names another")
    return [f"{group}={_OPTION}" for group in options]


def is_adopted(word: str) -> bool:
    """Whether a word is one of those that ``adopted`` gave, which only the process knows that asked."""
    return word in (f"arch={_OPTION}", f"data={_OPTION}")


def initialize(model: Model, config: PretrainConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Give a new run's model the weights it is to begin with.

    Args:
        model: with fresh weights.
        config: the run's; ``init_from`` names the checkpoint.
        tokenizer: the run's.

    Returns:
        JSON values that say where they come from.

    Raises:
        UserError: there is no such checkpoint; its model is of another family, or of other sizes and no option says how
            it grows; its tokenizer is another.
    """
    weights = _opened(config)
    _check_tokenizer(weights, config, tokenizer)
    state, fresh = dict(weights.state), model.state_dict()
    ways = {"width": config.init_width, "depth": config.init_depth, "positions": config.init_positions}
    same = {name: tensor.shape for name, tensor in state.items()} == {name: t.shape for name, t in fresh.items()}
    if not same or any(ways.values()):
        try:
            state = growth.fit(state, weights.outline(), model, **ways)  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"init_from={config.init_from}: {error}") from error
    state |= {name: fresh[name] for name in weights.fresh}
    model.load_state_dict(state)
    differing = _differences(weights.arch, config.arch)
    _log.info("%s%s", importing.summary(weights, model), f"; changed: {', '.join(differing)}" if differing else "")
    grown = {f"init_{name}": way for name, way in ways.items() if way is not None}
    told = {"one_type": True} if weights.one_type else {}
    return {"checkpoint": config.init_from, **weights.origin, **grown, **told, "changed": differing}


def data_of(config: PretrainConfig, run_dir: Path) -> DataConfig:
    """The run's data with a tokenizer that has a place: the checkpoint's is kept, in the run's folder once it trains.

    Raises:
        UserError: the checkpoint cannot be read, is of another family, or has no tokenizer; or the run's sequences are
            longer than its model takes.
    """
    data: DataConfig = config.data
    if config.init_from is None:
        return data
    kept = run_dir / "tokenizer"
    if not ((run_dir / _BEGUN).exists() and kept.is_dir()):
        weights = _opened(config)
        positions = getattr(config.arch, "max_positions", None)
        if positions is not None and data.seq_length > positions:
            raise UserError(
                f"data.seq_length={data.seq_length} is longer than arch.max_positions={positions}: shorten the "
                "sequences, or raise arch.max_positions (a learned table then needs init_positions=tile or interpolate)"
            )
        if data.tokenizer != OF_CHECKPOINT:
            return data
        if weights.tokenizer is None:
            raise UserError(f"init_from={config.init_from} has no tokenizer beside it: give its own, data.tokenizer=")
        kept = placed(weights.tokenizer, Path(config.data_dir))
    return replace(data, tokenizer=str(kept)) if data.tokenizer == OF_CHECKPOINT else data


def placed(tokenizer: Tokenizer, data_dir: Path) -> Path:
    """A folder under ``data_dir`` that holds a tokenizer, named for what it is.

    Raises:
        UserError: the folder cannot be made.
    """
    kept = data_dir / f"tokenizer-{tokenizer.sha256[:LENGTH]}"
    try:
        tokenizer.save(kept)
    except OSError as error:
        raise UserError(f"{kept} cannot be written ({error.strerror}); set data_dir to another folder") from error
    return kept


def record(run_dir: Path, origin: dict[str, Any]) -> None:
    """Write down where a run's first weights came from."""
    write_atomically(run_dir / INIT, (json.dumps(origin, indent=2) + "\n").encode())


def recorded(run_dir: Path) -> dict[str, Any] | None:
    """Where a run's first weights came from; None: they were drawn."""
    try:
        found = json.loads((run_dir / INIT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _opened(config: PretrainConfig) -> Weights:
    """The checkpoint a run begins with."""
    assert config.init_from is not None, "config.check"
    weights = opened(config.init_from, config.base_dir, Request(head=config.init_head)).trained()
    if weights.arch.kind != config.arch.kind:
        raise UserError(
            f"init_from={config.init_from} holds arch {weights.arch.kind}, and the run has {config.arch.kind}: leave "
            f"arch= out, or name one of {weights.arch.kind}"
        )
    return weights


def _recipe(name: str | None, experiments: Path) -> set[str]:
    """The groups of which a recipe chooses an option."""
    try:
        text = (experiments / f"{name}.yaml").read_text(encoding="utf-8")
    except OSError:
        return set()
    return set(re.findall(r"^\s*- override /(\w+)\b", text, re.MULTILINE))


def _begun(given: str, base_dir: Path, name: str) -> dict[str, Any] | None:
    """Architecture and data of a run, or of a job of a sweep, that began with this checkpoint and has trained since."""
    for file in (base_dir / name / "config.yaml", *sorted(base_dir.glob(f"{name}-*/config.yaml"))):
        if file.is_file() and (file.parent / _BEGUN).exists():
            tree = OmegaConf.load(file)
            if OmegaConf.select(tree, "init_from") == given:
                return _options(tree)
    return None


def _begun_elsewhere(given: str, mirror: str, name: str) -> dict[str, Any] | None:
    """The same of a run that this machine does not have yet, as its mirror says."""
    if mirror.strip("'\"") in ("", "null"):
        return None
    tree = Mirror(address_of(mirror.strip("'\""), name), Path(name), keep=1).config()
    return _options(tree) if tree is not None and OmegaConf.select(tree, "init_from") == given else None


def _options(tree: Any) -> dict[str, Any]:
    schema = OmegaConf.structured(registry.lookup("arch", OmegaConf.select(tree, "arch.kind")))
    arch = OmegaConf.to_object(OmegaConf.merge(schema, tree.arch))
    return {"arch": arch, "data": OmegaConf.to_container(tree.data)}


def _architecture(weights: Weights) -> ArchConfig:
    """A checkpoint's options, with as many positions as its tables have."""
    arch = weights.arch
    sized = {field.name for field in fields(arch)}
    if "max_positions" in sized and getattr(arch, "max_positions", 0) is None:
        arch = replace(arch, max_positions=weights.seq_length)  # type: ignore[call-arg]
    return arch


def _check_tokenizer(weights: Weights, config: PretrainConfig, tokenizer: Tokenizer) -> None:
    way_out = "leave data.tokenizer out, or give the checkpoint's"
    if weights.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"init_from={config.init_from} has {weights.vocab_size} token ids and data.tokenizer="
            f"{config.data.tokenizer} has {tokenizer.vocab_size}: {way_out}"
        )
    theirs = weights.tokenizer
    if theirs is None or theirs.sha256 == tokenizer.sha256:
        return
    other = next((i for i in range(theirs.vocab_size) if theirs.token(i) != tokenizer.token(i)), None)
    if other is not None:
        raise UserError(
            f"init_from={config.init_from} knows {theirs.token(other)!r} by the id {other}, which data.tokenizer="
            f"{config.data.tokenizer} gives to {tokenizer.token(other)!r}: {way_out}"
        )


def _differences(theirs: ArchConfig, ours: ArchConfig) -> list[str]:
    free = ("name", "batch_size", "vocab_size", "max_positions")
    before, now = asdict(theirs), asdict(ours)
    return [f"arch.{key} {before[key]} -> {now[key]}" for key in before if key not in free and before[key] != now[key]]
