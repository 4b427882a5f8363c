"""From a file of text to packed rows on the disk, against ``datasets``, in pairs.

    python benchmarks/preparation.py path=wiki.txt pairs=5 kind=wordpiece
    python benchmarks/preparation.py path=wiki.txt pairs=5 kind=bpe megabytes=40

Ours is ``cramming.data.preparation.prepare`` with a ready tokenizer and an empty data folder. Theirs is
``load_dataset("text")``, a batched map that tokenizes, one that joins and cuts, and ``save_to_disk``, with the number
of processes that is fastest of those given. Both have the same tokenizer and end with rows of 128 tokens of the same
text; the counts of tokens are compared. README.md has the protocol and dated results.
"""

import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Their worker processes end without tidying up after themselves, which is of no interest here.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reporting import asked, keep, spread
from cramming.cli import run_command
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
from cramming.data.tokenizer_training import train
from cramming.errors import UserError
from cramming.recording.environment import environment, git_revision

TRAINED_ON = 4_000_000  # characters
COUNTS_AGREE_WITHIN = 0.01  # their rows lose a tail for each batch of documents, ours one in all


@dataclass
class Options:
    """What the command line may change."""

    path: str = ""  # a text file, documents between blank lines; .xz, .gz or .zst, too
    kind: str = "wordpiece"  # of the tokenizer, trained on the file's beginning: wordpiece, bpe or unigram
    vocab_size: int = 8192
    megabytes: int = 20  # of the file
    pairs: int = 5  # each: theirs, then ours
    warmup: int = 1  # pairs left out of the statistics
    seq_length: int = 128
    processes: list[int] = field(default_factory=lambda: [1, 2, 4])  # of theirs to choose from
    workers: int = 0  # of ours; 0: as many as it would take by itself
    out: str = ""  # a JSON file for the result


def documents_of(options: Options) -> Iterator[str]:
    """The text's documents, up to ``megabytes``."""
    from cramming.data.sources.formats import read

    size, parts = 0, []
    for piece in read(Path(options.path), "block", "text"):
        parts.append(piece.text)
        if piece.last:
            yield "".join(parts).strip().replace("\n\n", "\n")
            size += sum(len(part.encode()) for part in parts)
            parts = []
            if size >= options.megabytes * 1_000_000:
                return


