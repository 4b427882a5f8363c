"""Cleaning, between a source and its tokenizer: filters on single documents, then duplicates. All off by default.

``config`` has the options, ``filters`` decides on single documents, ``judging`` does so in worker processes, ``spool``
is what they write, ``duplicates`` compares documents with each other on the disk, and ``cleaned`` makes the result a
source again.
"""
