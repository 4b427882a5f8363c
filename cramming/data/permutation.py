"""A keyed bijection of 0..n-1 without an array of size n.

A balanced Feistel network over the smallest even number of bits that holds n, walked along its cycle until the value
falls back below n (Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). The domain is less than
four times n, so that a value takes less than four rounds on average.
"""

import numpy as np
from numpy.typing import NDArray

from cramming.hashing import key

_ROUNDS = 6


class Permutation:
    """Order of ``n`` items as a pure function of its key: ``permutation(indices) -> items``, vectorised."""

    def __init__(self, n: int, *parts: int | str) -> None:
        assert n > 0, n
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = [np.uint64(key(*parts, round_)) for round_ in range(_ROUNDS)]

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(K,) int64 in 0..n-1 -> (K,) int64 in 0..n-1, one to one."""
        values = self._encrypt(indices.astype(np.uint64))
        outside = values >= self.n
        while outside.any():
            values[outside] = self._encrypt(values[outside])
            outside = values >= self.n
        return values.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for round_key in self._keys:
            left, right = right, left ^ (self._scatter(right + round_key) & self._mask)
        return (left << self._half) | right

    @staticmethod
    def _scatter(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        # The finalizer of splitmix64, as in cramming.hashing; numpy's unsigned arithmetic wraps as it should.
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
