"""Hyper-parameter search with Optuna: the search space, the study, its trials and its result."""
