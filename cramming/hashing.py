"""Keyed hashes and seeded generators: every random draw as a pure function of what it is for.

Nothing that must survive a resume, another microbatch size or another number of ranks may come from a generator that
is advanced by use. The mixing function is the 64-bit finalizer of splitmix64 (Steele, Lea & Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014).
"""

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _xor_shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes the shift a logical one.
    return x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))


def mix(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers that scatters every bit: int64 of any shape -> the same shape."""
    x = _xor_shift(x + _GOLDEN, 30) * _FIRST
    x = _xor_shift(x, 27) * _SECOND
    return _xor_shift(x, 31)


def key(*parts: int | str) -> int:
    """A 63-bit number from numbers and words, the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by what it is for, such as ``generator(seed, step, group.index, "layer_dropping")``."""
    return torch.Generator(device=device).manual_seed(key(*parts))
