"""The typed configuration tree: what can be set, its defaults, and what is refused before any work.

``train`` holds what may change the result, ``impl`` what may change only the speed (up to rounding). Options whose
fields depend on a choice (``arch``, ``data``, ``train.optim``, ``train.schedule``, ``rst``, each ``method.<name>``) are
dataclasses of their own, found by their ``kind`` in ``cramming.registry``; YAML only overrides their defaults.
Nothing here imports torch unless a method is asked for.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import II, MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming import plain, registry
from cramming.allocator import CHOICES as ALLOCATORS
from cramming.data.config import OF_CHECKPOINT, TRAINED_HERE
from cramming.errors import UserError
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.config import check as check_probes
from cramming.lengths import MODES, BatchSize, Lengths
from cramming.recording.config import WandbConfig
from cramming.suggest import nearest

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,199}")
_UNITS_H = {"": 1.0, "h": 1.0, "m": 1 / 60, "min": 1 / 60, "s": 1 / 3600, "d": 24.0}
INIT_HEADS = ("mlm", "fresh")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# Forms of attention, as ``architectures/layers/attention_forms.py`` has them.
ATTENTION = ("auto", "math", "blocks", "sdpa", "flex", "varlen", "flash_attn")
PARALLEL = ("auto", "none", "ddp", "fsdp")
CHECKPOINTS = ("auto", "whole", "sharded")
KERNELS = ("auto", "reference", "torch", "triton", "cuda")  # as ``kernels/backends.py`` has them
# Nodes whose dataclass is chosen by their ``kind``: path in the tree -> registry group.
CHOSEN = {
    "arch": "arch",
    "data": "data",
    "train.optim": "train/optim",
    "train.schedule": "train/schedule",
    "rst": "rst",
}


@dataclass
class EarlyStop:
    """End a hopeless run: past ``after_h`` hours of budget with a training loss still above ``above_loss``."""

    after_h: float | None = None
    above_loss: float | None = None


@dataclass
class TrainConfig:
    """What may change the result."""

    batch_size: int = II("arch.batch_size")  # sequences in one optimizer step
    batch_size_initial: int | None = None  # grows in equal stairs from here to batch_size ...
    batch_size_ramp: float = 0.0  # ... over this share of the budget
    lengths: list[int] = field(default_factory=list)  # shorter sequences at first, tokens; then data.seq_length
    lengths_until: list[float] = field(default_factory=list)  # the share of the budget at which each of them ends
    lengths_mode: str = "truncate"  # drop the rest of a row; or unfold: cut rows into sequences of that length
    mask_rate: float = 0.15  # share of positions predicted
    mask_rate_initial: float | None = None  # moves linearly from here to mask_rate ...
    mask_rate_ramp: float = 1.0  # ... over this share of the budget
    separate_documents: bool = II("arch.separate_documents")  # in packed rows, no token sees another document's
    clip_norm: float | None = 0.5
    max_skipped_steps: int = 20  # steps in a row that may be skipped for a loss that is not finite
    optim: Any = MISSING
    schedule: Any = MISSING
    early_stop: EarlyStop = field(default_factory=EarlyStop)


@dataclass
class ImplConfig:
    """What may change only the speed. Every ``auto`` is resolved once and stored with the run."""

    microbatch_size: Any = "auto"  # sequences per forward and backward pass; auto: the fastest that fits
    precision: str = "auto"
    compile: Any = "auto"
    cuda_graphs: bool = False  # replay compiled blocks as CUDA graphs: fewer waits where the GPU is faster than Python
    attention: str = "auto"  # how attention is computed: math, blocks, sdpa, flex, varlen, flash_attn
    kernels: str = "auto"  # of m2's operations: reference, torch, triton, cuda; auto: the fastest that passes its test
    gradient_checkpointing: bool = False  # compute layers again in backward: less memory, a third more time
    threads: Any = "auto"
    parallel: str = "auto"  # how ranks train one model: ddp, each with all of it; fsdp, each with a share; auto: ddp
    devices: Any = 1  # of this machine, each with a process of its own; all; or start the command with torchrun
    allocator: str = "auto"  # keep: memory that was freed stays with the process, on Linux; system: it is given back
    plain: list[str] = field(default_factory=list)  # fast ways to leave out, as cramming/plain.py names them; [all]
    log_every_steps: int = 10
    validate_every_h: float | None = None  # hours of budget; at the end in any case
    validate_sequences: int = 10_000  # at most so many held-out sequences, the first ones
    probes: list[str] = field(default_factory=list)  # asked at every validation: linear, minimal_pairs, ...
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    save_every_steps: int | None = None
    save_every_h: float | None = 0.25  # hours of budget; at the end in any case
    keep_checkpoints: int = 2
    keep_at_h: list[float] = field(default_factory=list)
    checkpoints: str = "auto"  # whole, or sharded: every rank writes its own part; auto: sharded where the model is
    save_async: bool = False  # write checkpoints while training goes on
    mirror: str | None = None  # copies of checkpoints and records: any address, such as s3://bucket/{name}
    tensorboard: bool = False
    profile: bool = False  # where the time of some steps goes: a page and a trace in <run>/profile
    profile_steps: int = 20  # timed and traced, after 5 to warm up


@dataclass
class PretrainConfig:
    """One pretraining run."""

    name: str | None = None
    base_dir: str = "outputs"
    data_dir: str = "${base_dir}/_data"
    budget: Any = 24  # hours of reference system time; also '30m', '90s'; optimizer steps under rst=steps
    stop_at: Any = None  # end here and save, with the schedule still laid out to the whole budget
    seed: int = 0
    resume: bool = True
    free: list[str] = field(default_factory=list)  # accounts of the clock that are written down but not counted
    from_run: str | None = None
    init_from: str | None = None  # weights to begin with: a run, an exported or Hugging Face folder, a file, a hub id
    init_head: str = "mlm"  # its head as well; fresh: a new one, for checkpoints of an encoder alone
    init_width: str | None = None  # how a larger model gets wider: tile, centre
    init_depth: str | None = None  # and deeper: stack, interleave
    init_positions: str | None = None  # and its tables of positions another length: tile, interpolate, cut
    arch: Any = MISSING
    data: Any = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    impl: ImplConfig = field(default_factory=ImplConfig)
    method: dict[str, Any] = field(default_factory=dict)
    rst: Any = MISSING
    wandb: WandbConfig = field(default_factory=WandbConfig)

    @property
    def budget_s(self) -> float:
        """The budget in the clock's unit: seconds, or steps under ``rst=steps``."""
        return parse_budget(self.budget, "budget", self.rst.unit_s)

    @property
    def lengths(self) -> Lengths:
        """Sequence length by progress: of the method that decides it, or as ``train.lengths`` says.

        Raises:
            UserError: lengths and shares that make no curriculum, or two that say how long sequences are.
        """
        train, full = self.train, int(self.data.seq_length)
        decided: dict[str, Lengths] = {
            name: own for name, method in self.method.items() if (own := method.lengths(full)) is not None
        }
        if len(decided) + bool(train.lengths) > 1:
            others = f"method={','.join(decided)}" + (" and train.lengths" if train.lengths else "")
            raise UserError(f"{others}: each of these says how long sequences are; keep one of them")
        for own in decided.values():
            return own
        return Lengths(full, tuple(train.lengths), tuple(train.lengths_until), train.lengths_mode == "unfold")

    @property
    def batch_size(self) -> Callable[[float], int]:
        """Sequences of a step by progress, of full length; where rows are unfolded, a step has as many more."""
        train = self.train
        if train.batch_size_initial is None:
            return lambda progress: train.batch_size
        return BatchSize(train.batch_size_initial, train.batch_size, train.batch_size_ramp)

    @property
    def stop_at_s(self) -> float | None:
        """``stop_at`` in the clock's unit."""
        return None if self.stop_at is None else parse_budget(self.stop_at, "stop_at", self.rst.unit_s)


