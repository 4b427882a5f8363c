"""Tokenizers: one trained here, or any Hugging Face one with a mask token, behind one small class."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from cramming.data.tokenizer_normalizing import described, for_wordpiece, same_effect
from cramming.data.tokenizer_words import word_rule
from cramming.durable import write_atomically
from cramming.errors import UserError

FILE = "tokenizer.json"
ALTERNATIVES = "offline, use data.tokenizer=train, or a folder with tokenizer.json, a tokenizer.json or a vocab.txt"
# The spellings of the special tokens in use, ours first.
_SPELLINGS = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_UNUSED = re.compile(r"\[unused\d+\]")


class Tokenizer:
    """Text to token ids and back. Never truncates, never pads, adds no special tokens.

    ``[MASK]`` and the like written out in a text are ordinary characters, unless ``encode`` is told otherwise: a corpus
    that mentions them must not contain them.

    Raises:
        UserError: a special token that masked-language modelling needs is missing.
    """

    def __init__(self, backend: tokenizers.Tokenizer, name: str = "tokenizer") -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        # Keys sorted, so that the hash does not depend on how a library orders them; without the template that puts
        # special tokens around a text, which is never used here and which exporting adds.
        parts = json.loads(backend.to_str())
        self._json = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        alone = json.dumps(parts | {"post_processor": None}, sort_keys=True, ensure_ascii=False)
        self.sha256: str = hashlib.sha256(alone.encode()).hexdigest()
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        ids = {role: _first(vocabulary, spellings) for role, spellings in _SPELLINGS.items()}
        for role in ("mask", "pad", "cls", "sep"):
            if ids[role] is None:
                raise UserError(
                    f"{name} has no {role} token ({' or '.join(_SPELLINGS[role])}), "
                    "which masked-language modelling needs; use data.tokenizer=train or the tokenizer of a BERT"
                )
        self.pad_id: int = ids["pad"]  # type: ignore[assignment]
        self.unk_id: int | None = ids["unk"]
        self.cls_id: int = ids["cls"]  # type: ignore[assignment]
        self.sep_id: int = ids["sep"]  # type: ignore[assignment]
        self.mask_id: int = ids["mask"]  # type: ignore[assignment]
        added = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
        unused = {number for token, number in vocabulary.items() if _UNUSED.fullmatch(token)}
        #: Ids that are no text: special tokens and reserved places of the vocabulary, ascending.
        self.special_ids: list[int] = sorted(added | unused | {number for number in ids.values() if number is not None})

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that holds every id: uint16 or uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @property
    def kind(self) -> str:
        """How it cuts words into pieces: wordpiece, bpe, unigram, or another model's name in lower case."""
        return str(self._parts["model"]["type"]).lower()

    @property
    def word_rule(self) -> str | None:
        """Which words of a text are tokenized each by itself; see ``tokenizer_words``."""
        return word_rule(self._parts)

    @property
    def normalization(self) -> list[str]:
        """What is done to a text first, in the names of ``data.normalize``."""
        return described(self._parts["normalizer"])

    def normalizes_like(self, other: normalizers.Normalizer) -> bool:
        """Whether its normalizer does to text what another one does."""
        return same_effect(self._backend.normalizer, other)

    def normalize(self, text: str) -> str:
        """A text as it is before it is cut into words."""
        normalizer = self._backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, without special tokens, in ``dtype``."""
        return [np.array(ids, dtype=self.dtype) for ids in self.encode_lists(texts)]

    def encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode_batch`` as plain lists."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def encode_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """Token ids of each text as ``encode_lists`` has them, and the characters each token is of, (n, 2) int32.

        They run from the first to before the second; some tokenizers count the space before a word as its own.
        """
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, np.array(one.offsets, dtype=np.int32).reshape(-1, 2)) for one in encoded]

    def encode_normalized(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode_lists`` of texts that ``normalize`` gave."""
        encoded = self._without_normalizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    @cached_property
    def _without_normalizer(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(json.dumps(self._parts | {"normalizer": None}))
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = json.loads(self._json)
        return parts

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Token ids of one text; with ``special_tokens``, ``[MASK]`` and the like in it mean the tokens."""
        self._backend.encode_special_tokens = not special_tokens
        try:
            return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=self.dtype)
        finally:
            self._backend.encode_special_tokens = True

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids, special tokens written out."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def token(self, token_id: int) -> str:
        """The piece with this id."""
        piece: str | None = self._backend.id_to_token(int(token_id))
        return f"<{token_id}>" if piece is None else piece

    def to_json(self) -> str:
        """All of it, as ``tokenizer.json`` has it."""
        return self._json

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` (which Hugging Face's libraries read, too) into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, self._json.encode())

    @staticmethod
    def kept(folder: Path) -> "Tokenizer":
        """The tokenizer that ``save`` wrote into ``folder``.

        Raises:
            UserError: it is damaged.
        """
        try:
            return Tokenizer.load(folder)
        except UserError as error:
            raise UserError(f"{folder / FILE} is damaged; delete {folder} and run the same command again") from error

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """The tokenizer of a folder, or of a tokenizer.json or vocab.txt file.

        Raises:
            UserError: there is none, or it cannot be used.
        """
        path = folder
        if folder.is_dir():
            candidates = [folder / FILE, folder / "vocab.txt"]
            found = [candidate for candidate in candidates if candidate.is_file()]
            if not found and len(others := sorted(folder.glob("*vocab.txt"))) == 1:
                found = others  # as published: bert-base-uncased-vocab.txt
            if not found:
                raise UserError(f"data.tokenizer={folder} has no tokenizer.json or vocab.txt in it; {ALTERNATIVES}")
            path = found[0]
        if not path.is_file():
            raise UserError(f"data.tokenizer={folder} does not exist; {ALTERNATIVES}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as text ({error}); {ALTERNATIVES}") from error
        if not text.lstrip().startswith("{"):
            return Tokenizer(from_vocabulary(text, path), str(path))
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path} is not a tokenizer.json ({_line(error)}); {ALTERNATIVES}") from error
        return Tokenizer(backend, str(path))


def _first(vocabulary: dict[str, int], spellings: tuple[str, ...]) -> int | None:
    return next((vocabulary[spelling] for spelling in spellings if spelling in vocabulary), None)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def wordpiece(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """BERT's tokenizer with this vocabulary: cleaned, lower-cased text, split at spaces and punctuation."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = for_wordpiece(None if lowercase else ())
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    special = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocabulary]
    backend.add_special_tokens(special)
    return backend


def from_vocabulary(text: str, path: Path) -> tokenizers.Tokenizer:
    """A WordPiece tokenizer from the lines of a vocab.txt; a line's number is its id.

    It lower-cases if the vocabulary has no upper-case piece.

    Raises:
        UserError: not a vocabulary.
    """
    lines = text.removesuffix("\n").split("\n")
    vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    if len(vocabulary) < len(lines):
        raise UserError(
            f"{path} names a token twice: it is not a WordPiece vocabulary (one token a line); {ALTERNATIVES}"
        )
    if "[UNK]" not in vocabulary:
        raise UserError(
            f"{path} has no [UNK] line: it is not a WordPiece vocabulary (one token a line); {ALTERNATIVES}"
        )
    cased = any(piece != piece.lower() for piece in vocabulary if not re.fullmatch(r"\[\w+\]", piece))
    return wordpiece(vocabulary, lowercase=not cased)


def is_local(name: str) -> bool:
    """Whether a tokenizer's name means a place on this disk rather than one on the hub."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.endswith((".txt", ".json"))
