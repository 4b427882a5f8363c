"""``validate_bert.py``: how well a trained run predicts held-out text."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from cramming.cli import load_schemas, parse
from cramming.errors import UserError
from cramming.evaluation.trained import Selection, find, load_run, selected, with_data
from cramming.train import Run
from cramming.validation import MASK_RATE, MASK_SEED, VALIDATION_SEQUENCES, validate

_USAGE = """\
Held-out loss, perplexity and accuracy at predicted positions, at a fixed mask rate and seed.

  python validate_bert.py name=first                 its last checkpoint
  python validate_bert.py checkpoint=first@12h       one kept at an hour of the budget; also @step=4000, @last
  python validate_bert.py                            the run trained last
  python validate_bert.py checkpoint=exported/first data=python_docs     another corpus; a run has its own

checkpoint= takes a run's, an exported or Hugging Face folder, a file of weights, or a hub id.
Options: name, base_dir=outputs, checkpoint, weights=averaged (those that the run's method lends for evaluation, if it
         does; or last), mask_rate=0.15, mask_seed=0, max_sequences=10000, and those of pretrain_bert.py that begin
         with data or impl"""


@dataclass
class Options(Selection):
    """What can be set."""

    mask_rate: float = MASK_RATE
    mask_seed: int = MASK_SEED
    max_sequences: int = VALIDATION_SEQUENCES


def command(argv: list[str]) -> None:
    """Validate a run and print a table.

    Raises:
        UserError: an unknown option, no such run, or nothing held out.
    """
    composed = [word for word in argv if word.startswith(("data=", "data.", "data_dir=", "impl."))]
    options, words = parse([word for word in argv if word not in composed], Options, _USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not an option: give key=value, such as name=first")
    if not 0 < options.mask_rate < 1:
        raise UserError(f"mask_rate={options.mask_rate} must lie between 0 and 1, such as 0.15")
    if options.max_sequences < 1:
        raise UserError(f"max_sequences={options.max_sequences} must be at least 1")
    load_schemas()
    name, run = _loaded(options, composed)
    result = validate(run, mask_rate=options.mask_rate, mask_seed=options.mask_seed, limit=options.max_sequences)
    if result is None:
        raise UserError(f"{name} has nothing held out (data.heldout_fraction=0), so there is nothing to validate on")
    table = Table(title=name, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, value in (
        ("held-out loss", f"{result.loss:.4f}"),
        ("perplexity", f"{result.perplexity:,.2f}"),
        ("accuracy at predicted positions", f"{result.accuracy:.2%}"),
        ("mask rate, mask seed", f"{options.mask_rate:g}, {options.mask_seed}"),
        ("sequences, predicted tokens", f"{result.sequences:,}, {result.predicted_tokens:,}"),
    ):
        table.add_row(label, value)
    Console().print(table)


def _loaded(options: Options, words: list[str]) -> tuple[str, Run]:
    """What to call the model, and the model on its corpus, or on the one that ``words`` choose."""
    if not words:
        found = find(options)
        if found is not None:
            return f"{found.name}, step {found.checkpoint.step}", load_run(found, options.averaged)
        raise UserError(f"checkpoint={options.checkpoint} has no corpus of its own: name one, such as data=python_docs")
    weights, found = selected(options)
    run = with_data(weights, found, words)
    return (weights.title if found is None else f"{found.name}, step {found.checkpoint.step}"), run
