"""Downstream tasks: what each one asks, and how its rows become examples."""
