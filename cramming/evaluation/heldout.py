"""``validate_bert.py``: how well a trained run predicts held-out text, and what probes say of it."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cramming import resolve
from cramming.cli import load_schemas, parse
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.evaluation.probes import probing
from cramming.evaluation.probes.config import PROBES, ProbeOptions, check
from cramming.evaluation.probes.reader import Reader
from cramming.evaluation.probes.result import FILE, LAST_FILE, keep
from cramming.evaluation.probes.shown import print_results
from cramming.evaluation.trained import Selection, find, load_run, selected, with_data
from cramming.exchange.weights import is_imported, of_run
from cramming.folder import Found
from cramming.kernels import choice
from cramming.progress import progress_for
from cramming.recording.strict_json import dumps
from cramming.train import Run
from cramming.validation import MASK_RATE, MASK_SEED, VALIDATION_SEQUENCES, Validation, validate

VALIDATION = "validation.json"  # in a run's folder: what was measured last, and at which step
_USAGE = f"""\
Held-out loss, perplexity and accuracy at predicted positions, at a fixed mask rate and seed; and probes.

  python validate_bert.py name=first                 its last checkpoint
  python validate_bert.py checkpoint=first@12h       one kept at an hour of the budget; also @step=4000, @last
  python validate_bert.py                            the run trained last
  python validate_bert.py checkpoint=exported/first data=python_docs     another corpus; a run has its own
  python validate_bert.py name=first probes=[minimal_pairs,frequency,retrieval]
  python validate_bert.py name=first probes=[linear,knn,sts] probe.task=sst2 probe.data_dir=glue probe.sts=dev.csv

checkpoint= takes a run's, an exported or Hugging Face folder, a file of weights, or a hub id.
Options: name, base_dir=outputs, checkpoint, weights=averaged (those that the run's method lends for evaluation, if it
         does; or last), mask_rate=0.15, mask_seed=0, max_sequences=10000, and those of pretrain_bert.py that begin
         with data or impl
