"""Corpora in shards, trained on as they come: brought here in the background, in the order they will be needed."""
