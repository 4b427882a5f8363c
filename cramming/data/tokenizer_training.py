"""Training a WordPiece tokenizer, the same one every time.

The tokenizers library is not reproducible by itself: ids of ``##`` pieces, and with them every tie, follow the order
of a randomly seeded hash table (two runs gave up to 2,168 different ids). Handing it the sorted alphabet's pieces as
leading "special" tokens and rebuilding the model without them removes the only dependence there is.
"""

import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from cramming.data.config import SMALLEST_VOCABULARY
from cramming.data.sources.source import Source
from cramming.data.tokenizer import Tokenizer, wordpiece
from cramming.errors import UserError
from cramming.progress import ProgressSink

TRAINING_VERSION = 1  # of the code that decides a vocabulary; part of every fingerprint
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
SAMPLED_TEXT = 1_000_000_000  # characters: the sample is taken from at most so much of the corpus

# Rarer characters than these are left to [UNK]: a few mentions of Chinese must not fill an English vocabulary.
_COVERAGE = 0.9998
_ASCII = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
_SEED = b"tokenizer sample"


def sample(source: Source, progress: ProgressSink) -> list[str]:
    """About ``source.sample_bytes`` of text for training: a function of the corpus, not of limits set to it.

    Raises:
        UserError: there is no text.
    """
    progress.stage("reading a sample for the tokenizer", source.total, source.unit)
    chosen = _head(source, progress) if source.shuffled else _lowest(source, progress)
    progress.done()
    if not chosen:
        raise UserError(f"{source.name} holds no text; name a file, folder or glob with some")
    return chosen


def _head(source: Source, progress: ProgressSink) -> list[str]:
    texts: list[str] = []
    size = 0
    position = 0.0
    for piece in source.pieces():
        texts.append(piece.text)
        size += _bytes(piece.text)
        progress.advance(piece.position - position)
        position = piece.position
        if size >= source.sample_bytes:
            break
    return texts


def _lowest(source: Source, progress: ProgressSink) -> list[str]:
    """The pieces whose numbers hash lowest, as many as fit: a fair sample in constant memory, in corpus order."""
    heap: list[tuple[int, int, int, str]] = []  # hash (negated: the highest is on top), number, bytes, text
    size = 0
    read = 0
    position = 0.0
    for number, piece in enumerate(source.pieces()):
        read += len(piece.text)
        if read > SAMPLED_TEXT:
            break
        digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=_SEED).digest()
        entry = (-int.from_bytes(digest, "little"), number, _bytes(piece.text), piece.text)
        if size < source.sample_bytes or entry[0] > heap[0][0]:
            heapq.heappush(heap, entry)
            size += entry[2]
            while size - heap[0][2] >= source.sample_bytes:
                size -= heapq.heappop(heap)[2]
        progress.advance(piece.position - position)
        position = piece.position
    return [text for _, _, _, text in sorted(heap, key=lambda entry: entry[1])]


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def train(texts: list[str], vocab_size: int, what: str) -> Tokenizer:
    """A lower-casing WordPiece tokenizer of exactly ``vocab_size`` pieces from ``texts``; the same wherever it is made.

    Raises:
        UserError: the text does not support so many pieces.
    """
    backend, size = _train(texts, vocab_size)
    if size < min(vocab_size, SMALLEST_VOCABULARY):
        raise UserError(
            f"{what} supports a vocabulary of {size} pieces only; use more text, "
            "or a ready tokenizer with data.tokenizer=<folder or vocabulary file>"
        )
    if size != vocab_size:
        raise UserError(
            f"data.vocab_size={vocab_size} is more than {what} supports ({size} pieces); "
            f"set data.vocab_size={size} or lower, or use more text"
        )
    return Tokenizer(backend)


def throwaway(texts: list[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most ``vocab_size`` pieces, for estimates."""
    return Tokenizer(_train(texts, vocab_size)[0])


def _train(texts: list[str], vocab_size: int) -> tuple[tokenizers.Tokenizer, int]:
    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    characters = alphabet(texts, normalizer, vocab_size)
    continuing = [f"##{character}" for character in characters if _continues_a_word(character)]
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *continuing],
        # Characters asked for come before all others, so that exactly these are kept: no ties at the limit.
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    return wordpiece(vocabulary, lowercase=True), len(vocabulary)


def alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer, vocab_size: int) -> list[str]:
    """The characters that are pieces of their own, sorted: all of ASCII, and the frequent others."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    for space in [character for character in counts if character.isspace()]:
        del counts[space]
    rarest_first = sorted((c for c in counts if c not in _ASCII), key=lambda c: (counts[c], c))
    shares = itertools.accumulate(counts[c] / counts.total() for c in rarest_first)
    frequent = [c for c, share in zip(rarest_first, shares, strict=True) if share > 1 - _COVERAGE]
    kept = frequent[-(vocab_size // 4) :]
    return sorted({*_ASCII, *kept})


def _continues_a_word(character: str) -> bool:
    """Whether a character can follow another within a word: not punctuation, not a Chinese character."""
    normalizer = normalizers.BertNormalizer()
    text = normalizer.normalize_str(f"a{character}a")
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)) == 1
