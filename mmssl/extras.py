"""Optional packages, which the extras of ``pip install "mmssl[...]"`` bring."""

from __future__ import annotations

import importlib

from mmssl.errors import InputError


def require(module: str, extra: str, use: str) -> None:
    """Check that an optional module can be imported.

    Args:
        module: Its name.
        extra: The extra that installs it.
        use: What needs it, the start of the message.

    Raises:
        InputError: It is not installed; the message names the command that installs it.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f'{use}: expected it installed (pip install "mmssl[{extra}]"), got {error}'
        ) from None
