"""A prepared token store of any size: what opening it takes, and how fast a run's stream draws from it.

    python benchmarks/store.py                      # 48 MB, all of it written
    python benchmarks/store.py gigabytes=10         # a corpus of 5 billion tokens; a sparse file on the disk
    python benchmarks/store.py gigabytes=10 gpu_tokens_per_s=1060000 out=store.json

Rows are a block of random words, repeated in the first ``written_mb`` megabytes; what lies behind them takes no place
on the disk and reads as padding, which costs a stream the same. Two things are timed in turn, in one process:

* ``rows``: the order of an epoch, the rows it names, and their numbers in 64 bits: the processor's part of a draw where
  masks are computed on a GPU;
* ``batches``: a whole draw, with the masks on ``device=``.

Both are held against ``gpu_tokens_per_s``, what a GPU trains on in a second. Until it is measured it is assumed: 12
layers of 768 at 128 tokens and 55 % of an H200's rate (docs/scaling.md). Rows come at random from a mapped file, whose
pages stay in memory as long as nothing else wants it: they are counted apart, since they are the system's to take back.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.grid import BUSY_ABOVE, FEWEST_PAIRS, synchronize
from benchmarks.presentation import CONTENDED
from benchmarks.reporting import asked, circumstances, keep, spread
from cramming import resolve
from cramming.cli import run_command
from cramming.data.store import MANIFEST, STORE_VERSION, TokenStore
from cramming.data.stream import Split, Stream, shuffled
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError

WANTED_TIMES = 50.0  # what a GPU trains on
OPENED_WITHIN_S = 1.0
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BLOCK_ROWS = 4096
_OPENINGS = 5
_MEMORY = {"own": "RssAnon", "mapped": "RssFile"}  # of this process; what is mapped is the system's to take back


@dataclass
class Options:
    """What the command line may change."""

    gigabytes: float = 0.048  # of token ids
    written_mb: float = 64.0  # of them that are really on the disk
    seq_length: int = 128
    vocab_size: int = 32768
    mask_rate: float = 0.15
    batch_size: int = 512  # sequences of a draw
    draws: int = 200  # in a block
    pairs: int = 9  # blocks of each of the two
    warmup: int = 4  # pairs left out of the statistics: pages are mapped when they are first read
    gpu_tokens_per_s: float = 1_060_000.0
    device: str = "auto"  # where masks are computed
    threads: int = 0  # 0: a thread for each core
    folder: str = ""  # where the store is made, and removed; nothing: the system's place for such
    out: str = ""  # a JSON file for the result

    def __post_init__(self) -> None:
        if self.rows < 2 * self.batch_size:
            raise UserError(f"gigabytes={self.gigabytes} holds {self.rows} rows, less than two batches; give more")
        if self.vocab_size <= len(_SPECIAL) or self.vocab_size > 1 << 16:
            raise UserError(f"vocab_size={self.vocab_size} must lie between {len(_SPECIAL) + 1} and {1 << 16}")
        if self.pairs < FEWEST_PAIRS:
            raise UserError(f"pairs={self.pairs} is too few for quartiles: give {FEWEST_PAIRS} or more")
        if not self.gpu_tokens_per_s > 0:
            raise UserError(f"gpu_tokens_per_s={self.gpu_tokens_per_s} must be above 0")

    @property
    def rows(self) -> int:
        """Of the store."""
        return int(self.gigabytes * 1e9) // (2 * self.seq_length)

    def where(self) -> torch.device:
        """The device."""
        return resolve.device() if self.device == "auto" else torch.device(self.device)


def make(folder: Path, rows: int, seq_length: int, vocab_size: int, written_bytes: float) -> Path:
    """A packed store of so many rows; see the top of this file for what is in it.

    Args:
        folder: made.
        rows: whatever size that is.
        seq_length: S.
        vocab_size: pieces; ids take two bytes.
        written_bytes: of rows that hold words.
    """
    folder.mkdir(parents=True)
    words = folder / "vocab.txt"
    words.write_text("\n".join([*_SPECIAL, *(f"w{number:x}" for number in range(vocab_size - len(_SPECIAL)))]) + "\n")
    tokenizer = Tokenizer.load(words)
    words.unlink()
    tokenizer.save(folder)
    random = np.random.default_rng(0)
    block = len(_SPECIAL) + (random.random((_BLOCK_ROWS, seq_length)) ** 3 * (vocab_size - len(_SPECIAL))).astype(
        np.uint16
    )
    block[:, 0] = tokenizer.cls_id
    size, row_bytes = rows * seq_length * 2, seq_length * 2
    with open(folder / "tokens.bin", "wb") as file:
        left = int(min(size, written_bytes)) // row_bytes
        while left:
            file.write(block[:left].astype(np.uint16).tobytes())
            left -= min(left, _BLOCK_ROWS)
        file.truncate(size)
    manifest = {
        "rows": rows,
        "seq_length": seq_length,
        "layout": "packed",
        "dtype": "uint16",
        "fingerprint": f"generated-{rows}",
        "tokenizer_sha256": tokenizer.sha256,
        "versions": {"store": STORE_VERSION},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def opened(folder: Path, options: Options) -> Stream:
    """The stream of a run over the store, as ``cramming.build`` makes it."""
    store = TokenStore.open(folder)
    return Stream(
        store,
        Split(store.rows, 0.005),
        seed=0,
        mask_rate=lambda: options.mask_rate,
        max_mask_rate=options.mask_rate,
        device=options.where(),
    )


def measure(options: Options) -> dict[str, Any]:
    """Make, open, read; what was measured, as plain values."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder or None) as place:
        size = (options.rows, options.seq_length, options.vocab_size)
        folder = make(Path(place) / "store", *size, options.written_mb * 1e6)
        memory, open_s = {"before": _memory_mb()}, list[float]()
        for _ in range(_OPENINGS):
            began = time.perf_counter()
            stream = opened(folder, options)
            open_s.append(time.perf_counter() - began)
        memory["opened"] = _memory_mb()
        tokens_per_s = _rates(stream, options)
        memory["read"] = _memory_mb()
    return {
        "rows": options.rows,
        "gigabytes": options.rows * options.seq_length * 2 / 1e9,
        "open_s": {"first": open_s[0], "median": median(open_s), "all": open_s},
        "memory_mb": memory,
        "tokens_per_s": tokens_per_s,
        "times_gpu": {what: found["median"] / options.gpu_tokens_per_s for what, found in tokens_per_s.items()},
        "masks_on": options.where().type,
        "options": {key: value for key, value in asdict(options).items() if key not in ("folder", "out")},
        **circumstances(options.where()),
    }


