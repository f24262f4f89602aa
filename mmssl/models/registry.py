"""The models that can be trained, by name: the only place that lists them.

Everything that depends on which model is trained (the command line, tuning, run directories, the
trainer) asks here. Adding a model means adding one entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What the rest of the package needs to know about a model before it is imported."""

    name: str
    """The value of ``--model``."""
    reads: tuple[str, ...]
    """Sections (``"loss"``) and single fields (``"model.embedding_dim"``) of the configuration
    that the model reads; any other field has no effect on it."""
    schedule: str | None
    """Section that holds ``epochs`` and ``patience``; None for a model in closed form."""
    variants: bool = False
    """Whether ``--variant`` chooses between forms of this model."""

    def reads_field(self, field: str) -> bool:
        """Whether ``"section.field"`` has an effect on this model."""
        return field in self.reads or field.partition(".")[0] in self.reads


_SPECS = (
    ModelSpec(
        name="mmssl",
        reads=("model", "critic", "structure", "loss", "training"),
        schedule="training",
        variants=True,
    ),
    ModelSpec(
        name="lightgcn",
        reads=("lightgcn", "model.embedding_dim", "training.seed"),
        schedule="lightgcn",
    ),
    ModelSpec(name="popularity", reads=(), schedule=None),
)
_BY_NAME = {spec.name: spec for spec in _SPECS}

DEFAULT_MODEL = "mmssl"


def model_names(*, trained: bool = False) -> tuple[str, ...]:
    """Names of all models; with ``trained`` only of those that are trained in epochs."""
    return tuple(spec.name for spec in _SPECS if spec.schedule is not None or not trained)


def model_spec(name: str) -> ModelSpec:
    """The entry of a model.

    Raises:
        InputError: There is no model of that name.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        names = ", ".join(_BY_NAME)
        raise InputError(f"model: expected one of {names}, got {name!r:.60}") from None
