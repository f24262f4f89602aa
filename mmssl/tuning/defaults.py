"""The search space that a model brings: the fields that are marked by :class:`mmssl.section.Tune`.

Importing this module requires the standard library only.
"""

from __future__ import annotations

import typing
from typing import Any

from mmssl.config import Config
from mmssl.errors import InputError
from mmssl.models.registry import model_spec
from mmssl.section import searched


def default_space(model: str, config: Config) -> dict[str, Any]:
    """Return a model's own search space, in the form of a search space's file.

    ``search.warmup_epochs`` is the model's patience, since models trained by BPR stay on a plateau
    first, where the trials do not differ yet.

    Args:
        model: A name in :mod:`mmssl.models.registry`.
        config: The configuration that the trials start from.

    Raises:
        InputError: No such model, or one without a field to search.
    """
    spec = model_spec(model, config.variant)
    entries = {
        f"{section}.{field}": entry
        for section, kind in typing.get_type_hints(Config).items()
        if section != "variant"
        for field, entry in searched(kind).items()
        if spec.reads_field(f"{section}.{field}")
    }
    if not entries:
        raise InputError(f"tune: model {model} has no field to search")
    search = {}
    if spec.schedule is not None:
        search["warmup_epochs"] = getattr(config, spec.schedule).patience
    return {"space": entries, "search": search}
