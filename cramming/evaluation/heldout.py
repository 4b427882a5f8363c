"""``validate_bert.py``: how well a trained run predicts held-out text."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from cramming.cli import load_schemas, parse
from cramming.errors import UserError
from cramming.evaluation.trained import Selection, find, load_run
from cramming.validation import MASK_RATE, MASK_SEED, VALIDATION_SEQUENCES, validate

_USAGE = """\
Held-out loss, perplexity and accuracy at predicted positions, at a fixed mask rate and seed.

  python validate_bert.py name=first                 its last checkpoint
  python validate_bert.py checkpoint=first@12h       one kept at an hour of the budget; also @step=4000, @last
  python validate_bert.py                            the run trained last

Options: name, base_dir=outputs, checkpoint, mask_rate=0.15, mask_seed=0, max_sequences=10000"""


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
    options, words = parse(argv, Options, _USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not an option: give key=value, such as name=first")
    if not 0 < options.mask_rate < 1:
        raise UserError(f"mask_rate={options.mask_rate} must lie between 0 and 1, such as 0.15")
    if options.max_sequences < 1:
        raise UserError(f"max_sequences={options.max_sequences} must be at least 1")
    load_schemas()
    found = find(options)
    run = load_run(found)
    result = validate(run, mask_rate=options.mask_rate, mask_seed=options.mask_seed, limit=options.max_sequences)
    if result is None:
        raise UserError(
            f"run {found.name} holds nothing out (data.heldout_fraction=0), so there is nothing to validate on"
        )
    table = Table(title=f"{found.name}, step {found.checkpoint.step}", title_justify="left", show_header=False)
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
