"""Exact duplicates: when two documents are the same."""

import hashlib


def solid(text: str) -> bytes:
    """A text without its white space: how lines are broken does not make another document."""
    return "".join(text.split()).encode()


def content_hash(text: str) -> "hashlib.blake2b":
    """The 8-byte hash that stands for a document; ``update(solid(...))`` continues it where the text goes on.

    That two of n different documents have the same hash is as likely as n^2 / 2^65: 2e-5 for 25 million documents.
    """
    return hashlib.blake2b(solid(text), digest_size=8)