class Theirs:
    """``datasets``, as its documentation has it."""

    def __init__(self, text: Path, tokenizer: Path, seq_length: int) -> None:
        from transformers import PreTrainedTokenizerFast

        self.text = text
        self.seq_length = seq_length
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), sep_token="[SEP]")

    def run(self, folder: Path, processes: int) -> int:
        """Write the rows into ``folder``; the number of their tokens."""
        import datasets

        datasets.disable_progress_bars()
        data = datasets.load_dataset(
            "text", data_files=str(self.text), sample_by="paragraph", split="train", cache_dir=str(folder / "cache")
        )
        several = processes if processes > 1 else None
        tokenized = data.map(self.tokenize, batched=True, num_proc=several, remove_columns=["text"])
        rows = tokenized.map(self.group, batched=True, num_proc=several)
        rows.save_to_disk(str(folder / "rows"), num_proc=several)
        return len(rows) * self.seq_length

    def tokenize(self, batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        """Ids of documents, [SEP] after each."""
        end = [self.tokenizer.convert_tokens_to_ids("[SEP]")]
        encoded = self.tokenizer(
            batch["text"], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        return {"input_ids": [ids + end for ids in encoded["input_ids"]]}

    def group(self, batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        """Documents joined and cut into rows."""
        joined = list(chain.from_iterable(batch["input_ids"]))
        width = self.seq_length
        return {"input_ids": [joined[at : at + width] for at in range(0, len(joined) - width + 1, width)]}


class Ours:
    """``prepare`` with a ready tokenizer."""

    def __init__(self, text: Path, tokenizer: Path, seq_length: int, workers: int) -> None:
        self.config = LocalConfig(path=str(text), tokenizer=str(tokenizer), seq_length=seq_length, row_cls=False)
        self.workers = workers or None

    def run(self, folder: Path) -> int:
        """Write the store into ``folder``; the number of tokens in its rows."""
        store = prepare(self.config, folder / "data", workers=self.workers)
        return store.rows * store.seq_length


def trained(_: Path, text: Path, tokenizer: Path, options: Options) -> int:
    """Train the tokenizer of both sides on the text's beginning; the size of its vocabulary."""
    with open(text, encoding="utf-8") as file:
        beginning = file.read(TRAINED_ON).split("\n\n")
    train(beginning, options.vocab_size, options.path, options.kind).save(tokenizer)
    return options.vocab_size


def in_process(function: Any, *arguments: Any) -> tuple[float, int, float]:
    """Seconds, tokens, and megabytes of the largest process, of a call in a process of its own with nothing cached."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            began = time.perf_counter()
            tokens = function(folder, *arguments)
            elapsed_s = time.perf_counter() - began
            usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            theirs.send((elapsed_s, tokens, max(usage) / 1000))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        result: tuple[float, int, float] = ours.recv()
    except EOFError as error:
        raise UserError("a measured process ended early; its message is above") from error
    process.join()
    return result


def measure(options: Options) -> dict[str, Any]:
    """Run the pairs; what was measured, as plain values.

    Raises:
        UserError: the two sides did not do the same work.
    """
    with tempfile.TemporaryDirectory() as name:
        text, tokenizer = Path(name) / "text.txt", Path(name) / "tokenizer"
        text.write_text("\n\n".join(documents_of(options)) + "\n", encoding="utf-8")
        size = text.stat().st_size
        # Elsewhere: a process whose tokenizers library has used threads cannot hand them on to those it forks.
        in_process(trained, text, tokenizer, options)
        theirs = Theirs(text, tokenizer, options.seq_length)
        ours = Ours(text, tokenizer, options.seq_length, options.workers)
        tried = {count: in_process(theirs.run, count)[0] for count in options.processes}
        best = min(tried, key=lambda count: tried[count])
        pairs = [(in_process(theirs.run, best), in_process(ours.run)) for _ in range(options.warmup + options.pairs)]
    for (_, their_tokens, _), (_, our_tokens, _) in pairs:
        if abs(their_tokens / our_tokens - 1) > COUNTS_AGREE_WITHIN:
            raise UserError(f"tokens differ: theirs {their_tokens}, ours {our_tokens}")
    kept = pairs[options.warmup :]
    ratios = [theirs[0] / ours[0] for theirs, ours in kept]
    return {
        "ratio": spread(ratios),
        "our_mb_per_s_median": size / 1e6 / statistics.median(ours[0] for _, ours in kept),
        "their_mb_per_s_median": size / 1e6 / statistics.median(theirs[0] for theirs, _ in kept),
        "our_largest_process_mb": max(ours[2] for _, ours in kept),
        "their_largest_process_mb": max(theirs[2] for theirs, _ in kept),
        "their_processes": best,
        "their_seconds_by_processes": tried,
        "text_mb": size / 1e6,
        "tokens": kept[0][1][1],
        "options": asdict(options),
        "load_average": os.getloadavg(),
        "cores": len(os.sched_getaffinity(0)),
        "revision": git_revision(),
        "environment": environment("cpu"),
    }


def main() -> None:
    """Parse, measure, print."""
    options = asked(Options, __doc__)
    if not options.path or options.pairs < 2:
        raise UserError("it takes path=<text file> and pairs of 2 or more")
    result = measure(options)
    low, high = result["ratio"]["quartiles"]
    print(
        f"{options.kind}: {result['ratio']['median']:.2f}x the speed of datasets with {result['their_processes']} "
        f"processes (quartiles {low:.2f} to {high:.2f}, {options.pairs} pairs)"
    )
    print(
        f"ours {result['our_mb_per_s_median']:.1f} MB/s, theirs {result['their_mb_per_s_median']:.1f} MB/s; largest "
        f"process ours {result['our_largest_process_mb']:.0f} MB, theirs {result['their_largest_process_mb']:.0f} MB"
    )
    keep(result, options.out)


if __name__ == "__main__":
    run_command(main)
