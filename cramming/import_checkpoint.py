"""``python -m cramming.import_checkpoint checkpoint=... name=...``: a released checkpoint as one of ours."""

import sys
from dataclasses import dataclass

from cramming.cli import load_schemas, parse, run_command
from cramming.errors import UserError
from cramming.exchange import importing
from cramming.exchange.imported import free_place, write_run
from cramming.exchange.importing import Request
from cramming.exchange.opening import opened

_USAGE = """\
Turn a released checkpoint into one of ours: a folder under base_dir that every command reads which reads a run.

  python -m cramming.import_checkpoint checkpoint=google/bert_uncased_L-2_H-128_A-2 name=bert2
  python -m cramming.import_checkpoint checkpoint=downloads/m2-bert-80M.pt config=m2.yaml tokenizer=vocab.txt name=m2

checkpoint=  a file (.safetensors, .bin, .pt, .pth), a folder (of Hugging Face, an earlier system, or exported here), an
             index of shards, or a hub id. Its config.json or model_config.json is looked for beside it.
Its family is found out, everything must have a place, and code in it is never run.
Then: python -m cramming.fill_mask name=bert2 "Paris is the [MASK] of France."
      python validate_bert.py name=bert2 data=python_docs
      python pretrain_bert.py name=more init_from=bert2 data=python_docs budget=1m

Options: base_dir=outputs, head=mlm (fresh: the encoder alone, with a new head), family (if it cannot be found out),
         config (a file, JSON or YAML), tokenizer (a folder, a tokenizer.json, a vocab.txt or a hub id)"""


@dataclass
class Options:
    """What can be set."""

    checkpoint: str | None = None
    name: str | None = None
    base_dir: str = "outputs"
    head: str = "mlm"
    family: str | None = None
    config: str | None = None
    tokenizer: str | None = None


def command(argv: list[str]) -> None:
    """Import a checkpoint and say what was found in it.

    Raises:
        UserError: it cannot be read, is of no family known here, or does not fit; nothing is written then.
    """
    options, words = parse(argv, Options, _USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not an option: give checkpoint=... name=...")
    if options.checkpoint is None or options.name is None:
        raise UserError("checkpoint= and name= are needed: what to import, and what to call it here")
    load_schemas()
    free_place(options.base_dir, options.name)
    request = Request(options.head, options.family, options.config, options.tokenizer)
    weights = opened(options.checkpoint, options.base_dir, request)
    if "run" in weights.origin:
        raise UserError(f"checkpoint={options.checkpoint} is a run of ours: every command takes it as it is")
    run_dir = write_run(weights, options.checkpoint, options.base_dir, options.name)
    print(importing.summary(weights))
    print(f"kept in {run_dir}: use it as name={options.name}, or train on from it with init_from={options.name}")


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
