"""``python -m cramming.export name=x to=folder``: a trained model for others to load."""

import sys
from dataclasses import dataclass
from pathlib import Path

from cramming.cli import load_schemas, parse, run_command
from cramming.errors import UserError
from cramming.evaluation.trained import Selection, selected
from cramming.exchange import exporting, model_card
from cramming.exchange.weights import is_imported

_USAGE = """\
Write a model as a folder that others load: transformers where it has the architecture, else the system it comes from.

  python -m cramming.export name=first to=exported/first
  python -m cramming.export checkpoint=first@12h to=exported/first-12h onnx=true

The folder holds model.safetensors, config.json, the tokenizer and a model card; it appears whole or not at all.
Then: AutoModelForMaskedLM.from_pretrained("exported/first")                  (where the card says so)
      python pretrain_bert.py name=more init_from=exported/first budget=1m    (training goes on from it)

Options: name, base_dir=outputs, checkpoint (a run's, a folder, a file or a hub id), to,
         weights=averaged (those that a run's method lends for evaluation, if it does; or last),
         onnx=false (also encoder.onnx, checked against torch), overwrite=false"""


@dataclass
class Options(Selection):
    """What can be set."""

    to: str | None = None
    onnx: bool = False
    overwrite: bool = False


def command(argv: list[str]) -> None:
    """Export a model and say what was written.

    Raises:
        UserError: no such model, a folder that is there, or an architecture that nobody else has; nothing is written.
    """
    options, words = parse(argv, Options, _USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not an option: give name=... to=...")
    if options.to is None:
        raise UserError("to= is needed: the folder to write, such as to=exported/first")
    load_schemas()
    to = Path(options.to).expanduser()
    exporting.check_free(to, options.overwrite)
    weights, run = selected(options)
    facts = {}
    if run is not None and not is_imported(run.run_dir):
        facts = model_card.trained(run.config, run.checkpoint.manifest(), run.run_dir)
    for line in exporting.export(
        weights,
        to,
        name=to.name if run is None else run.name,
        facts=facts,
        overwrite=options.overwrite,
        onnx=options.onnx,
    ):
        print(line)


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