@dataclass
class Composed(PretrainConfig):
    """The tree of a command line: a run, and the study that an experiment may describe (``cramming/sweeps``)."""

    study: dict[str, Any] = field(default_factory=dict)  # name of a part -> the end of its command line


def parse_budget(value: Any, key: str, unit_s: float = 3600.0) -> float:
    """A budget as typed (``24``, ``0.5``, ``'30m'``, ``'90s'``) in the clock's unit.

    Args:
        value: a number of hours, or a number with a unit; a number of steps where ``unit_s`` is 1.
        key: the option's name, for the message.
        unit_s: seconds in the clock's unit for a bare number: 3600, or 1 for a clock that counts steps.

    Raises:
        UserError: not a positive finite amount of time.
    """
    example = "steps, such as 500" if unit_s == 1 else "hours, such as 24 or 0.5, or 30m or 90s"
    match = re.fullmatch(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*([a-z]*)\s*", str(value).lower())
    try:
        number = float(match[1]) if match else float(str(value))
    except ValueError:
        raise UserError(f"{key}={value} is not an amount of time; give {example}") from None
    unit = match[2] if match else ""
    if unit not in _UNITS_H:
        raise UserError(f"{key}={value}: unknown unit {unit!r}; give {example}")
    if unit_s == 1 and unit:
        raise UserError(f"{key}={value}: with rst=steps the budget counts optimizer steps; give {example}")
    amount = number * (unit_s if not unit else _UNITS_H[unit] * 3600)
    if not math.isfinite(amount) or amount <= 0:
        raise UserError(f"{key}={value} must be more than zero and finite; give {example}")
    return amount


def check_name(name: str) -> str:
    """A run's name, which becomes a folder under ``base_dir``.

    Raises:
        UserError: it could leave the folder or is no plain name.
    """
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise UserError(
            f"name={name!r} cannot be a run's name: start with a letter or digit, then letters, digits and ._=,+- only"
        )
    return name


def typed(config: DictConfig) -> PretrainConfig:
    """A composed or stored tree as checked dataclasses.

    Raises:
        UserError: an unknown key, a wrong type or an impossible value, named.
    """
    try:
        tree: Any = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        tree.pop("study", None)
        for path, group in CHOSEN.items():
            node = OmegaConf.select(tree, path)
            if node is None or "kind" not in node:
                raise UserError(f"the configuration has no {path}: choose one with {group}=...")
            schema = OmegaConf.structured(registry.lookup(group, node.kind))
            OmegaConf.update(tree, path, OmegaConf.merge(schema, node), merge=False)
        for kind, node in (tree.method or {}).items():
            schema = OmegaConf.structured(registry.lookup("method", str(kind)))
            tree.method[kind] = OmegaConf.merge(schema, node or {})
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PretrainConfig), tree))
    except OmegaConfBaseException as error:
        raise UserError(_plain(error)) from error
    assert isinstance(result, PretrainConfig)
    if result.init_from is not None and result.data.tokenizer == TRAINED_HERE:  # its words would be others
        result.data.tokenizer = OF_CHECKPOINT
    check(result)
    return result


