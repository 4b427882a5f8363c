"""``python -m cramming.data.prepare data=...``: make the token store, without a model."""

import sys
from pathlib import Path

from cramming.cli import compose, run_command
from cramming.data.config import DataConfig
from cramming.data.preparation import prepare
from cramming.progress import amount, progress_for

_USAGE = """\
Prepare a corpus without a model: text, tokenizer, token store. Every stage is cached and goes on after a kill.

  python -m cramming.data.prepare data=local data.path=my/texts
  python -m cramming.data.prepare data=python_docs data.max_tokens=1000000

Options: those of pretrain_bert.py that begin with data, and base_dir, data_dir, arch (its vocab_size is the default)"""


def run(config: DataConfig, data_dir: Path, workers: int | None = None) -> None:
    """Prepare the data, saying first what to expect and at the end what there is.

    Raises:
        UserError: the input, the tokenizer or the disk cannot be used.
    """
    store = prepare(config, data_dir, workers, progress_for())
    manifest = store.manifest
    size = sum(file.stat().st_size for file in store.folder.iterdir())
    print(
        f"{store.folder}: {store.rows:,} sequences of {store.seq_length} tokens ({store.layout}), "
        f"{manifest['documents']:,} documents, {amount(manifest['tokens'], 'tokens')}, "
        f"vocabulary {store.tokenizer.vocab_size:,}, {amount(size, 'B')}"
    )


def command(argv: list[str]) -> None:
    """Compose the configuration ``argv`` describes and prepare its data.

    Raises:
        UserError: what is wrong with it.
    """
    if {"-h", "--help"} & set(argv):
        print(_USAGE)
        return
    config = compose(argv)
    run(config.data, Path(config.data_dir))


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
