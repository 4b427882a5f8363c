"""A trained model to ask: of a run, or of a checkpoint of any origin."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cramming import folder, resolve
from cramming.architectures.references import MLM
from cramming.build import Parts, build_method
from cramming.cli import compose
from cramming.config import PretrainConfig
from cramming.data.config import TRAINED_HERE
from cramming.data.preparation import prepare
from cramming.data.store import TokenStore
from cramming.errors import UserError
from cramming.exchange import initializing
from cramming.exchange.importing import Request
from cramming.exchange.opening import opened
from cramming.exchange.places import locate
from cramming.exchange.weights import Weights, is_imported, of_run
from cramming.identity import about, check_fits
from cramming.method import Method
from cramming.model import Model
from cramming.progress import progress_for
from cramming.resolve import Resolved
from cramming.suggest import nearest
from cramming.train import Run
from rst.clock import Clock
from rst.costs import StepsCost

_log = logging.getLogger(__name__)

WEIGHTS = ("averaged", "last")
_TOKENS = 128  # of a validation sequence, where neither the model nor the user says


@dataclass
class Selection:
    """Options every command has that reads a trained model."""

    name: str | None = None
    base_dir: str = "outputs"
    checkpoint: str | None = None
    weights: str = "averaged"  # what a run's method lends for evaluation, if it does; or the last ones it trained

    @property
    def averaged(self) -> bool:
        """Whether to take the weights that a run's method lends.

        Raises:
            UserError: another word than the two.
        """
        if self.weights not in WEIGHTS:
            raise UserError(f"weights={self.weights} is unknown{nearest(self.weights, WEIGHTS)}")
        return self.weights == "averaged"


def find(options: Selection) -> folder.Found | None:
    """The run and checkpoint asked for; says which. None where what is asked for is no run.

    Raises:
        UserError: no such run or checkpoint.
    """
    given = options.checkpoint
    if given is None or given.startswith("@"):
        found = folder.find(options.base_dir, options.name, given)
    else:
        place = locate(given, options.base_dir)
        if place.run is None:
            return None
        found = place.run
    print(found)
    return found


def selected(options: Selection, head: str = MLM) -> tuple[Weights, folder.Found | None]:
    """The checkpoint asked for, whatever it is; and the run it is of, if it is one's.

    Args:
        options: which.
        head: of what is no run: ``mlm``, its masked-language-model head; or ``fresh``: that is not needed, so that
            classifiers and encoders alone will do.

    Raises:
        UserError: no such checkpoint, or it cannot be used.
    """
    averaged, found = options.averaged, find(options)
    if found is not None:
        return of_run(found, averaged), found
    assert options.checkpoint is not None
    weights = opened(options.checkpoint, options.base_dir, Request(head=head))
    print(weights.title)
    if weights.tokenizer is None:
        raise UserError(
            f"checkpoint={options.checkpoint} has no tokenizer beside it: import it with its own, "
            f"python -m cramming.import_checkpoint checkpoint={options.checkpoint} tokenizer=... name=..."
        )
    return weights, None


def load_run(found: folder.Found, averaged: bool = True) -> Run:
    """The whole run as it was saved, with its corpus; for looking, not for training on.

    Args:
        found: the run and its checkpoint.
        averaged: its method lends the model weights for evaluation, if it does.

    Raises:
        UserError: a damaged checkpoint, or one of another architecture, tokenizer or corpus.
    """
    if is_imported(found.run_dir):
        raise UserError(f"{found.name} was imported and has no corpus of its own: name one, such as data=python_docs")
    config = found.config
    resolved = resolve.resolve(config.impl, resolve.read(found.run_dir))
    torch.set_num_threads(resolved.threads)
    store = prepare(initializing.data_of(config, found.run_dir), Path(config.data_dir), progress=progress_for())
    parts = Parts(config, store.tokenizer.vocab_size, torch.device(resolved.device))
    try:
        parts.check_attention(resolved)
    except UserError as error:  # the run was trained on another machine
        _log.warning("%s, as is done here", error)
        resolved = replace(resolved, attention="auto")
    run = _run(config, parts, store, resolved)
    check_fits(found.checkpoint, about(run))
    run.load_state_dict(found.checkpoint.read())
    if not averaged:
        run.method = Method()
    return run


def with_data(weights: Weights, found: folder.Found | None, words: Sequence[str]) -> Run:
    """A model on a corpus of one's own choice; for looking, not for training on.

    Args:
        weights: the model.
        found: the run it is of.
        words: options of ``pretrain_bert.py`` that choose the corpus: ``data=``, ``data.<key>=``, ``data_dir=``.

    Raises:
        UserError: an option that does not exist, a corpus that cannot be used, or sequences too long for the model.
    """
    tokenizer = weights.tokenizer
    assert tokenizer is not None
    model = weights.model()
    longest = int(model.max_positions)
    known = [f"data.seq_length={min(longest, _TOKENS) if found is None else weights.seq_length}"]
    if found is not None and not is_imported(found.run_dir):
        known.append(f"data.layout={found.config.data.layout}")
    composed = compose([*known, "rst=steps", *words])
    if composed.data.seq_length > longest:
        raise UserError(
            f"data.seq_length={composed.data.seq_length} is longer than the {longest} positions of {weights.title}"
        )
    if composed.data.tokenizer != type(composed.data)().tokenizer:
        raise UserError(f"data.tokenizer={composed.data.tokenizer} has no say here: a checkpoint is read with its own")
    train = replace(composed.train, batch_size=1)
    config = replace(composed, arch=weights.arch, train=train)  # what a method lends is in the weights already
    resolved = resolve.resolve(config.impl, None if found is None else resolve.read(found.run_dir))
    torch.set_num_threads(resolved.threads)
    data = config.data
    if data.tokenizer == TRAINED_HERE:
        data = replace(data, tokenizer=str(initializing.placed(tokenizer, Path(config.data_dir))))
    store = prepare(data, Path(config.data_dir), progress=progress_for())
    if store.tokenizer.sha256 != tokenizer.sha256:
        raise UserError(f"data={data.kind} was made with another tokenizer than {weights.title} was trained with")
    parts = Parts(config, weights.vocab_size, torch.device(resolved.device))
    return _run(config, parts, store, resolved, model)


def _run(
    config: PretrainConfig, parts: Parts, store: TokenStore, resolved: Resolved, model: Model | None = None
) -> Run:
    """A run that nobody trains: its engine pays nothing."""
    engine = parts.spare_engine(resolved, model)
    stream = parts.stream(store, lambda: config.train.mask_rate)
    method = build_method(config.method, config.train.optim)
    clock = Clock({"main": StepsCost()}, config.budget_s)
    return Run(config, engine.model, engine, stream, clock, method, lambda _: 0.0, lambda _: config.train.batch_size)
