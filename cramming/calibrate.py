"""``python -m cramming.calibrate arch=...``: measure what this machine takes, into the table that runs share."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from cramming import relative, resolve
from cramming.build import Parts
from cramming.calibration import calibrate
from cramming.cli import compose, run_command
from cramming.config import ImplConfig, PretrainConfig
from cramming.costs import CalibrateConfig
from cramming.data.config import OF_CHECKPOINT, TRAINED_HERE
from cramming.data.tokenizer import Tokenizer, is_local
from cramming.data.tokenizer_hub import from_hub
from cramming.errors import UserError
from cramming.exchange.importing import Request
from cramming.exchange.opening import opened
from cramming.priced import probes, target_of
from cramming.progress import share_of
from rst.table import CostTable, TableError
from rst.work import Work

_USAGE = """\
Measure this machine's cost table for one architecture, length, precision and optimizer.

  python -m cramming.calibrate arch=bert_small
  python -m cramming.calibrate arch=bert_base data.seq_length=512 impl.precision=bfloat16 train/optim=lion

A table that is there already is shown; rst.refresh=true measures anew, rst.within_s=60 for longer.
Options: those of pretrain_bert.py; without data= the vocabulary is the one that suits the architecture

  python -m cramming.calibrate arch=bert_base relative_to=rtx3090 out=my_table.json
  python pretrain_bert.py ... arch=bert_base rst=table rst.path=my_table.json

The earlier study's prices (its 16-layer encoder on an RTX 3090) scaled to another architecture, by the ratio of the two
architectures' costs on this machine: a minute on a processor. out= is <base_dir>/_rst/rtx3090-<arch>.json unless given.
Any other table can be scaled: relative_to=its.json base_arch=<the option of arch it was made for>"""
_OWN = ("relative_to", "base_arch", "out")  # options of this command alone


def command(argv: list[str]) -> None:
    """Measure, or find, the table that matches the options and print it.

    Raises:
        UserError: an option that does not exist, or a machine too busy to be measured.
    """
    if {"-h", "--help"} & set(argv):
        print(_USAGE)
        return
    own = {key: value for key, _, value in (word.partition("=") for word in argv) if key in _OWN}
    argv = [word for word in argv if word.partition("=")[0] not in _OWN]
    if own and not own.get("relative_to"):
        raise UserError(f"{next(iter(own))}= is for relative_to=..., which names the table to scale")
    named = any(word.startswith(("data=", "data.mix=")) for word in argv)
    config = compose(argv if named else ["data=local", "data.path=none", *argv])
    if own:
        _scale(config, own)
    elif not isinstance(config.rst, CalibrateConfig):
        raise UserError(f"rst={config.rst.kind} is not measured; leave rst= out")
    else:
        _measure(config, config.rst)


def _measure(config: PretrainConfig, rst: CalibrateConfig) -> None:
    resolved = resolve.resolve(config.impl, None)
    parts = Parts(config, _vocab_size(config), torch.device(resolved.device))
    with resolve.whole_machine(), share_of("measuring this machine's costs") as progress:
        table = calibrate(
            target_of(parts, resolved.precision),
            lambda lengths: probes(parts, resolved.precision, lengths),
            base_dir=Path(config.base_dir),
            refresh=rst.refresh,
            within_s=rst.within_s,
            synchronize=torch.cuda.synchronize if resolved.device == "cuda" else None,
            progress=progress,
        )
    _show(table, f"{table.provenance.device}, {resolved.precision}", parts.seq_length)
    print(f"one update of {config.train.optim.kind}: {1000 * table.update_s:.3f} ms")


def _scale(config: PretrainConfig, own: dict[str, str]) -> None:
    """Write the table ``relative_to`` names, scaled to this configuration's architecture; ``rst=`` has no say."""
    base = relative.base_of(own["relative_to"], own.get("base_arch"))
    rst = config.rst if isinstance(config.rst, CalibrateConfig) else CalibrateConfig()
    lacking = resolve.lacking(config.impl.precision, resolve.device())
    resolved = resolve.resolve(ImplConfig() if lacking else config.impl, None)
    parts = Parts(config, _vocab_size(config), torch.device(resolved.device))
    target = target_of(parts, base.table.provenance.precisions[0])
    default = Path(config.base_dir) / "_rst" / f"{Path(base.name).stem}-{config.arch.name}.json"
    path = Path(own["out"]).expanduser() if own.get("out") else default
    if path.exists() and not rst.refresh:
        try:
            table = CostTable.load(path)
            differences = table.differences(target.architecture, target.layers, target.lengths, target.precision)
        except TableError as error:
            differences = [str(error)]
        if differences:
            raise UserError(
                f"{path} is there and of no use for this: {'; '.join(differences)}; "
                "choose another out=, or write it anew with rst.refresh=true"
            )
    else:
        about = f"measuring {config.arch.name} against {base.config.arch.name}"
        with resolve.whole_machine(), share_of(about) as progress:
            relative.scaled(
                base,
                parts,
                resolved.precision,
                within_s=3 * rst.within_s,  # two models, one of them large
                synchronize=torch.cuda.synchronize if resolved.device == "cuda" else None,
                progress=progress,
            ).save(path)
        table = CostTable.load(path)
    _show(table, f"{table.provenance.device}, {' and '.join(table.provenance.precisions)}", parts.seq_length)
    print(f"use it: python pretrain_bert.py ... rst=table rst.path={path}")


def _show(table: CostTable, device: str, length: int) -> None:
    shown = Table(title=f"{table.origin}\n{device}", title_justify="left")
    for heading in ("active layers", "forward, ms a sequence", "forward and backward, ms a sequence"):
        shown.add_column(heading, justify="right")
    for layers in range(table.layers + 1):
        prices = [table.seconds(Work(kind, 1, length, layers)) for kind in ("forward", "forward_backward")]
        shown.add_row(str(layers), *(f"{1000 * price:.3f}" for price in prices))
    Console().print(shown)
    for note in table.provenance.notes:
        print(f"  {note}")


def _vocab_size(config: PretrainConfig) -> int:
    """The vocabulary runs of this configuration have."""
    if config.data.tokenizer == TRAINED_HERE:
        return int(config.data.vocab_size)
    if config.data.tokenizer == OF_CHECKPOINT:
        return opened(str(config.init_from), config.base_dir, Request(head=config.init_head)).vocab_size
    name = config.data.tokenizer
    return (Tokenizer.load(Path(name).expanduser()) if is_local(name) else from_hub(name)).vocab_size


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
