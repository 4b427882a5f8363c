"""Corpora cut into shards: files of a few megabytes each, listed with their sizes and checksums in an index."""
