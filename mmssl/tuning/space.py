"""The search space: a TOML file, every key and value checked against the configuration's fields.

``[space]`` holds one entry per field: ``"training.lr" = {low = 1e-4, high = 1e-2, log = true}``, or
``"critic.hidden" = {choices = [128, "paper"]}``. ``[search]`` is optional.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmssl.config import Config, read_toml
from mmssl.errors import InputError
from mmssl.models.registry import model_spec

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_RANGE_KEYS = {"low", "high", "log", "step"}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool
    step: float | None
    integer: bool

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.integer:
            step = 1 if self.step is None else int(self.step)
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def decode(self, value: Any) -> Any:
        """Optuna's value as the configuration's."""
        return value

    def encode(self, value: Any) -> Any:
        """The configuration's value as Optuna's."""
        return value


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One of several values."""

    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([self.encode(value) for value in self.values])

    def decode(self, value: Any) -> Any:
        """Optuna's value as the configuration's."""
        return next(v for v in self.values if self.encode(v) == value)

    def encode(self, value: Any) -> Any:
        """Optuna stores no lists: JSON stands for them."""
        return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, kw_only=True)
class Search:
    """How trials are chosen and ended early."""

    sampler: Literal["tpe", "random"] = "tpe"
    """`tpe`: Optuna's Tree-structured Parzen Estimator; `random`: independent draws."""
    startup_trials: int = 10
    """Random trials before TPE begins."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """`median`: a trial whose best Recall@20 so far is below the median of the others' at the same
    epoch ends; `hyperband`: successive halving with several budgets."""
    prune_after_trials: int = 5
    """Trials that must have run to their end before others are pruned."""
    warmup_epochs: int = 5
    """No trial is pruned in an epoch before this one."""

    def __post_init__(self) -> None:
        limits = (("startup_trials", 1), ("prune_after_trials", 1), ("warmup_epochs", 1))
        for name, least in limits:
            if getattr(self, name) < least:
                raise InputError(f"search.{name}: expected >= {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched, by field, and how."""

    parameters: dict[str, Range | Choices]
    search: Search

    def distributions(self) -> dict[str, BaseDistribution]:
        """As Optuna has them."""
        return {name: p.distribution() for name, p in self.parameters.items()}

    def apply(self, config: Config, values: Mapping[str, Any]) -> Config:
        """The configuration with Optuna's values.

        Raises:
            InputError: a combination that the configuration refuses.
        """
        layer: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, field = name.split(".")
            layer.setdefault(section, {})[field] = self.parameters[name].decode(value)
        return config.replace(layer, source="trial")

    def values_of(self, config: Config) -> dict[str, Any] | None:
        """The configuration's own values as Optuna's; None if one is outside the space."""
        values = {}
        for name, parameter in self.parameters.items():
            value = parameter.encode(_field(config, name))
            distribution = parameter.distribution()
            try:
                inside = distribution._contains(distribution.to_internal_repr(value))
            except (ValueError, TypeError):
                inside = False
            if not inside:
                return None
            values[name] = value
        return values


def read_space(path: Path, config: Config, model: str) -> Space:
    """Reads and checks a search space.

    Args:
        path: the TOML file.
        config: what the trials start from; every end of a range and every choice must fit into it.
        model: a trained model; a field that it does not read is refused.

    Raises:
        InputError: in one line: the file, the field, what was expected and what was got.
    """
    return parse_space(read_toml(path), config, model, str(path))


def parse_space(content: Mapping[str, Any], config: Config, model: str, where: str) -> Space:
    """:func:`read_space` on what the TOML file holds; ``where`` begins every error."""
    unknown = set(content) - {"space", "search"}
    if unknown:
        raise InputError(f"{where}: expected [space] and [search], got [{sorted(unknown)[0]}]")
    entries = content.get("space")
    if not isinstance(entries, Mapping) or not entries:
        raise InputError(f"{where}: expected a [space] section with at least one field")
    parameters: dict[str, Range | Choices] = {}
    for name, entry in _leaves(entries):
        at = f"{where}: {name}"
        hint = _hint(name, at)
        _check_used(name, model, at)
        if not isinstance(entry, Mapping):
            raise InputError(f"{at}: expected {{low, high}} or {{choices}}, got {entry!r}")
        parameter = _choices(entry, at) if "choices" in entry else _range(entry, hint, at)
        ends = parameter.values if isinstance(parameter, Choices) else _ends(parameter)
        section, field = name.split(".")
        for value in ends:
            config.replace({section: {field: value}}, source=at)
        if name in parameters:
            raise InputError(f"{at}: given twice")
        parameters[name] = parameter
    return Space(parameters=parameters, search=_search(content.get("search", {}), where))


