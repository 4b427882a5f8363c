"""Probes: what pretraining bought, cheap enough to be asked while it goes on. No weight is trained, no budget spent."""
