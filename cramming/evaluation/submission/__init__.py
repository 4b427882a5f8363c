"""Predictions on test sets whose labels only a server has, in the form that it takes."""
