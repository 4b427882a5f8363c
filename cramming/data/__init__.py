"""From text to batches: source -> tokenizer -> token store (-> stream -> masks). Importing it registers the sources."""

from cramming.data import sources

sources.load()
