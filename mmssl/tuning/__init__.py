"""Hyper-parameter search with Optuna: a space, a study, its workers, its result."""
