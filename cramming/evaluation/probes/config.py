"""Which probes there are, and what can be set about them. Nothing here imports torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from cramming.errors import UserError
from cramming.evaluation.config import OwnTask
from cramming.suggest import nearest

PROBES = ("linear", "knn", "frequency", "minimal_pairs", "sts", "retrieval")
OF_A_TASK = ("linear", "knn")
BANDS = ("mass", "rank")
RULES = ("original", "word_l2r")


@dataclass
class ProbeOptions(OwnTask):
    """Options of probes: ``probe.<key>=`` of ``validate_bert.py``, ``impl.probe.<key>=`` of ``pretrain_bert.py``.

    ``train_file`` and what belongs to it is a task of one's own for ``linear`` and ``knn``.
    """

    task: str | None = None  # of linear and knn: sst2, wic, ...
    data_dir: str | None = None  # its official folders, as eval.data_dir; those of STS-B for sts
    max_rows: int = 2000  # to fit linear and knn to, drawn from the task's training rows
    max_eval_rows: int | None = 1000  # rows, pairs or held-out sequences a probe is judged on; null: all there are
    max_length: int = 128  # tokens of a text
    layer: int | None = None  # states after so many layers; null: after all
    l2: float = 0.01  # of linear: mean loss + l2 / 2 * |weights|^2, on standardised features
    k: int = 8  # of knn
    bands: str = "mass"  # of frequency: tenths of the corpus's tokens; or rank: powers of ten of the rank
    pairs: str | None = None  # of minimal_pairs: a file with sentence_good, sentence_bad; null: a small set of our own
    pll: str = "original"  # of minimal_pairs: mask a token; or word_l2r: and the rest of its word
    sts: str | None = None  # a file with sentence1, sentence2, score; null: STS-B's below data_dir
    retrieval: str | None = None  # a file with query, passage; null: halves of held-out sequences


def check(names: Sequence[str], options: ProbeOptions, of: str = "probe") -> None:
    """Refuse probes that do not exist and options that cannot work.

    Args:
        names: of the probes wanted.
        options: theirs.
        of: what the options are called under, ``probe`` or ``impl.probe``.

    Raises:
        UserError: naming the option, its value and the way out.
    """
    for name in names:
        if name not in PROBES:
            raise UserError(f"{of}s={name} is unknown{nearest(str(name), PROBES)}")
    if len(set(names)) < len(names):
        raise UserError(f"{of}s={','.join(names)} names a probe twice")
    for key in ("max_rows", "max_eval_rows", "layer", "k"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise UserError(f"{of}.{key}={value} must be at least 1")
    if options.max_length < 4:
        raise UserError(f"{of}.max_length={options.max_length} is too short; it takes 4 or more, usually 128")
    if not options.l2 > 0:
        raise UserError(f"{of}.l2={options.l2} must be above 0, such as 0.01")
    for key, known in (("bands", BANDS), ("pll", RULES)):
        value = getattr(options, key)
        if value not in known:
            raise UserError(f"{of}.{key}={value} is unknown{nearest(str(value), known)}")
    asked = [name for name in names if name in OF_A_TASK]
    if asked and options.task is None and options.train_file is None and options.dataset is None:
        raise UserError(
            f"{of}s={asked[0]} asks about a task: give {of}.task=sst2 and {of}.data_dir=... (or {of}.train_file=...)"
        )
    if "sts" in names and options.sts is None and options.data_dir is None:
        raise UserError(
            f"{of}s=sts needs sentences: give {of}.sts=<file with sentence1, sentence2, score>, or {of}.data_dir="
            "<folder with STS-B in it>"
        )
