"""``python -m cramming.data.prepare data=...``: make the token store, without a model."""

from pathlib import Path

from cramming.data.config import DataConfig
from cramming.data.preparation import prepare
from cramming.progress import amount, progress_for


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
