"""A configuration and the registry -> a ``Run``.

The core never imports what lives above it: entry points fill the registry (``cramming.registry.load_plugins``), and
everything here is looked up there or reached through the typed configuration.
"""

import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cramming import microbatch, registry, resolve
from cramming.batch import Batch
from cramming.checkpoint import checkpoints
from cramming.config import PretrainConfig
from cramming.costs import build_costs
from cramming.data.config import HELDOUT
from cramming.data.curriculum import curriculum
from cramming.data.store import TokenStore
from cramming.data.stream import Split, Stream, slots
from cramming.engine import Engine
from cramming.errors import UserError
from cramming.exchange import initializing
from cramming.hashing import key
from cramming.kernels import backends, choice
from cramming.method import Chain, Method
from cramming.model import Model
from cramming.optim import OptimConfig, for_model, is_fused
from cramming.parallel import choosing, dividing
from cramming.parallel.environment import launched
from cramming.parallel.files import shared_files
from cramming.parallel.ranks import here
from cramming.parallel.spreading import share_out
from cramming.plain import ALL, WAYS
from cramming.precision import DTYPES
from cramming.priced import calibrate_command, flops_of, probes, target_of
from cramming.progress import progress_for
from cramming.resolve import Resolved
from cramming.schedule import Ramp
from cramming.train import Run
from rst.clock import Clock
from rst.costs import StepsCost

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the pieces of a run are built from."""

    config: PretrainConfig
    vocab_size: int
    device: torch.device

    def model(self) -> Model:
        """The model, with weights that depend on nothing but the configuration and the seed."""
        torch.manual_seed(key(self.config.seed, "weights"))
        model = self.config.arch.build(self.vocab_size, self.seq_length)
        model.gradient_checkpointing = self.config.impl.gradient_checkpointing
        rank = launched().rank  # ranks drop out other units; rank 0 those of a process that is alone
        torch.manual_seed(key(self.config.seed, "dropout", *([rank] if rank else [])))
        return model.train(self.config.arch.drops_out).to(self.device)  # type: ignore[no-any-return]

    def engine(self, model: Model, clock: Clock, resolved: Resolved) -> Engine:
        """The model's engine, with an optimizer over its parameter groups.

        Raises:
            UserError: a form of attention that the model cannot have here.
        """
        train = self.config.train
        if resolved.attention != "auto":
            _check_attention(model, resolved)
            model.attention = resolved.attention
        model.compute_plainly(resolved.plain)
        # What was settled by name may be another backend than the one asked for: it is not looked for again.
        self._kernels(model, resolved, resolved.kernels if resolved.kernel_backends is None else backends.AUTO)
        share_out(model, resolved.precision, resolved.parallel)
        return Engine(
            model,
            for_model(train.optim, model, fused="fused_optimizer" not in resolved.plain),
            clock,
            precision=resolved.precision,
            microbatch_size=resolved.microbatch_size or 1,
            clip_norm=train.clip_norm,
            compile=resolved.compile,
            cuda_graphs=resolved.cuda_graphs,
            max_skipped_steps=train.max_skipped_steps,
            parallel=resolved.parallel,
        )

    def spare_engine(self, resolved: Resolved, model: Model | None = None) -> Engine:
        """An engine that pays nothing, for passes that are no part of a run: on a model of its own, or on this one.

        It records no CUDA graphs, whose memory would outlast it.
        """
        own = self.model() if model is None else model.to(self.device)
        resolved = replace(resolved, cuda_graphs=False, parallel="none")
        return self.engine(own, Clock({"main": StepsCost()}, sys.float_info.max), resolved)

    def settle_kernels(self, resolved: Resolved) -> Resolved:
        """How to compute, with the backends of the model's operations, which the log is told."""
        outline = self._outline()
        outline.compute_plainly(resolved.plain)
        return replace(resolved, kernel_backends=self._kernels(outline, resolved, resolved.kernels, said=True))

    def settle_parallel(self, resolved: Resolved) -> Resolved:
        """How to compute, with how ranks train together."""
        if resolved.parallel != "auto":
            return resolved
        return replace(resolved, parallel=choosing.choose(self.config, self._size(), self.device))

    def check_fits(self, resolved: Resolved) -> None:
        """Refuse to look for a microbatch size, which is done on one device, for a model that takes several.

        Raises:
            UserError: it does not fit this one.
        """
        if resolved.parallel == "fsdp" and not choosing.fits(self._size(), self.device):
            raise UserError(
                "impl.microbatch_size=auto tries passes on one device, which this model with its optimizer does not "
                "fit: give a number, such as impl.microbatch_size=8"
            )

    def _size(self) -> int:
        """Numbers in the model's parameters."""
        return sum(parameter.numel() for parameter in self._outline().parameters())

    def _kernels(self, model: Model, resolved: Resolved, asked: str, said: bool = False) -> dict[str, str]:
        """Settle which backends compute the model's operations, and tell the model: -> backend by operation."""
        size = self.config.impl.microbatch_size
        return choice.use(
            model,
            self.device,
            DTYPES[resolved.precision],
            asked,
            known=resolved.kernel_backends,
            length=self.seq_length,
            sequences=None if size == "auto" else size,  # before it is found: as is usual
            said=said,
        )

    def check_attention(self, resolved: Resolved) -> None:
        """Refuse a form of attention before there is a model.

        Raises:
            UserError: this architecture, device, precision or torch has none.
        """
        if resolved.attention == "auto":
            return
        _check_attention(self._outline(), resolved)

    def _outline(self) -> Model:
        """The model without memory for weights, of which none are read."""
        arch = self.config.arch
        if getattr(arch, "pretrained", False):
            arch = replace(arch, pretrained=False)
        with torch.device("meta"):
            return arch.build(self.vocab_size, self.seq_length)  # type: ignore[no-any-return]

    def stream(self, store: TokenStore, mask_rate: Callable[[], float]) -> Stream:
        """The run's stream of masked sequences.

        Raises:
            UserError: fewer training sequences than one batch, or a curriculum that cannot be computed or kept.
        """
        split, order = split_of(store, self.config), self.config.data.order
        return Stream(
            store,
            split,
            seed=self.config.seed,
            mask_rate=mask_rate,
            max_mask_rate=self.max_mask_rate,
            device=self.device,
            lengths=self.config.lengths,
            order=None if order == "random" else curriculum(store, split, order, progress_for()),
            separate_documents=self.config.train.separate_documents,
        )

    @property
    def seq_length(self) -> int:
        """S."""
        return int(self.config.data.seq_length)

    @property
    def slots(self) -> int:
        """P, prediction slots of a sequence."""
        return self.slots_of(self.seq_length)

    def slots_of(self, length: int) -> int:
        """P of a sequence of ``length`` tokens."""
        return slots(length, self.max_mask_rate)

    @property
    def max_mask_rate(self) -> float:
        """The highest mask rate of the run."""
        train = self.config.train
        return max(train.mask_rate, train.mask_rate_initial or 0.0)

    def architecture(self) -> str:
        """What a pass costs depends on this, the length and the precision: the fingerprint of cost tables."""
        arch = self.config.arch  # options that are off cost nothing, and neither do its free fields
        fields = {k: v for k, v in asdict(arch).items() if v and k not in arch.FREE}
        parts = {**fields, "vocabulary": self.vocab_size, "predicted": self.slots}
        return f"{parts.pop('kind')} {' '.join(f'{k}={v}' for k, v in parts.items())}"

    def synthetic_batch(self, sequences: int, length: int | None = None) -> Batch:
        """Random tokens, masked nowhere: for passes whose result nobody looks at."""
        random = torch.Generator().manual_seed(0)
        shape = (sequences, length or self.seq_length)
        inputs = torch.randint(self.vocab_size, shape, generator=random)
        positions = torch.rand(shape, generator=random).argsort(1)[:, : self.slots_of(shape[1])]
        zeros, weights = torch.zeros(sequences, dtype=torch.int64), torch.ones(positions.shape)
        batch = Batch(zeros, zeros, inputs, positions, inputs.gather(1, positions), weights, None, weights.sum())
        return batch.to(self.device)


