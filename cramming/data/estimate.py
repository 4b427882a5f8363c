"""What preparing will give and cost, from a quick look at the beginning."""

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from cramming.data.config import DataConfig
from cramming.data.sources.source import Source
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_kinds import choose
from cramming.data.tokenizer_training import throwaway
from cramming.data.tokenizing import BLOCK_CHARACTERS, Encoder
from cramming.errors import UserError
from cramming.text import duration, quantity

_GLIMPSED_CHARACTERS = 400_000
_TRAINING_BYTES_PER_S = {"wordpiece": 4e6, "bpe": 2e6, "unigram": 8e5}


@dataclass(frozen=True)
class Estimate:
    """Expectations; every figure is a rough one, or infinite where the source cannot say how much it has."""

    text_bytes: float
    tokens: float
    rows: float
    store_bytes: float
    working_bytes: float  # on the disk while preparing, the store included
    seconds: float

    def __str__(self) -> str:
        if not math.isfinite(self.tokens):
            return "nobody knows how much text this is; data.max_documents or data.max_tokens set a limit"
        return (
            f"expecting about {quantity(self.rows, 'sequences')}, {quantity(self.tokens, 'tokens')} from "
            f"{quantity(self.text_bytes, 'B')} of text, {quantity(self.store_bytes, 'B')} on disk "
            f"({quantity(self.working_bytes, 'B')} while preparing), {duration(self.seconds)}"
        )

    def check_disk(self, data_dir: Path) -> None:
        """Refuse what cannot fit.

        Raises:
            UserError: it cannot.
        """
        free = shutil.disk_usage(data_dir).free
        if math.isfinite(self.working_bytes) and self.working_bytes > free:
            raise UserError(
                f"preparing needs about {quantity(self.working_bytes, 'B')} of disk, {data_dir} has "
                f"{quantity(free, 'B')} free; set data_dir to a larger disk, or data.max_tokens to less"
            )


def estimate(config: DataConfig, source: Source, tokenizer: Tokenizer | None, workers: int) -> Estimate:
    """Expectations from the source's first text. Without a ``tokenizer``, a small one stands in for it.

    Raises:
        UserError: there is no text, or not as its config says.
    """
    texts, raw = source.glimpse(_GLIMPSED_CHARACTERS)
    if not texts:
        raise UserError(f"{source.name} holds no text; name a file, folder or glob with some")
    glimpsed_bytes = sum(len(text.encode()) for text in texts)
    text_bytes = glimpsed_bytes / max(1.0, raw) * max(source.total, raw)
    training_s = 0.0
    if tokenizer is None:
        kind = config.tokenizer_kind
        kind = choose(texts, config.normalize)[0] if kind == "auto" else kind
        tokenizer = throwaway(texts, config.vocab_size, kind, config.normalize)
        training_s = min(text_bytes, source.sample_bytes) / _TRAINING_BYTES_PER_S[kind]
    encoder = Encoder(tokenizer)
    begun = time.monotonic()
    glimpsed_tokens = sum(len(encoder.encode(text)) for text in texts)
    encode_s = time.monotonic() - begun
    scale = text_bytes / max(1, glimpsed_bytes)
    if config.max_documents is not None:
        scale = min(scale, config.max_documents / len(texts))
    glimpsed_tokens += len(texts)  # a [SEP] each
    tokenized = scale * glimpsed_tokens
    if config.max_tokens is not None:
        scale = min(scale, config.max_tokens / glimpsed_tokens)
        # Whole blocks are kept until they are packed, and ``Workers.ordered`` works on some that come after the limit.
        block = BLOCK_CHARACTERS * glimpsed_tokens / sum(map(len, texts))
        tokenized = min(tokenized, config.max_tokens + (workers + 2) * block)
    tokens = scale * glimpsed_tokens
    width = config.seq_length - int(config.row_cls)
    rows = tokens / width if config.layout == "packed" else scale * len(texts)
    size = tokenizer.dtype.itemsize
    store_bytes = rows * config.seq_length * size + (4 * rows if config.layout == "document" else 0)
    return Estimate(
        text_bytes=scale * glimpsed_bytes,
        tokens=tokens,
        rows=rows,
        store_bytes=store_bytes,
        working_bytes=store_bytes + tokenized * size + scale * len(texts) * 4,
        seconds=training_s + scale * encode_s / max(1, workers),
    )
