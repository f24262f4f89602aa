"""Hyper-parameter search with Optuna: the search space, the study, its trials and its result."""

from __future__ import annotations

from mmssl.extras import require


def require_optuna() -> None:
    """Check that Optuna can be imported.

    Raises:
        InputError: It is not installed; the message names the command that installs it.
    """
    require("optuna", "tune", "searching settings needs optuna")
