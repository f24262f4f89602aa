"""The search space: a TOML file, checked against the fields of the configuration.

``[space]`` holds one entry per field: ``"training.lr" = {low = 1e-4, high = 1e-2, log = true}``, or
``"critic.hidden" = {choices = [128, "paper"]}``. ``[search]`` is optional.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mmssl.config import Config, Section, replace_fields
from mmssl.errors import InputError
from mmssl.models.registry import model_spec


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        low, high, step = self.low, self.high, self.step
        if not low < high:
            raise ValueError(f"expected low < high, got {low:g} and {high:g}")
        if self.log and not low > 0:
            raise ValueError(f"log: expected low > 0, got {low:g}")
        if step is not None and (self.log or not 0 < step <= high - low):
            raise ValueError(f"step: expected 0 < step <= high - low and no log, got {step:g}")

    def distribution(self) -> BaseDistribution:
        """Return Optuna's form."""
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> Sequence[Any]:
        """Return the smallest and the largest value that can be drawn."""
        if self.step is None:
            return self.low, self.high
        count = int((self.high - self.low) / self.step + 1e-9)
        return self.low, self.low + count * self.step

    def decode(self, value: Any) -> Any:
        """Return the configuration's value for Optuna's."""
        return float(value)

    def encode(self, value: Any) -> Any:
        """Return Optuna's value for the configuration's; None if it cannot be drawn."""
        if not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return None
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return value if abs(steps - round(steps)) < 1e-8 else None


class IntRange(Range, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Integers from low to high, both included."""

    low: int
    high: int
    step: int | None = None

    def distribution(self) -> BaseDistribution:
        """Return Optuna's form."""
        return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)

    def decode(self, value: Any) -> Any:
        """Return the configuration's value for Optuna's."""
        return int(value)


class Choices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several values."""

    choices: Annotated[list[Any], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        if len({json.dumps(value, default=str) for value in self.choices}) < len(self.choices):
            raise ValueError(f"choices: expected different values, got {self.choices!r:.60}")

    def distribution(self) -> BaseDistribution:
        """Return Optuna's form."""
        return CategoricalDistribution([_scalar(value) for value in self.choices])

    def ends(self) -> Sequence[Any]:
        """Return every value that can be drawn."""
        return self.choices

    def decode(self, value: Any) -> Any:
        """Return the configuration's value for Optuna's."""
        return next(choice for choice in self.choices if _scalar(choice) == value)

    def encode(self, value: Any) -> Any:
        """Return Optuna's value for the configuration's; None if it cannot be drawn."""
        return next((_scalar(c) for c in self.choices if _scalar(c) == _scalar(value)), None)


@dataclass(frozen=True, kw_only=True)
class Search(Section):
    """How trials are chosen and pruned."""

    sampler: Literal["tpe", "random"] = "tpe"
    """`tpe`: Optuna's Tree-structured Parzen Estimator; `random`: independent draws."""
    startup_trials: Annotated[int, ">= 1"] = 10
    """Number of random trials before TPE begins."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """`median`: prune a trial whose best Recall@20 so far is below the median of the other trials
    at the same epoch; `hyperband`: successive halving with several budgets."""
    prune_after_trials: Annotated[int, ">= 1"] = 5
    """Number of complete trials before any trial is pruned."""
    warmup_epochs: Annotated[int, ">= 1"] = 5
    """Number of epochs before a trial can be pruned."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The searched fields and how they are searched."""

    parameters: dict[str, Range | Choices]
    search: Search

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's form of every parameter."""
        return {name: parameter.distribution() for name, parameter in self.parameters.items()}

    def apply(self, config: Config, values: Mapping[str, Any]) -> Config:
        """Return the configuration with Optuna's values.

        Raises:
            InputError: The configuration refuses the combination.
        """
        layer: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, field = name.split(".")
            layer.setdefault(section, {})[field] = self.parameters[name].decode(value)
        return config.replace(layer, source="trial")

    def values_of(self, config: Config) -> dict[str, Any] | None:
        """Return Optuna's form of the configuration's own values; None if one is outside."""
        values = {}
        for name, parameter in self.parameters.items():
            section, field = name.split(".")
            values[name] = parameter.encode(getattr(getattr(config, section), field))
        return None if None in values.values() else values


