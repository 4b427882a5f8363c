"""A trained run as a model to ask."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cramming import folder, resolve
from cramming.build import Parts, build_method
from cramming.data.preparation import prepare
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.model import Model
from cramming.progress import progress_for
from cramming.resolve import Resolved
from cramming.session import about, check_fits
from cramming.train import Run
from rst.clock import Clock
from rst.costs import StepsCost


@dataclass
class Selection:
    """Options every command has that reads a run."""

    name: str | None = None
    base_dir: str = "outputs"
    checkpoint: str | None = None


def find(options: Selection) -> folder.Found:
    """The run and checkpoint asked for; says which, if no name was given.

    Raises:
        UserError: no such run or checkpoint.
    """
    found = folder.find(options.base_dir, options.name, options.checkpoint)
    print(found)
    return found


def stored_resolution(found: folder.Found) -> Resolved:
    """How the run computed, on this machine's device."""
    resolved = resolve.resolve(found.config.impl, resolve.read(found.run_dir))
    torch.set_num_threads(resolved.threads)
    return resolved


def load_tokenizer(found: folder.Found) -> Tokenizer:
    """The tokenizer the run was trained with, kept in its folder.

    Raises:
        UserError: it is missing, or is not the one the checkpoint was trained with.
    """
    place = found.run_dir / "tokenizer"
    if not place.is_dir():
        raise UserError(f"{place} is missing: the run's tokenizer is needed to read text")
    tokenizer = Tokenizer.load(place)
    if tokenizer.sha256 != found.checkpoint.manifest().get("tokenizer_sha256"):
        raise UserError(f"{place} is not the tokenizer that checkpoint {found.checkpoint.folder} was trained with")
    return tokenizer


def load_model(found: folder.Found, vocab_size: int) -> Model:
    """The checkpoint's weights in their model, ready to be asked.

    Raises:
        UserError: a damaged checkpoint, or one of another architecture.
    """
    config = found.config
    model = config.arch.build(vocab_size, config.data.seq_length)
    state = found.checkpoint.read()
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"checkpoint {found.checkpoint.folder} is of another architecture: {reason}") from error
    return model.eval().to(resolve.device())  # type: ignore[no-any-return]


def load_run(found: folder.Found) -> Run:
    """The whole run as it was saved, with its corpus; for looking, not for training on.

    Raises:
        UserError: a damaged checkpoint, or one of another architecture, tokenizer or corpus.
    """
    config = found.config
    resolved = stored_resolution(found)
    store = prepare(config.data, Path(config.data_dir), progress=progress_for())
    parts = Parts(config, store.tokenizer.vocab_size, torch.device(resolved.device))
    engine = parts.spare_engine(resolved)
    stream = parts.stream(store, lambda: config.train.mask_rate)
    method = build_method(config.method, config.train.optim.needs_method)
    clock = Clock({"main": StepsCost()}, config.budget_s)
    run = Run(config, engine.model, engine, stream, clock, method, lambda _: 0.0, lambda _: config.train.batch_size)
    check_fits(found.checkpoint, about(run))
    method.setup(run)
    run.load_state_dict(found.checkpoint.read())
    return run
