"""``python -m cramming.calibrate arch=...``: measure what this machine takes, into the table that runs share."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from cramming import resolve
from cramming.build import Parts, probes
from cramming.calibration import Target, calibrate
from cramming.cli import compose, run_command
from cramming.config import PretrainConfig
from cramming.costs import CalibrateConfig
from cramming.data.sources.published import TOKENIZER as PUBLISHED
from cramming.data.tokenizer import Tokenizer, from_hub, is_local
from cramming.errors import UserError
from cramming.progress import share_of
from rst.work import Work

_USAGE = """\
Measure this machine's cost table for one architecture, length, precision and optimizer.

  python -m cramming.calibrate arch=bert_small
  python -m cramming.calibrate arch=bert_base data.seq_length=512 impl.precision=bfloat16 train/optim=lion

A table that is there already is shown; rst.refresh=true measures anew, rst.within_s=60 for longer.
Options: those of pretrain_bert.py; without data= the vocabulary is the one that suits the architecture"""


def command(argv: list[str]) -> None:
    """Measure, or find, the table that matches the options and print it.

    Raises:
        UserError: an option that does not exist, or a machine too busy to be measured.
    """
    if {"-h", "--help"} & set(argv):
        print(_USAGE)
        return
    named = any(word.startswith(("data=", "data.mix=")) for word in argv)
    config = compose(argv if named else ["data=local", "data.path=none", *argv])
    if not isinstance(config.rst, CalibrateConfig):
        raise UserError(f"rst={config.rst.kind} is not measured; leave rst= out")
    resolved = resolve.resolve(config.impl, None)
    torch.set_num_threads(resolve.available_cores())
    parts = Parts(config, _vocab_size(config), torch.device(resolved.device))
    target = Target(
        parts.architecture(), config.arch.layers, parts.seq_length, resolved.precision, config.train.optim.kind
    )
    with share_of("measuring this machine's costs") as progress:
        table = calibrate(
            target,
            lambda: probes(parts, resolved.precision),
            base_dir=Path(config.base_dir),
            refresh=config.rst.refresh,
            within_s=config.rst.within_s,
            synchronize=torch.cuda.synchronize if resolved.device == "cuda" else None,
            progress=progress,
        )
    shown = Table(title=f"{table.origin}\n{table.provenance.device}, {resolved.precision}", title_justify="left")
    for heading in ("active layers", "forward, ms a sequence", "forward and backward, ms a sequence"):
        shown.add_column(heading, justify="right")
    for layers in range(config.arch.layers + 1):
        prices = [table.seconds(Work(kind, 1, parts.seq_length, layers)) for kind in ("forward", "forward_backward")]
        shown.add_row(str(layers), *(f"{1000 * price:.3f}" for price in prices))
    Console().print(shown)
    print(f"one update of {config.train.optim.kind}: {1000 * table.update_s:.3f} ms")
    for note in table.provenance.notes:
        print(f"  {note}")


def _vocab_size(config: PretrainConfig) -> int:
    """The vocabulary runs of this configuration have."""
    if config.data.tokenizer in ("train", PUBLISHED):
        return int(config.data.vocab_size)
    name = config.data.tokenizer
    return (Tokenizer.load(Path(name).expanduser()) if is_local(name) else from_hub(name)).vocab_size


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
