"""Efficient-training ideas: one file, one paper. Importing a file registers its method."""
