"""The rows of the leaderboard: the models of the registry, and ablations of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.config import Config, load_config, preset_names, read_toml
from mmssl.errors import InputError
from mmssl.models.registry import DEFAULT_VARIANT, model_spec, model_specs
from mmssl.tuning.defaults import default_space

ABLATIONS = Path(__file__).with_name("ablations.toml")
# `released` reproduces the released code for parity; `paper` is the model that it implements.
_LEFT_OUT = ("released",)
WITHOUT_EFFECT = (
    *("training.seed", "training.capture", "training.wire"),
    *("training.checkpoint_interval", "training.keep_checkpoints"),
)
"""Fields that models read and that have no effect on a result here: every record has its own seed,
and the others say how often a run saves, how a GPU runs it and what several processes exchange."""


@dataclass(frozen=True)
class Entry:
    """A row: a model, its variant, and what an ablation changes in it."""

    label: str
    """The name in the tables, and the option of ``--models``."""
    model: str
    variant: str = DEFAULT_VARIANT
    settings: tuple[str, ...] = ()
    """Settings of an ablation, ``section.field=value``."""
    base: str | None = None
    """Label of the entry whose tuned setting an ablation takes."""

    @property
    def folder(self) -> str:
        """Name of the entry's folder, in the results and among the runs."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-")

    @property
    def is_trained(self) -> bool:
        """Whether the model is trained in epochs, from a seed; False in closed form."""
        return model_spec(self.model, self.variant).schedule is not None

    def start(self, data: str) -> Config:
        """Return where the search starts: the defaults, or the preset of the data set.

        Args:
            data: Name of the data set. The preset of ``baby`` also serves ``baby-mmrec``, the same
                interactions split otherwise.
        """
        presets = [name for name in preset_names() if data == name or data.startswith(f"{name}-")]
        return load_config(self.variant, preset=max(presets, key=len, default=None))

    def read_fields(self, config: Config) -> dict[str, Any]:
        """Return the fields that the model reads, by section; the seed is left out."""
        spec = model_spec(self.model, self.variant)
        content = {
            section: {
                field: value for field, value in fields.items() if _reads(spec, section, field)
            }
            for section, fields in config.to_dict().items()
            if isinstance(fields, dict)
        }
        return {section: fields for section, fields in content.items() if fields}

    def space(self, start: Config) -> dict[str, Any]:
        """Return the search space that ``mmssl tune`` takes for the model by default.

        A field whose value is chosen by the model, on validation or by a rule, is not searched. The
        space is empty if no field is left.
        """
        try:
            space = default_space(self.model, start)
        except InputError:  # no field to search
            return {}
        content = self.read_fields(start)
        searched = {}
        for name, entry in space["space"].items():
            section, field = name.split(".")
            if "choices" in entry or not isinstance(content[section][field], str):
                searched[name] = entry
        return {**space, "space": searched} if searched else {}


def _reads(spec: Any, section: str, field: str) -> bool:
    name = f"{section}.{field}"
    return bool(spec.reads_field(name)) and name not in WITHOUT_EFFECT


def entries() -> tuple[Entry, ...]:
    """Return an entry per model of the registry, and per variant of a model with variants.

    Models in closed form come first, since they take seconds.
    """
    found = []
    for spec in model_specs():
        for variant in spec.variants or (DEFAULT_VARIANT,):
            label = variant if spec.variants else spec.name
            if label not in _LEFT_OUT:
                found.append(Entry(label, spec.name, variant))
    return tuple(sorted(found, key=lambda entry: entry.is_trained))


def ablations(path: Path = ABLATIONS) -> tuple[Entry, ...]:
    """Return the entries of a file with a table per base and a list of settings per ablation.

    Raises:
        InputError: A base that is not an entry, or something else than a list of settings.
    """
    bases = {entry.label: entry for entry in entries()}
    found = []
    for base, changes in read_toml(path).items():
        if base not in bases or not isinstance(changes, dict):
            raise InputError(f"{path}: expected tables named {', '.join(bases)}, got {base!r:.60}")
        for name, settings in changes.items():
            if not isinstance(settings, list) or not all(isinstance(s, str) for s in settings):
                raise InputError(f"{path}: {base}.{name}: expected a list of settings")
            label = f"{base}, {name}"
            changed = dataclasses.replace(
                bases[base], label=label, settings=tuple(settings), base=base
            )
            found.append(changed)
    return tuple(found)


def chosen(every: Sequence[Entry], labels: Sequence[str] | None) -> tuple[Entry, ...]:
    """Return the entries with these labels, or all of them; a base stands for its ablations.

    Raises:
        InputError: A label that no entry has.
    """
    if labels is None:
        return tuple(every)
    known = {entry.label for entry in every} | {entry.base for entry in every if entry.base}
    for label in labels:
        if label not in known:
            names = ", ".join(repr(entry.label) for entry in every)
            raise InputError(f"--models: expected one of {names}, got {label!r:.60}")
    return tuple(entry for entry in every if entry.label in labels or entry.base in labels)
