"""Scripts: which letters belong to which. A letter's script is read from its Unicode name."""

import unicodedata

import numpy as np

from cramming.data.cleaning.charsets import CHARSETS

_WIDTHS = ("HALFWIDTH", "FULLWIDTH")
_UNKNOWN, _NO_LETTER, _OUTSIDE, _INSIDE = range(4)


def code_points(text: str) -> np.ndarray:
    """The characters of a text as numbers (C,) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


class Letters:
    """Tells the letters of some charsets from all others, by a table that fills as characters are met."""

    def __init__(self, names: list[str]) -> None:
        self._scripts = {script for name in names for script in CHARSETS[name]}
        self._ascii = "ascii" in names
        self._table = np.zeros(0x110000, dtype=np.uint8)

    def share(self, text: str) -> float:
        """Of the letters of ``text``, how many are of the charsets; 0 where it has no letters."""
        codes = code_points(text)
        kinds = self._table[codes]
        if not kinds.all():
            for code in np.unique(codes[kinds == _UNKNOWN]):
                self._table[code] = self._kind(chr(code))
            kinds = self._table[codes]
        counts = np.bincount(kinds, minlength=_INSIDE + 1)
        letters = int(counts[_OUTSIDE] + counts[_INSIDE])
        return int(counts[_INSIDE]) / letters if letters else 0.0

    def _kind(self, character: str) -> int:
        if not character.isalpha():
            return _NO_LETTER
        words = [word for word in unicodedata.name(character, "").split() if word not in _WIDTHS]
        inside = (self._ascii and character.isascii()) or (bool(words) and words[0] in self._scripts)
        return _INSIDE if inside else _OUTSIDE
