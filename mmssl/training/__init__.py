"""The training loop, the interface between it and a model, checkpoints and run directories."""

SELECTION_METRIC = "recall@20"
"""Validation metric by which epochs, trials and seeds are compared."""
