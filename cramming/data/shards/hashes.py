"""Checksums an index may carry: those of hashlib that need no length, and xxHash."""

import hashlib
from pathlib import Path
from typing import Any

from cramming.data.shards.shard import ShardFile
from cramming.errors import UserError
from cramming.suggest import nearest

_READ_BYTES = 1 << 20
_XXHASHES = ("xxh32", "xxh64", "xxh128", "xxh3_64", "xxh3_128")
ALGORITHMS = tuple(
    sorted({name for name in hashlib.algorithms_guaranteed if not name.startswith("shake")} | {*_XXHASHES})
)


def check_algorithm(name: str, where: str) -> None:
    """Refuse a checksum nobody here can compute.

    Raises:
        UserError: it is one.
    """
    if name not in ALGORITHMS:
        raise UserError(f"{where}: the hash {name!r} is not known{nearest(name, ALGORITHMS)}")


def _new(algorithm: str) -> Any:
    if algorithm in _XXHASHES:
        import xxhash

        return getattr(xxhash, algorithm)()
    return hashlib.new(algorithm, usedforsecurity=False)


def hash_of_bytes(data: bytes, algorithm: str) -> str:
    """The hexadecimal checksum of ``data``."""
    digest = _new(algorithm)
    digest.update(data)
    return str(digest.hexdigest())


def hash_of(path: Path, algorithm: str) -> str:
    """The hexadecimal checksum of a file, read in small pieces."""
    digest = _new(algorithm)
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return str(digest.hexdigest())


def check_file(path: Path, expected: ShardFile) -> None:
    """Compare a file with what the index says of it: its size, then every checksum the index has.

    Raises:
        UserError: it is missing or another one.
    """
    try:
        size = path.stat().st_size
        if size != expected.size:
            raise UserError(f"{path} has {size:,} bytes, the index says {expected.size:,}: it is damaged or incomplete")
        for algorithm, digest in expected.hashes.items():
            found = hash_of(path, algorithm)
            if found != digest:
                raise UserError(f"{path} is damaged: its {algorithm} is {found}, the index says {digest}")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, and the index lists it") from error
