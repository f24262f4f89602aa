"""The models that can be trained, by name and variant: the only place that lists them.

Everything that depends on which model is trained (the command line, tuning, run directories, the
trainer) asks here. Adding a model, or a variant that is trained in its own way, means adding one
entry. Importing this module imports no model.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from mmssl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What the rest of the package needs to know about a model before it is imported."""

    name: str
    """The value of ``--model``."""
    task: str
    """``"module:class"`` of its :class:`mmssl.training.task.Task`."""
    reads: tuple[str, ...]
    """Sections (``"loss"``) and single fields (``"model.embedding_dim"``) of the configuration
    that the model reads; any other field has no effect on it."""
    schedule: str | None
    """Section that holds ``epochs``, ``patience`` and ``lr``; None for a model in closed form."""
    changeable: tuple[str, ...] = ()
    """Fields that a resumed run may change; none on which the data or a tensor's shape depends."""
    parallel: tuple[str, ...] = ()
    """Values of ``--parallel`` that the model supports."""
    sharded_task: str = ""
    """Its task for ``--parallel sharded``, as in :attr:`task`."""
    variants: tuple[str, ...] = ()
    """Values of ``--variant`` that this entry stands for; empty if the model has no variants."""

    def reads_field(self, field: str) -> bool:
        """Whether ``"section.field"`` has an effect on this model."""
        return field in self.reads or field.partition(".")[0] in self.reads

    def option(self, variant: str = "") -> str:
        """Its option of the command line: ``"--model lightgcn"``, ``"--variant plus"``."""
        return (
            f"--variant {variant or self.variants[0]}" if self.variants else f"--model {self.name}"
        )

    def load_task(self, *, sharded: bool = False) -> Any:
        """Import the model; return its task class."""
        module, _, name = (self.sharded_task if sharded else self.task).partition(":")
        return getattr(importlib.import_module(module), name)


def _pairwise(name: str, task: str, **options: Any) -> ModelSpec:
    """Return the entry of a model in one file whose section of the configuration has its name."""
    return ModelSpec(
        name=name,
        task=f"mmssl.models.{name}:{task}",
        reads=(name, "model.embedding_dim", *options.pop("also_reads", ()), "training.seed"),
        schedule=name,
        changeable=(f"{name}.epochs", f"{name}.patience", f"{name}.lr"),
        **options,
    )


def _closed_form(name: str, task: str) -> ModelSpec:
    """Return the entry of a model that is computed at once; its section has its name as well."""
    return ModelSpec(name=name, task=f"mmssl.models.{name}:{task}", reads=(name,), schedule=None)


_SPECS = (
    ModelSpec(
        name="mmssl",
        task="mmssl.models.mmssl.task:MMSSLTask",
        reads=("model", "critic", "structure", "loss", "training"),
        schedule="training",
        changeable=(
            *("training.epochs", "training.patience", "training.lr", "training.lr_decay"),
            *("training.clip_norm", "training.capture", "critic.lr", "critic.clip_norm"),
        ),
        parallel=("data", "sharded"),
        sharded_task="mmssl.models.mmssl.sharded:ShardedMMSSLTask",
        variants=("paper", "released"),
    ),
    ModelSpec(
        name="mmssl",
        task="mmssl.models.plus.task:PlusTask",
        reads=("plus", "model.embedding_dim", "training.wire", "training.capture", "training.seed"),
        schedule="plus",
        changeable=("plus.epochs", "plus.patience", "plus.lr", "training.capture"),
        parallel=("data", "sharded"),
        sharded_task="mmssl.models.sharded:ShardedPlusTask",
        variants=("plus",),
    ),
    _closed_form("ease", "EASETask"),
    _closed_form("cease", "CEASETask"),
    _closed_form("gfcf", "GFCFTask"),
    _closed_form("mmgf", "MMGFTask"),
    _closed_form("itemknn", "ItemKNNTask"),
    _closed_form("contentknn", "ContentKNNTask"),
    _pairwise("bprmf", "BPRMFTask", also_reads=("training.capture",)),
    _pairwise(
        "lightgcn",
        "LightGCNTask",
        also_reads=("training.wire", "training.capture"),
        parallel=("data", "sharded"),
        sharded_task="mmssl.models.sharded:ShardedLightGCNTask",
    ),
    _pairwise("layergcn", "LayerGCNTask"),
    _pairwise("sgl", "SGLTask"),
    _pairwise("xsimgcl", "XSimGCLTask"),
    _pairwise("freedom", "FreedomTask"),
    _pairwise("vbpr", "VBPRTask"),
    _pairwise("bm3", "BM3Task"),
    _pairwise("lattice", "LatticeTask"),
    _pairwise("slmrec", "SLMRecTask"),
    _pairwise("grcn", "GRCNTask"),
    ModelSpec(
        name="popularity",
        task="mmssl.models.popularity:PopularityTask",
        reads=(),
        schedule=None,
    ),
)
RUN_FIELDS = (
    *("training.seed", "training.deterministic"),
    *("training.checkpoint_interval", "training.keep_checkpoints"),
)
"""Fields of the configuration that the trainer reads, whatever the model."""
DEFAULT_MODEL = "mmssl"
DEFAULT_VARIANT = "paper"


def model_names(*, trained: bool = False) -> tuple[str, ...]:
    """Names of all models; with ``trained`` only of those that are trained in epochs."""
    names = (spec.name for spec in _SPECS if spec.schedule is not None or not trained)
    return tuple(dict.fromkeys(names))


def model_specs() -> tuple[ModelSpec, ...]:
    """All entries."""
    return _SPECS


def model_spec(name: str, variant: str) -> ModelSpec:
    """The entry of a model.

    Args:
        name: The model.
        variant: Which of its variants; ignored by models without variants.

    Raises:
        InputError: No model has that name, or the model lacks that variant.
    """
    specs = [spec for spec in _SPECS if spec.name == name]
    for spec in specs:
        if not spec.variants or variant in spec.variants:
            return spec
    if specs:
        variants = ", ".join(known for spec in specs for known in spec.variants)
        raise InputError(f"variant: expected one of {variants}, got {variant!r:.60}")
    if any(name in spec.variants for spec in _SPECS):
        raise InputError(f"model: {name!r} is a variant of mmssl: variant={name!r}")
    names = ", ".join(model_names())
    raise InputError(f"model: expected one of {names}, got {name!r:.60}")


def changeable_fields() -> tuple[str, ...]:
    """Fields of any model that a resumed run may change."""
    return tuple(dict.fromkeys(field for spec in _SPECS for field in spec.changeable))
