"""Checkpoints beside the ordinary one: shared among ranks, written while training goes on, copied elsewhere."""
