"""What ``data=...`` decides. Each source adds its own options in its own file under ``sources/``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cramming.data.cleaning.config import CleanConfig
from cramming.data.sources.source import Source
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.data.store import TokenStore
    from cramming.data.stream import Split

TRAINED_HERE, OF_CHECKPOINT = "train", "checkpoint"  # tokenizers that have no place or name of their own
LAYOUTS = ("packed", "document")
REVERSED = "reverse_"  # in front of an order
CURRICULA = ("rarity", "sentence_length", "word_length", "fragments")
TRAIN, HELDOUT = "train", "heldout"
PARTS = (TRAIN, HELDOUT)  # of a corpus, to train on
ORDERS = ("random", *CURRICULA, *(f"{REVERSED}{name}" for name in CURRICULA))
TOKENIZER_KINDS = ("auto", "wordpiece", "bpe", "unigram")
# Steps of ``data.normalize``; ``tokenizer_normalizing`` says what each does.
NORMALIZATIONS = ("nfc", "nfd", "nfkc", "nfkd", "lowercase", "strip_accents", "quotes", "spaces", "ascii")
SMALLEST_VOCABULARY = 128  # pieces: all of ASCII and a few words
SMALLEST_BYTE_VOCABULARY = 300  # pieces of bpe and unigram: the special tokens, every byte and a few words


@dataclass
class DataConfig:
    """From a source of text to fixed-length sequences of token ids."""

    kind: str = "???"
    name: str = "???"
    seq_length: int = 128  # tokens in a sequence
    layout: str = "packed"  # packed: documents joined and cut; document: one document per sequence, padded
    row_cls: bool = True  # packed sequences begin with [CLS]
    # train, or a folder, a tokenizer.json, a vocab.txt, or a Hugging Face name; with init_from: checkpoint, its own
    tokenizer: str = TRAINED_HERE
    vocab_size: int = 8192  # of the tokenizer trained here; a foreign one brings its own
    tokenizer_kind: str = "auto"  # of the tokenizer trained here: wordpiece, bpe or unigram; auto: by the text's script
    # What the tokenizer does to text first, in this order, such as [nfkc,lowercase]; null: as its kind usually does.
    normalize: list[str] | None = None
    max_documents: int | None = None  # stop after so many documents
    max_tokens: int | None = None  # stop after so many tokens of text ([SEP] after each document included)
    heldout_fraction: float = 0.005  # of the sequences, kept out of training to validate on
    train_on: str = TRAIN  # heldout: on what other runs hold out, but for the sequences all are validated on
    order: str = "random"  # of the training sequences in every epoch: one of ORDERS
    clean: CleanConfig = field(default_factory=CleanConfig)  # documents that are left out; none by default

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: one of them.
        """
        if self.layout not in LAYOUTS:
            raise UserError(f"data.layout={self.layout} is not known{nearest(self.layout, LAYOUTS)}")
        if self.order not in ORDERS:
            raise UserError(f"data.order={self.order} is not known{nearest(self.order, ORDERS)}")
        if self.order.endswith("fragments") and self.layout == "document":
            raise UserError(
                f"data.order={self.order} counts documents in a sequence, and data.layout=document has one in each; "
                "use data.order=word_length, say, or data.layout=packed"
            )
        if self.seq_length < 4:
            raise UserError(f"data.seq_length={self.seq_length} is too short; it takes 4 or more, usually 128")
        if not self.tokenizer:
            raise UserError("data.tokenizer is empty; use train, a folder, a vocabulary file or a Hugging Face name")
        if self.tokenizer_kind not in TOKENIZER_KINDS:
            raise UserError(
                f"data.tokenizer_kind={self.tokenizer_kind} is not known{nearest(self.tokenizer_kind, TOKENIZER_KINDS)}"
            )
        if self.tokenizer != "train" and self.tokenizer_kind != "auto":
            raise UserError(
                f"data.tokenizer_kind={self.tokenizer_kind} is for a tokenizer trained here, and "
                f"data.tokenizer={self.tokenizer} is ready; leave one of the two out"
            )
        smallest = SMALLEST_BYTE_VOCABULARY if self.tokenizer_kind in ("bpe", "unigram") else SMALLEST_VOCABULARY
        if self.tokenizer == "train" and self.vocab_size < smallest:
            raise UserError(
                f"data.vocab_size={self.vocab_size} is too small; it takes {smallest} or more, usually 8192 or 32768"
            )
        for step in self.normalize or ():
            if step not in NORMALIZATIONS:
                raise UserError(f"data.normalize has {step!r}, which is not known{nearest(step, NORMALIZATIONS)}")
        if not 0 <= self.heldout_fraction < 1:
            raise UserError(f"data.heldout_fraction={self.heldout_fraction} is not a share; it takes 0 to below 1")
        if self.train_on not in PARTS:
            raise UserError(f"data.train_on={self.train_on} is not known{nearest(self.train_on, PARTS)}")
        if self.train_on == HELDOUT and not self.heldout_fraction:
            raise UserError(
                "data.train_on=heldout, but data.heldout_fraction=0 holds nothing out; the earlier study's share is 0.2"
            )
        if self.train_on == HELDOUT and self.order != "random":
            raise UserError(
                f"data.order={self.order} orders the sequences that other runs train on, and data.train_on=heldout "
                "trains on the others; leave one of the two out"
            )
        for key in ("max_documents", "max_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value} leaves nothing; it takes 1 or more, or null for no limit")
        self.clean.check()

    def ready_store(self, data_dir: Path) -> "TokenStore | None":
        """The finished token store, where the sequences were made elsewhere and nothing is left to prepare.

        Raises:
            UserError: it has not been imported, or is not as this config says.
        """
        return None

    def split_of(self, store: "TokenStore") -> "Split":
        """Which rows train and which are held out, in runs that train on the first.

        Raises:
            UserError: the store cannot be split as this config says.
        """
        from cramming.data.stream import Split  # needs torch, which a command line does without

        return Split(store.rows, self.heldout_fraction)

    def source(self, data_dir: Path, workers: int, progress: ProgressSink) -> Source:
        """The text itself. ``workers`` processes may help; what has to be kept goes below ``data_dir``.

        Raises:
            UserError: it is not there or not usable.
        """
        raise NotImplementedError(f"data kind {self.kind} has no source")