def check(config: PretrainConfig) -> None:
    """Refuse impossible combinations before any work.

    Raises:
        UserError: naming the option, its value and the way out.
    """
    if config.name is not None:
        check_name(config.name)
    for key in ("base_dir", "data_dir"):
        if not getattr(config, key).strip():
            raise UserError(f"{key} is empty; give a folder, or leave it out")
    budget_s, stop_at_s = config.budget_s, config.stop_at_s
    if stop_at_s is not None and stop_at_s > budget_s:
        raise UserError(
            f"stop_at={config.stop_at} lies after the end of budget={config.budget}; give at most the budget"
        )
    _check_init(config)
    train, impl = config.train, config.impl
    _positive("train.batch_size", train.batch_size)
    if train.batch_size_initial is not None:
        _positive("train.batch_size_initial", train.batch_size_initial)
    elif train.batch_size_ramp:
        raise UserError(
            f"train.batch_size_ramp={train.batch_size_ramp} has no size to begin with: "
            "give train.batch_size_initial=128, say, or leave the ramp out"
        )
    config.batch_size(0.0)  # refuses a ramp without a share to climb in
    for key in ("mask_rate", "mask_rate_initial"):
        rate = getattr(train, key)
        if rate is not None and not 0 < rate < 1:
            raise UserError(f"train.{key}={rate} must lie between 0 and 1, such as 0.15")
    for key in ("mask_rate_ramp", "batch_size_ramp"):
        share = getattr(train, key)
        if not 0 <= share <= 1:
            raise UserError(f"train.{key}={share} is a share of the budget: give a number from 0 to 1")
    if train.clip_norm is not None and not train.clip_norm > 0:
        raise UserError(f"train.clip_norm={train.clip_norm} must be above 0; null switches clipping off")
    if (train.early_stop.after_h is None) != (train.early_stop.above_loss is None):
        raise UserError("train.early_stop needs both after_h and above_loss, or neither")
    if impl.precision not in PRECISIONS:
        raise UserError(f"impl.precision={impl.precision} is unknown; there are: {', '.join(PRECISIONS)}")
    if impl.attention not in ATTENTION:
        raise UserError(f"impl.attention={impl.attention} is unknown; there are: {', '.join(ATTENTION)}")
    if impl.kernels not in KERNELS:
        raise UserError(f"impl.kernels={impl.kernels} is unknown{nearest(impl.kernels, KERNELS)}")
    for key, known in (("parallel", PARALLEL), ("checkpoints", CHECKPOINTS)):
        if getattr(impl, key) not in known:
            raise UserError(f"impl.{key}={getattr(impl, key)} is unknown{nearest(getattr(impl, key), known)}")
    if impl.devices != "all":
        _whole("impl.devices", impl.devices, "all")
    if impl.allocator not in ALLOCATORS:
        raise UserError(f"impl.allocator={impl.allocator} is unknown; there are: {', '.join(ALLOCATORS)}")
    plain.chosen(impl.plain)  # refuses what is no name
    if impl.compile not in ("auto", True, False):
        raise UserError(f"impl.compile={impl.compile} must be auto, true or false")
    for key in ("log_every_steps", "keep_checkpoints", "validate_sequences", "profile_steps"):
        _positive(f"impl.{key}", getattr(impl, key))
    for key in ("save_every_steps", "save_every_h", "validate_every_h"):
        if getattr(impl, key) is not None:
            _positive(f"impl.{key}", getattr(impl, key))
    check_probes(impl.probes, impl.probe, "impl.probe")
    if impl.threads != "auto":
        _whole("impl.threads", impl.threads)
    if impl.microbatch_size != "auto":
        check_microbatch(train.batch_size, _whole("impl.microbatch_size", impl.microbatch_size))
    config.data.check()
    _check_lengths(config)
    if config.method:
        from cramming.method import refuse_pairs  # needs torch, which a baseline's command line does without

        refuse_pairs(config.method)


