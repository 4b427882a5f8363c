"""Weights in and out: checkpoints of any origin as models of ours, and models of ours as checkpoints others load."""
