"""From any source of text to a corpus in shards: ``python -m cramming.data.convert``."""