def _check_attention(model: Model, resolved: Resolved) -> None:
    where, dtype = torch.device(resolved.device), DTYPES[resolved.precision]
    missing = model.attention_lacks(resolved.attention, where, dtype)
    if missing is not None:
        raise UserError(f"impl.attention={resolved.attention}: {missing}; use impl.attention=auto")


def split_of(store: TokenStore, config: PretrainConfig) -> Split:
    """The rows a run trains on and those it is validated on.

    Raises:
        UserError: fewer training rows than one batch.
    """
    split: Split = config.data.split_of(store)
    if config.data.train_on == HELDOUT:
        split = split.of_heldout()
    if split.train_rows < config.train.batch_size and config.data.train_on == HELDOUT:
        raise UserError(
            f"data.heldout_fraction={config.data.heldout_fraction} holds out {split.train_rows} sequences to train on, "
            f"less than one batch of train.batch_size={config.train.batch_size}; hold out more in this run and in all "
            "that are compared (the earlier study: data.heldout_fraction=0.2), or bring more text"
        )
    if split.train_rows < config.train.batch_size:
        raise UserError(
            f"the corpus gives {split.train_rows} training sequences of {store.seq_length} tokens, less than one batch "
            f"of train.batch_size={config.train.batch_size}; bring more text or use a smaller batch"
        )
    return split


