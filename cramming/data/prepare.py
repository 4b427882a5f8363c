"""``python -m cramming.data.prepare data=...``: make the token store, without a model."""

import sys
from pathlib import Path

from cramming.cli import compose, run_command
from cramming.config import PretrainConfig
from cramming.data.preparation import prepare
from cramming.data.store import TokenStore
from cramming.progress import progress_for
from cramming.text import quantity

_USAGE = """\
Prepare a corpus without a model: text, tokenizer, token store. Every stage is cached and goes on after a kill.

  python -m cramming.data.prepare data=local data.path=my/texts
  python -m cramming.data.prepare data=python_docs data.max_tokens=1000000

Options: those of pretrain_bert.py that begin with data, and base_dir, data_dir, arch (its vocab_size is the default)"""


def prepared(argv: list[str], usage: str) -> tuple[PretrainConfig, TokenStore]:
    """The configuration ``argv`` describes, and its data; what to expect and how far it is goes to the screen.

    Raises:
        UserError: what is wrong with it.
        SystemExit: after ``--help``, which prints ``usage``.
    """
    if {"-h", "--help"} & set(argv):
        print(usage)
        sys.exit(0)
    config = compose(argv)
    return config, prepare(config.data, Path(config.data_dir), progress=progress_for())


def command(argv: list[str]) -> None:
    """Prepare the data ``argv`` describes and say what there is.

    Raises:
        UserError: what is wrong with it.
        SystemExit: after ``--help``.
    """
    _, store = prepared(argv, _USAGE)
    manifest = store.manifest
    size = sum(file.stat().st_size for file in store.folder.iterdir())
    print(
        f"{store.folder}: {store.rows:,} sequences of {store.seq_length} tokens ({store.layout}), "
        f"{manifest['documents']:,} documents, {quantity(manifest['tokens'], 'tokens')}, "
        f"vocabulary {store.tokenizer.vocab_size:,}, {quantity(size, 'B')}"
    )


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