Probes:  {", ".join(PROBES)}. A run's answers are kept in its probes.json, by step.
  probe.task, probe.data_dir      linear, knn: the task, and the folder of official task folders (null: the hub)
  probe.train_file, ...           linear, knn: a task of one's own, with the options of eval=task
  probe.max_rows=2000             linear, knn: training rows to fit to
  probe.max_eval_rows=1000        rows, pairs or sequences to judge on; null: all
  probe.max_length=128, probe.layer (states after so many layers), probe.l2=0.01 (linear), probe.k=8 (knn)
  probe.bands=mass                frequency: tenths of the corpus; or rank
  probe.pairs=file.jsonl          minimal_pairs: sentence_good, sentence_bad, UID; without: a small set of our own
  probe.pll=original              minimal_pairs: or word_l2r, which masks the rest of a token's word, too
  probe.sts=file.tsv              sts: sentence1, sentence2, score; without: STS-B below probe.data_dir
  probe.retrieval=file.jsonl      retrieval: query, passage; without: halves of held-out sequences"""


@dataclass
class Options(Selection):
    """What can be set."""

    mask_rate: float = MASK_RATE
    mask_seed: int = MASK_SEED
    max_sequences: int = VALIDATION_SEQUENCES
    probes: Any = None  # one name or a list


def command(argv: list[str]) -> None:
    """Validate a run, ask the probes that are wanted, and print tables.

    Raises:
        UserError: an unknown option, no such run, or nothing held out.
    """
    composed = [word for word in argv if word.startswith(("data=", "data.", "data_dir=", "impl."))]
    of_probes = [word for word in argv if word.startswith("probe.")]
    options, words = parse([word for word in argv if word not in (*composed, *of_probes)], Options, _USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not an option: give key=value, such as name=first")
    if not 0 < options.mask_rate < 1:
        raise UserError(f"mask_rate={options.mask_rate} must lie between 0 and 1, such as 0.15")
    if options.max_sequences < 1:
        raise UserError(f"max_sequences={options.max_sequences} must be at least 1")
    names, settings = _probes(options.probes, of_probes)
    load_schemas()
    found = None if composed else find(options)
    inputs = probing.read(names, settings, _data_dir(found, options, composed))  # refuse before a model is loaded
    asked = _loaded(options, found, composed, needs_corpus=not names or inputs.need_corpus)
    if asked.run is not None:
        result = _validate(asked.title, asked.run, options)
        if found is not None and options.averaged:
            said = {"step": found.checkpoint.step, "mask_rate": options.mask_rate, "mask_seed": options.mask_seed}
            paths = asked.run.model.fast_paths(asked.run.stream.store.seq_length)
            text = dumps({**said, **asdict(result), "perplexity": result.perplexity, "fast_paths": paths}, indent=2)
            write_atomically(found.run_dir / VALIDATION, (text + "\n").encode())
    if not names:
        return
    with asked.run.method.evaluating(asked.run) if asked.run else nullcontext():
        results = probing.ask(asked.reader, inputs, progress_for())
    print_results(results, f"Probes of {asked.title}", Console())
    if found is None:
        print("not kept: probes.json of a run is for its own weights on its own corpus")
        return
    file = found.run_dir / (FILE if options.averaged else LAST_FILE)
    keep(file, found.checkpoint.step, results)
    print(f"kept: {file}")


def _validate(title: str, run: Run, options: Options) -> Validation:
    """Print the table of held-out loss, which is returned.

    Raises:
        UserError: nothing is held out.
    """
    result = validate(run, mask_rate=options.mask_rate, mask_seed=options.mask_seed, limit=options.max_sequences)
    if result is None:
        raise UserError(f"{title} has nothing held out (data.heldout_fraction=0), so there is nothing to validate on")
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, value in (
        ("held-out loss", f"{result.loss:.4f}"),
        ("perplexity", f"{result.perplexity:,.2f}"),
        ("accuracy at predicted positions", f"{result.accuracy:.2%}"),
        ("mask rate, mask seed", f"{options.mask_rate:g}, {options.mask_seed}"),
        ("sequences, predicted tokens", f"{result.sequences:,}, {result.predicted_tokens:,}"),
    ):
        table.add_row(label, value)
    Console().print(table)
    return result


def _probes(given: Any, words: list[str]) -> tuple[list[str], ProbeOptions]:
    """The probes asked for and their options.

    Raises:
        UserError: an unknown probe or option, or one that cannot work.
    """
    names = [str(name) for name in (given if isinstance(given, list) else str(given or "").split(",")) if name]
    if words and not names:
        raise UserError(f"{words[0]} is for probes: name some, such as probes=[minimal_pairs]")
    settings, others = parse([word.removeprefix("probe.") for word in words], ProbeOptions, _USAGE)
    if others:
        raise UserError(f"probe.{others[0]!r} is not an option: give key=value, such as probe.task=sst2")
    check(names, settings)
    return names, settings


@dataclass(frozen=True)
class _Asked:
    """A model to ask; ``run`` is None where no corpus belongs to it."""

    title: str
    reader: Reader
    run: Run | None = None


def _loaded(options: Options, found: Found | None, words: list[str], needs_corpus: bool) -> _Asked:
    """The model asked for, on its corpus or on the one that ``words`` choose.

    Raises:
        UserError: it cannot be used, or it has no corpus and needs one.
    """
    if words:
        weights, found = selected(options)
        run = with_data(weights, found, words)
        return _Asked(weights.title if found is None else _title(found), Reader.of_run(run), run)
    if found is None and needs_corpus:
        raise UserError(f"checkpoint={options.checkpoint} has no corpus of its own: name one, such as data=python_docs")
    if found is not None and (needs_corpus or not is_imported(found.run_dir)):
        run = load_run(found, options.averaged)
        return _Asked(_title(found), Reader.of_run(run), run)
    weights = selected(options)[0] if found is None else of_run(found, options.averaged)
    assert weights.tokenizer is not None
    title = weights.title if found is None else _title(found)
    model = weights.model().to(resolve.device())
    choice.use(model)
    return _Asked(title, Reader.of_model(model, weights.tokenizer))


def _title(found: Found) -> str:
    return f"{found.name}, step {found.checkpoint.step}"


def _data_dir(found: Found | None, options: Options, words: list[str]) -> Path:
    """What runs share: as given, or the run's, or below ``base_dir``."""
    given = [word.partition("=")[2] for word in words if word.startswith("data_dir=")]
    if given:
        return Path(given[-1])
    return Path(options.base_dir) / "_data" if found is None else Path(found.config.data_dir)