def parse_space(content: Mapping[str, Any], config: Config, model: str, where: str) -> Space:
    """Check the content of a search space's TOML file.

    Args:
        content: The parsed file.
        config: Configuration that the trials start from; it must accept both ends of every range
            and every choice.
        model: Name of a model; a field that it does not read is refused.
        where: Name of the file; begins every error message.

    Raises:
        InputError: In one line: the file, the field, what was expected and what was got.
    """
    unknown = set(content) - {"space", "search"}
    if unknown:
        raise InputError(f"{where}: expected [space] and [search], got [{sorted(unknown)[0]}]")
    entries, search = content.get("space"), content.get("search", {})
    if not isinstance(entries, Mapping) or not entries:
        raise InputError(f"{where}: expected a [space] section with at least one field")
    if not isinstance(search, Mapping):
        raise InputError(f"{where}: search: expected a section, got {search!r:.60}")
    parameters: dict[str, Range | Choices] = {}
    for name, entry in _leaves(entries):
        at = f"{where}: {name}"
        parameter = _parameter(entry, _field_type(name, model, config.variant, at), at)
        section, field = name.split(".")
        for value in parameter.ends():
            config.replace({section: {field: value}}, source=at)
        if name in parameters:
            raise InputError(f"{at}: given twice")
        parameters[name] = parameter
    return Space(
        parameters=parameters,
        search=replace_fields(Search(), search, source=where, prefix="search."),
    )


def _leaves(entries: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """``"a.b" = {...}`` and, from unquoted keys, ``a = {b = {...}}``."""
    leaves = []
    for name, entry in entries.items():
        if "." in name or not isinstance(entry, Mapping):
            leaves.append((name, entry))
        else:
            leaves.extend((f"{name}.{field}", inner) for field, inner in entry.items())
    return leaves


def _field_type(name: str, model: str, variant: str, at: str) -> Any:
    """Return the type of a searchable field."""
    section, _, field = name.partition(".")
    sections = {k: v for k, v in typing.get_type_hints(Config).items() if k != "variant"}
    if section not in sections or not field:
        raise InputError(f"{at}: expected section.field, with one of {', '.join(sections)}")
    fields = typing.get_type_hints(sections[section])
    if field not in fields:
        raise InputError(f"{at}: unknown field, expected one of {', '.join(sorted(fields))}")
    if name == "training.seed":
        raise InputError(f"{at}: a seed is not a hyper-parameter; use `mmssl train --seeds`")
    spec = model_spec(model, variant)
    if not spec.reads_field(name):
        chosen = f"--model {model}" + (f" --variant {variant}" if spec.variants else "")
        raise InputError(f"{at}: has no effect on {chosen}")
    return fields[field]


def _parameter(entry: Any, field_type: Any, at: str) -> Range | Choices:
    if not isinstance(entry, Mapping):
        raise InputError(f"{at}: expected {{low, high}} or {{choices}}, got {entry!r:.60}")
    types = typing.get_args(field_type) or (field_type,)
    kind: type[Range | Choices] = Choices
    if "choices" not in entry:
        if float not in types and int not in types:
            raise InputError(f"{at}: expected choices, since the field is not a number")
        kind = Range if float in types else IntRange
    try:
        return msgspec.convert(entry, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        raise InputError(f"{at}{path[:-1]}: {reason[:1].lower()}{reason[1:]}") from None


def _scalar(value: Any) -> Any:
    """Return a value that Optuna can store: it stores no lists, so JSON stands for them."""
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value
