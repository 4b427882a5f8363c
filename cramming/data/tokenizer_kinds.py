"""The kinds of tokenizers trained here, and the training of each: WordPiece, byte-level BPE, Unigram.

All come out the same every time, on every machine. The tokenizers library's WordPiece (Schuster and Nakajima 2012; as
in BERT) does not by itself: ids of ``##`` pieces, and with them every tie, follow the order of a randomly seeded hash
table (two runs gave up to 2,168 different ids). Handing it the sorted alphabet's pieces as leading "special" tokens and
rebuilding the model without them removes the only dependence there is. Its byte-level BPE (Sennrich et al. 2016;
Radford et al. 2019) is stable. For Unigram see ``tokenizer_unigram``.
"""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from cramming.data.tokenizer import wordpiece
from cramming.data.tokenizer_counting import count_words, learn_pairs
from cramming.data.tokenizer_normalizing import for_unigram, for_wordpiece, normalizer_of
from cramming.data.tokenizer_unigram import learn
from cramming.data.tokenizer_words import byte_level, marked

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
NORMALIZED = ("nfkc",)  # what bpe and unigram do to text unless told otherwise: spellings of one character become one
# Alphabets with spaces between words, capital letters, and marks that can be left out: BERT's was made for them.
_SPACED_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC")
_MOSTLY = 0.9
_LOOKED_AT = 1_000_000  # characters

# Rarer characters than these are left to [UNK] (wordpiece: a few mentions of Chinese must not fill an English
# vocabulary) or to their bytes (unigram; the share SentencePiece recommends for Japanese and Chinese).
_COVERAGE, _UNIGRAM_COVERAGE = 0.9998, 0.9995
_ASCII = [chr(code) for code in range(33, 127)]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_PAIRS_CHARACTERS = 3_000_000  # bytes of different words; more than 16 MB of English have
_GAP = "\0"  # stands where a rare character was; separates and is thrown away


def choose(texts: Sequence[str], normalize: Sequence[str] | None) -> tuple[str, str]:
    """The kind that suits a text, and why: WordPiece where BERT's view of words holds, Unigram elsewhere.

    BERT's view: words stand between spaces, and marks on letters can be dropped. In Japanese or Thai neither holds. BPE
    would do there, too, but at a vocabulary of 8,192 nine in a hundred tokens of a Japanese text are parts of
    characters; with Unigram fewer than one is.
    """
    share = 1.0
    normalizer = normalizer_of(normalize or NORMALIZED)
    each = _LOOKED_AT // max(1, len(texts)) + 1
    counts = Counter(itertools.chain.from_iterable(normalizer.normalize_str(text[:each]) for text in texts))
    letters = {character: count for character, count in counts.items() if character.isalpha()}
    if letters:
        spaced = sum(count for c, count in letters.items() if unicodedata.name(c, "").startswith(_SPACED_SCRIPTS))
        share = spaced / sum(letters.values())
    kind = "wordpiece" if share >= _MOSTLY else "unigram"
    return kind, f"{share:.0%} of the letters are Latin, Greek or Cyrillic"


def trained(
    kind: str, texts: Sequence[str], vocab_size: int, normalize: Sequence[str] | None
) -> tuple[tokenizers.Tokenizer, int]:
    """A tokenizer of at most ``vocab_size`` pieces, and how many it has."""
    return _TRAINING[kind](texts, vocab_size, normalize)


def _wordpiece(
    texts: Sequence[str], vocab_size: int, normalize: Sequence[str] | None
) -> tuple[tokenizers.Tokenizer, int]:
    normalizer = for_wordpiece(normalize)
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
    rebuilt = wordpiece(vocabulary, lowercase=True)
    rebuilt.normalizer = normalizer
    return rebuilt, len(vocabulary)


def alphabet(texts: Iterable[str], normalizer: normalizers.Normalizer, vocab_size: int) -> list[str]:
    """The characters that are pieces of their own, sorted: all of ASCII, and the frequent others."""
    ascii_ = [character for character in _ASCII if normalizer.normalize_str(character) == character]
    frequent = _frequent(map(normalizer.normalize_str, texts), ascii_, _COVERAGE)
    return sorted({*ascii_, *frequent[-(vocab_size // 4) :]})


def _frequent(texts: Iterable[str], given: Iterable[str], coverage: float) -> list[str]:
    """Characters but those ``given``, rarest first, that make up a share of ``coverage`` of what others there are."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    for space in [character for character in counts if character.isspace()]:
        del counts[space]
    rarest_first = sorted(counts.keys() - set(given), key=lambda c: (counts[c], c))
    shares = itertools.accumulate(counts[c] / counts.total() for c in rarest_first)
    return [c for c, share in zip(rarest_first, shares, strict=True) if share > 1 - coverage]


def _continues_a_word(character: str) -> bool:
    """Whether a character can follow another within a word: not punctuation, not a Chinese character."""
    normalizer = normalizers.BertNormalizer(lowercase=False)
    text = normalizer.normalize_str(f"a{character}a")
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)) == 1


def _bpe(texts: Sequence[str], vocab_size: int, normalize: Sequence[str] | None) -> tuple[tokenizers.Tokenizer, int]:
    backend = tokenizers.Tokenizer(models.BPE())
    normalizer = normalizer_of(NORMALIZED if normalize is None else normalize)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learn_pairs(backend, trainer, count_words(map(normalizer.normalize_str, texts), byte_level(), _PAIRS_CHARACTERS))
    backend.normalizer = normalizer
    backend.pre_tokenizer = byte_level()
    backend.decoder = decoders.ByteLevel()
    return backend, backend.get_vocab_size(with_added_tokens=True)


def _unigram(
    texts: Sequence[str], vocab_size: int, normalize: Sequence[str] | None
) -> tuple[tokenizers.Tokenizer, int]:
    normalizer = for_unigram(NORMALIZED if normalize is None else normalize)
    texts = [normalizer.normalize_str(text) for text in texts]
    room = vocab_size - len(SPECIAL_TOKENS) - len(_BYTES)
    frequent = set(_frequent(texts, (), _UNIGRAM_COVERAGE)[-(3 * room // 4) :])
    rare = {ord(c): _GAP for text in texts for c in set(text) if c not in frequent and not c.isspace()}
    pre_tokenizer = pre_tokenizers.Sequence([marked(), pre_tokenizers.Split(_GAP, "removed")])
    pieces = learn((text.translate(rare) for text in texts), room, pre_tokenizer)
    # Neither special tokens nor bytes are ever found in a text: what is written like one is cut at its brackets.
    vocabulary = [(token, 0.0) for token in (*SPECIAL_TOKENS, *_BYTES)] + pieces
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=1, byte_fallback=True))
    backend.normalizer = normalizer
    backend.pre_tokenizer = marked()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return backend, len(vocabulary)


_TRAINING: dict[str, Callable[[Sequence[str], int, Sequence[str] | None], tuple[tokenizers.Tokenizer, int]]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "unigram": _unigram,
}