def _rates(stream: Stream, options: Options) -> dict[str, dict[str, Any]]:
    """Tokens a second of rows alone and of whole draws: spreads over the pairs."""
    order, place = shuffled(stream.split, seed=1)(0), 0

    def rows() -> None:
        nonlocal place
        place = 0 if place + options.batch_size > stream.split.train_rows else place
        tokens, _ = stream.store.read(order(np.arange(place, place + options.batch_size)))
        torch.from_numpy(tokens.astype(np.int64))
        place += options.batch_size

    def batches() -> None:
        stream.draw(options.batch_size)

    sides: dict[str, Callable[[], None]] = {"rows": rows, "batches": batches}
    found: dict[str, list[float]] = {what: [] for what in sides}
    tokens = options.draws * options.batch_size * options.seq_length
    for pair in range(options.warmup + options.pairs):
        for what in sorted(sides, reverse=bool(pair % 2)):  # neither always comes first
            began = time.perf_counter()
            for _ in range(options.draws):
                sides[what]()
            synchronize(stream.device)
            if pair >= options.warmup:
                found[what].append(tokens / (time.perf_counter() - began))
    return {what: spread(values) for what, values in found.items()}


def said(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    memory, options = result["memory_mb"], result["options"]
    opening = result["open_s"]
    lines = [
        f"{result['rows']:,} rows, {result['gigabytes']:.3g} GB of token ids",
        f"opening took {opening['median']:.3f} s (the first time {opening['first']:.3f}; wanted: {OPENED_WITHIN_S:g})",
    ]
    for key, what in (("own", "of its own"), ("mapped", "of mapped files")):
        values = [memory[when].get(key) for when in ("before", "opened", "read")]
        if None not in values:
            lines.append(
                f"MB {what}: {values[0]:.1f} before, {values[1] - values[0]:+.1f} when it was open, "
                f"{values[2] - values[0]:+.1f} after reading"
            )
    names = {"rows": "rows, in order, in 64 bits", "batches": f"batches, masked on {result['masks_on']}"}
    for what, name in names.items():
        low, high = result["tokens_per_s"][what]["quartiles"]
        rate, times = result["tokens_per_s"][what]["median"], result["times_gpu"][what]
        shown = f"{rate:,.0f} tokens/s, {rate / options['seq_length']:,.0f} rows/s, {times:.1f} times the GPU's"
        lines.append(f"{name}: {CONTENDED if high > BUSY_ABOVE * low else shown}")
    lines.append(f"wanted: {WANTED_TIMES:g} times {options['gpu_tokens_per_s']:,.0f} tokens/s")
    return "\n".join(lines)


def _memory_mb() -> dict[str, float]:
    """What this process holds; nothing where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = {key: rest.split()[0] for key, _, rest in (line.partition(":") for line in lines) if rest.split()}
    return {name: float(found[key]) / 1024 for name, key in _MEMORY.items() if key in found}


def main() -> None:
    """Parse, measure, print."""
    options = asked(Options, __doc__)
    result = measure(options)
    print(said(result))
    keep(result, options.out)


if __name__ == "__main__":
    run_command(main)