def build_run(
    config: PretrainConfig,
    store: TokenStore,
    resolved: Resolved,
    run_dir: Path,
    progress: Callable[[float], None] | None = None,
) -> tuple[Run, Resolved]:
    """Build everything a run is.

    Args:
        config: checked by ``cramming.config.typed``.
        store: the prepared corpus.
        resolved: how to compute; a microbatch size still to be found is found here.
        run_dir: where the run keeps its cost table.
        progress: told the share done of measuring costs, in [0, 1].

    Returns:
        The run at step 0, and ``resolved`` complete.

    Raises:
        UserError: a corpus smaller than one batch, a cost table that does not match, options that exclude each other.
    """
    where = torch.device(resolved.device)
    resolve.compute_exactly(where)
    parts = Parts(config, store.tokenizer.vocab_size, where)
    torch.set_num_threads(resolved.threads)
    method = build_method(config.method, config.train.optim)
    # Sequences that share one random draw; those of a batch that is smaller all do.
    group = min(method.sequences_per_draw or config.train.batch_size, config.train.batch_size)
    ranks = here()
    dividing.check(config.train.batch_size, group, ranks.world)
    group //= ranks.world  # of each rank
    if ranks.main:
        resolved = parts.settle_kernels(parts.settle_parallel(resolved))  # how long passes take depends on them
        if resolved.microbatch_size is None:
            parts.check_fits(resolved)
            resolved = replace(resolved, microbatch_size=microbatch.find(parts, resolved, group))
    resolved = Resolved(**ranks.told(asdict(resolved)))
    assert resolved.microbatch_size is not None
    if group % resolved.microbatch_size:
        raise UserError(
            f"impl.microbatch_size={resolved.microbatch_size} does not divide the {group} sequences that share one "
            f"random draw{' on a rank' if ranks.world > 1 else ''}; use a divisor of "
            f"{math.gcd(config.train.batch_size, group)}"
        )
    model = parts.model()
    if ranks.main and config.init_from is not None and not checkpoints(run_dir / "checkpoints"):
        initializing.record(run_dir, initializing.initialize(model, config, store.tokenizer))
    if ranks.told(config.init_from is not None):
        model.load_state_dict(ranks.given({name: t.cpu() for name, t in model.state_dict().items()}))
    with resolve.whole_machine(), shared_files(run_dir, "rst*.json"):
        costs = build_costs(
            config.rst,
            target=target_of(parts, resolved.precision),
            base_dir=Path(config.base_dir),
            run_dir=run_dir,
            probes=lambda lengths: probes(parts, resolved.precision, lengths),
            flops=flops_of(parts, model),
            synchronize=torch.cuda.synchronize if where.type == "cuda" else None,
            progress=progress,
            calibrate_command=calibrate_command(parts),
        )
    clock = Clock(costs, config.budget_s, config.stop_at_s, {*config.free, *method.free})
    engine = parts.engine(model, clock, resolved)
    train = config.train
    mask_rate = Ramp(train.mask_rate_initial or train.mask_rate, train.mask_rate, train.mask_rate_ramp)
    stream = parts.stream(store, lambda: mask_rate(clock.progress))
    run = Run(config, model, engine, stream, clock, method, train.schedule, _batch_size(config))
    with shared_files(run_dir, "rst*.json"):
        method.setup(run)
    _say_what_stays(config, engine)
    return run, resolved


def build_method(methods: Mapping[str, Method], optim: OptimConfig | None = None) -> Method:
    """The baseline, the one method, or a chain of several.

    Args:
        methods: as configured, by name.
        optim: may need a method; it is appended with the options the optimizer gives it, unless it is configured.

    Raises:
        UserError: two that exclude each other.
    """
    chosen = dict(methods)
    if optim is not None and optim.needs_method is not None and optim.needs_method not in chosen:
        chosen[optim.needs_method] = registry.lookup("method", optim.needs_method)(**optim.method_options())
    return Chain(chosen) if len(chosen) > 1 else next(iter(chosen.values()), Method())


def check_accounts(free: list[str], method: Method) -> None:
    """Accounts that may be free are those of methods; the training itself is always paid.

    Raises:
        UserError: another name in ``free``.
    """
    known = {"selection", "hessian", *method.accounts}
    for account in free:
        if account not in known:
            raise UserError(f"free=[{account}]: no such account; there are: {', '.join(sorted(known))}")


def fast_ways(engine: Engine) -> frozenset[str]:
    """Of ``cramming.plain.WAYS``, those there are in a run: its model's, and those of the step around it."""
    cast = {"cast_once"} if engine.precision != "float32" else set()
    fused = {"fused_optimizer"} if is_fused(engine.optimizer) is not None else set()
    return engine.model.all_ways | cast | fused


def _say_what_stays(config: PretrainConfig, engine: Engine) -> None:
    """A line for each name in ``impl.plain`` that changes nothing in this run."""
    asked, ways = set(config.impl.plain), fast_ways(engine)
    packed = config.data.layout == "packed"
    if packed and config.train.separate_documents and asked & {ALL, "unpadding"} and "unpadding" in ways:
        _log.info("impl.plain=[unpadding] changes nothing: documents that are kept apart have rows of their own")
    elif packed:
        ways -= {"unpadding"}
    kernels = config.impl.kernels
    if kernels != "auto" and not engine.model.kernel_ops:
        _log.info("impl.kernels=%s changes nothing: there is no operation in this model that has several", kernels)
    for name in sorted(asked - {ALL} - ways):
        _log.info("impl.plain=[%s] changes nothing: there is no such thing in this run (%s)", name, WAYS[name].fast)


def _batch_size(config: PretrainConfig) -> Callable[[float], int]:
    rows, lengths = config.batch_size, config.lengths
    return lambda progress: rows(progress) * lengths.pieces(lengths(progress))