def _leaves(entries: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """``"a.b" = {...}`` and, from unquoted keys, ``a = {b = {...}}``."""
    leaves = []
    for name, entry in entries.items():
        if "." in name or not isinstance(entry, Mapping):
            leaves.append((name, entry))
        else:
            leaves.extend((f"{name}.{field}", inner) for field, inner in entry.items())
    return leaves


def _hint(name: str, at: str) -> Any:
    """The type of the field, or an error that lists the fields there are."""
    section, _, field = name.partition(".")
    sections = {k: v for k, v in typing.get_type_hints(Config).items() if k != "variant"}
    if section not in sections or not field:
        raise InputError(f"{at}: expected section.field, with one of {', '.join(sections)}")
    fields = typing.get_type_hints(sections[section])
    if field not in fields:
        raise InputError(f"{at}: unknown field, expected one of {', '.join(sorted(fields))}")
    return fields[field]


def _check_used(name: str, model: str, at: str) -> None:
    if name == "training.seed":
        raise InputError(f"{at}: a seed is no hyper-parameter; use `mmssl train --seeds`")
    if not model_spec(model).reads_field(name):
        raise InputError(f"{at}: has no effect on --model {model}")


def _choices(entry: Mapping[str, Any], at: str) -> Choices:
    values = entry["choices"]
    if len(entry) != 1:
        other = next(key for key in entry if key != "choices")
        raise InputError(f"{at}: choices go with nothing else, got {other!r} besides")
    if not isinstance(values, list) or not values:
        raise InputError(f"{at}: choices: expected a list of values, got {values!r}")
    if len({json.dumps(value) for value in values}) < len(values):
        raise InputError(f"{at}: choices: expected different values, got {values!r}")
    return Choices(values=tuple(values))


def _range(entry: Mapping[str, Any], hint: Any, at: str) -> Range:
    unknown = set(entry) - _RANGE_KEYS
    if unknown or not {"low", "high"} <= set(entry):
        got = ", ".join(map(str, entry)) or "nothing"
        raise InputError(f"{at}: expected low, high and perhaps log or step, or choices, got {got}")
    options = typing.get_args(hint) or (hint,)
    if float not in options and int not in options:
        raise InputError(f"{at}: not a number, so expected choices, got a range")
    integer = float not in options
    for key in ("low", "high", "step"):
        value = entry.get(key, 1)
        number = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
        if not number or value != value or abs(value) == float("inf"):
            kind = "an integer" if integer else "a finite number"
            raise InputError(f"{at}: {key}: expected {kind}, got {value!r}")
    low, high, step, log = entry["low"], entry["high"], entry.get("step"), entry.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{at}: log: expected true or false, got {log!r}")
    if not low < high:
        raise InputError(f"{at}: expected low < high, got {low} and {high}")
    if step is not None and (log or not 0 < step <= high - low):
        raise InputError(f"{at}: step: expected 0 < step <= high - low and no log, got {step}")
    if log and not low > 0:
        raise InputError(f"{at}: log: expected low > 0, got {low}")
    return Range(low=low, high=high, log=log, step=step, integer=integer)


def _ends(parameter: Range) -> tuple[float, float]:
    """The smallest and the largest value that can be drawn."""
    high = parameter.high
    if parameter.step is not None:
        count = int((parameter.high - parameter.low) / parameter.step + 1e-9)
        high = parameter.low + count * parameter.step
    return parameter.low, high


def _search(content: Any, where: str) -> Search:
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: search: expected a section, got {content!r}")
    hints = typing.get_type_hints(Search)
    for name, value in content.items():
        at = f"{where}: search.{name}"
        if name not in hints:
            raise InputError(f"{at}: unknown, expected one of {', '.join(hints)}")
        options = typing.get_args(hints[name])
        if options and value not in options:
            raise InputError(f"{at}: expected {' or '.join(options)}, got {value!r}")
        if not options and (not isinstance(value, int) or isinstance(value, bool)):
            raise InputError(f"{at}: expected an integer, got {value!r}")
    try:
        return Search(**content)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _field(config: Config, name: str) -> Any:
    section, field = name.split(".")
    return getattr(getattr(config, section), field)