def _check_init(config: PretrainConfig) -> None:
    if config.init_head not in INIT_HEADS:
        raise UserError(f"init_head={config.init_head} is not known{nearest(config.init_head, INIT_HEADS)}")
    if config.init_from is not None:
        return
    for key in ("init_width", "init_depth", "init_positions"):
        if getattr(config, key) is not None:
            raise UserError(f"{key}={getattr(config, key)} says how a checkpoint grows: name one with init_from=")
    if config.init_head == "fresh":
        raise UserError("init_head=fresh is for the weights of a checkpoint: name one with init_from=")
    if config.data.tokenizer == OF_CHECKPOINT:
        raise UserError(f"data.tokenizer={OF_CHECKPOINT} is that of init_from=: name one, or use data.tokenizer=train")


def _check_lengths(config: PretrainConfig) -> None:
    train = config.train
    if train.lengths_mode not in MODES:
        raise UserError(f"train.lengths_mode={train.lengths_mode} is unknown; there are: {', '.join(MODES)}")
    lengths = config.lengths
    if lengths.shorter and lengths.unfold and config.data.layout != "packed":
        mode = "train.lengths_mode" if train.lengths else "mode"  # of the method that decides lengths
        raise UserError(
            f"{mode}=unfold cuts full rows; those of data.layout={config.data.layout} are padded: use {mode}=truncate "
            "or data.layout=packed"
        )
    rate, shortest = min(train.mask_rate, train.mask_rate_initial or 1.0), min(lengths.all)
    if lengths.shorter and round(rate * shortest) < 1:
        raise UserError(
            f"lengths {', '.join(map(str, lengths.shorter))}: sequences of {shortest} tokens predict none of them at a "
            f"mask rate of {rate}; give {math.ceil(1 / rate)} tokens or more"
        )


def check_microbatch(batch_size: int, microbatch_size: int) -> None:
    """A microbatch must divide the batch.

    Raises:
        UserError: it does not; the nearest size that does is named.
    """
    if batch_size % microbatch_size:
        divisors = [d for d in range(1, batch_size + 1) if batch_size % d == 0]
        best = min(divisors, key=lambda d: (abs(d - microbatch_size), -d))
        raise UserError(
            f"impl.microbatch_size={microbatch_size} does not divide train.batch_size={batch_size}; "
            f"the nearest that does is {best}"
        )


def _positive(key: str, value: float) -> None:
    if not value > 0 or not math.isfinite(value):
        raise UserError(f"{key}={value} must be above zero")


def _whole(key: str, value: Any, word: str = "auto") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key}={value} must be {word} or a whole number from 1")
    return value


def _plain(error: OmegaConfBaseException) -> str:
    """OmegaConf's message as one line, with the full key in front."""
    first = str(error).split("\n", maxsplit=1)[0]
    return f"{error.full_key}: {first}" if getattr(error, "full_key", None) else first


def register_schemas() -> None:
    """Put the tree's root into Hydra's ConfigStore, under ``schema_pretrain``."""
    ConfigStore.instance().store(name="schema_pretrain", node=Composed)
