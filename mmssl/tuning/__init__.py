"""Hyper-parameter search with Optuna: the search space, the study, its trials and its result."""

from __future__ import annotations

from mmssl.errors import InputError


def require_optuna() -> None:
    """Check that Optuna can be imported.

    Raises:
        InputError: It is not installed; the message names the command that installs it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InputError(
            'searching settings needs optuna: expected it installed (pip install "mmssl[tune]"), '
            f"got {error}"
        ) from None
