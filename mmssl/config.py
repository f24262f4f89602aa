"""The complete configuration of a run: frozen dataclasses, one TOML file, nothing implicit.

A configuration is built in layers: the variant's preset (``paper`` or ``released``), a data set's
preset, the user's file, single ``section.field=value`` settings. Each layer may set any field; an
unknown field or a wrong type is an error that names it. Nothing is read from anywhere else.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w

from mmssl.errors import InputError
from mmssl.files import MAX_CONFIG_BYTES, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIANTS = ("paper", "released")

MAX_INT = 2**63 - 1
"""Of every integer field: what torch takes."""


def _check(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise InputError(f"config {name}: expected {expected}, got {_shown(got)}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The generator (MODEL.md section 1; Wei et al., WWW 2023, section 3)."""

    embedding_dim: int = 64
    """D, of the ID embeddings and of the projected features."""
    num_layers: int = 2
    """Propagation hops over the interaction graph, L."""
    num_feature_layers: int = 1
    """Hops of the projected features, each feeding the next."""
    normalization: Literal["row_sqrt", "sym", "row"] = "row_sqrt"
    """How the interaction and modality graphs are scaled."""
    attention: Literal["cross_modal", "identity"] = "cross_modal"
    """`cross_modal`: multi-head attention over the views of a node; `identity`: what the released
    code computes, where the attention map cancels and only the output projection acts."""
    num_heads: int = 4
    """Attention heads, H; must divide embedding_dim."""
    id_weight: float = 0.36
    """Weight of the normalised attention output added to the ID embedding (eta)."""
    feat_weight: float = 0.55
    """Weight of the normalised modality features in the final embedding (omega)."""
    dropout: float = 0.2
    """On the projected features."""
    final_softmax: bool = False
    """Softmax over D in the last propagation layer, as the released code has it."""

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "num_layers", "num_feature_layers", "num_heads"):
            _check(getattr(self, name) >= 1, f"model.{name}", ">= 1", getattr(self, name))
        _check(
            self.embedding_dim % self.num_heads == 0,
            "model.num_heads",
            f"a divisor of model.embedding_dim = {self.embedding_dim}",
            self.num_heads,
        )
        _check(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The critic of the adversarial task and the rows it is shown (WGAN-GP)."""

    hidden: int | Literal["paper"] = "paper"
    """Width of the first layer; "paper" is I/4. The second is half of it."""
    negative_slope: float = 0.2
    """Of the LeakyReLUs; the released code has 1.0, which makes them identities."""
    dropout: tuple[float, float] = (0.31, 0.5)
    """After the first and the second hidden layer."""
    gumbel_tau: float = 0.005
    """Temperature of the Gumbel softmax over a user's interaction row."""
    gumbel_scale: float = 1e-5
    """Factor on the Gumbel noise."""
    gumbel_divides: Literal["logit", "noise"] = "logit"
    """What the temperature divides: the whole logit, or (released) only the noise."""
    similarity_scale: float = 100.0
    """Weight of the model's own similarity row in the real row (zeta)."""
    gp_weight: float = 1.0
    """Weight of the gradient penalty."""
    penalty_interval: int = 1
    """n: the gradient penalty is taken every n-th step and counts n times then (the lazy
    regularisation of Karras et al., CVPR 2020)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the critic's products and of the activations between them; sums, statistics, scores and
    parameters stay float32."""
    lr: float = 3e-4
    """Adam, betas (0.5, 0.9)."""
    clip_norm: float = 0.0
    """A step's gradient is scaled down to this norm, over all of the critic's parameters; 0 leaves
    it as it is."""

    def __post_init__(self) -> None:
        if isinstance(self.hidden, int):
            _check(self.hidden >= 2, "critic.hidden", '>= 2 or "paper"', self.hidden)
        _check(len(self.dropout) == 2, "critic.dropout", "two rates", self.dropout)
        for rate in self.dropout:
            _check(0 <= rate < 1, "critic.dropout", "rates in [0, 1)", rate)
        _check(self.gumbel_tau > 0, "critic.gumbel_tau", "> 0", self.gumbel_tau)
        _check(self.lr > 0, "critic.lr", "> 0", self.lr)
        _check(self.penalty_interval >= 1, "critic.penalty_interval", ">= 1", self.penalty_interval)
        _check(self.clip_norm >= 0, "critic.clip_norm", ">= 0", self.clip_norm)


@dataclass(frozen=True, kw_only=True)
class StructureConfig:
    """Learning the modality graphs from the generator's scores."""

    top_k_rate: float = 1e-4
    """Edges kept per user and modality, as a share of I."""
    min_k: int = 1
    """At least so many; with 0 the number is rounded down and may be 0, as in the released code."""
    refresh_interval: int = 1
    """Steps between two rebuilds of the modality graphs, T."""
    schedule: Literal["latest", "released"] = "latest"
    """`latest`: rebuilt from the newest edges of every user (the interactions of a user not seen
    yet); `released`: from the edges collected since the last rebuild, users and items paired as the
    released code pairs them, which leaves the graphs empty for most of an epoch."""

    def __post_init__(self) -> None:
        _check(0 <= self.top_k_rate <= 1, "structure.top_k_rate", "in [0, 1]", self.top_k_rate)
        _check(self.min_k >= 0, "structure.min_k", ">= 0", self.min_k)
        _check(
            self.refresh_interval >= 1, "structure.refresh_interval", ">= 1", self.refresh_interval
        )

    def edges_per_user(self, num_items: int) -> int:
        """The number k of edges per user and modality, for I items."""
        if self.min_k == 0:
            return int(num_items * self.top_k_rate)
        return min(num_items, max(self.min_k, round(num_items * self.top_k_rate)))


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the recommender's loss."""

    decay: float = 1e-5
    """L2 of the batch's final embeddings."""
    feat_reg_decay: float = 1e-5
    """L2 of the propagated features."""
    cl_weight: float = 0.03
    """InfoNCE between each modality view and the final user embedding."""
    temperature: float = 0.5
    """Of InfoNCE (tau)."""
    cl_eps: float = 0.0
    """Added inside InfoNCE's log; the released code has 1e-8."""
    g_weight: float = 1e-4
    """The generator's adversarial loss; 0 switches the critic off altogether."""

    def __post_init__(self) -> None:
        _check(self.temperature > 0, "loss.temperature", "> 0", self.temperature)
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            _check(value >= 0, f"loss.{item.name}", ">= 0", value)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop around the step."""

    epochs: int = 250
    """At most so many; early stopping usually ends sooner."""
    batch_size: int = 1024
    """Users per step; capped at the number of users that can be sampled."""
    lr: float = 5.5e-4
    """AdamW, of everything but the critic."""
    lr_decay: float = 0.96
    """The learning rate is lr * lr_decay^(epoch / 50); the released code never steps: 1.0."""
    patience: int = 7
    """Validations without a better Recall@20 before training stops."""
    seed: int = 2022
    """Of initialisation, sampling, dropout and noise."""
    shared_forward: bool = True
    """One model forward per step, whose detached outputs train the critic; the released code runs
    a second one."""
    clip_norm: float = 0.0
    """A step's gradient is scaled down to this norm, over all parameters but the critic's; 0 leaves
    it as it is."""
    deterministic: bool = True
    """Same seed, same bits, on the same machine. False lets torch take faster operations whose sums
    depend on the order in which threads arrive; a resumed run is then no longer exactly the run
    that was not stopped."""
    checkpoint_interval: int = 0
    """Steps between two checkpoints inside an epoch; 0: only one every ten minutes. After an epoch
    there is one anyway."""
    keep_checkpoints: int = 2
    """The newest one and older ones, for when it is damaged on disk."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "keep_checkpoints"):
            _check(getattr(self, name) >= 1, f"training.{name}", ">= 1", getattr(self, name))
        for name in ("clip_norm", "checkpoint_interval"):
            _check(getattr(self, name) >= 0, f"training.{name}", ">= 0", getattr(self, name))
        _check(self.lr > 0, "training.lr", "> 0", self.lr)
        _check(0 <= self.seed < 2**63, "training.seed", "in [0, 2^63)", self.seed)


@dataclass(frozen=True, kw_only=True)
class LightGCNConfig:
    """The LightGCN baseline (He et al., SIGIR 2020); width and seed are shared."""

    num_layers: int = 3
    """Propagation hops."""
    lr: float = 1e-3
    """Adam."""
    reg: float = 1e-4
    """L2 of the batch's ID embeddings."""
    batch_size: int = 2048
    """Edges per step."""
    epochs: int = 250
    """At most so many; they are short."""
    patience: int = 50
    """Validations without a better Recall@20 before training stops. Long: BPR first rests on a
    plateau at popularity, where a shorter one would end."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            _check(getattr(self, name) >= 1, f"lightgcn.{name}", ">= 1", getattr(self, name))
        for name in ("num_layers", "reg"):
            _check(getattr(self, name) >= 0, f"lightgcn.{name}", ">= 0", getattr(self, name))
        _check(self.lr > 0, "lightgcn.lr", "> 0", self.lr)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a run besides the data."""

    variant: str = "paper"
    """`paper` or `released`; names the preset that the other fields started from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lightgcn: LightGCNConfig = field(default_factory=LightGCNConfig)

    def __post_init__(self) -> None:
        _check(self.variant in VARIANTS, "variant", " or ".join(VARIANTS), self.variant)

    def replace(self, layer: Mapping[str, Any], *, source: str) -> Config:
        """A copy with the fields of a nested mapping replaced; ``source`` names it in errors."""
        return _replace(self, layer, source, "")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to TOML."""
        plain = dataclasses.asdict(self)
        plain["critic"]["dropout"] = list(self.critic.dropout)
        return plain

    def to_toml(self) -> str:
        """The complete configuration as TOML."""
        return tomli_w.dumps(self.to_dict())


def load_config(
    variant: str = "paper",
    *,
    preset: str | None = None,
    file: Path | None = None,
    settings: Iterable[str] = (),
) -> Config:
    """Builds a configuration from its layers.

    Args:
        variant: "paper" or "released".
        preset: the name of a data set's preset, see :func:`preset_names`.
        file: a TOML file with any of the fields.
        settings: "section.field=value" strings, values in TOML syntax (bare words are strings).

    Raises:
        InputError: an unknown name, an unreadable file, an unknown field or a bad value.
    """
    _check(variant in VARIANTS, "variant", " or ".join(VARIANTS), variant)
    config = Config().replace(_read_preset(variant), source=f"preset {variant}")
    if preset is not None:
        names = preset_names()
        _check(preset in names, "preset", f"one of {', '.join(names)}", preset)
        config = config.replace(_read_preset(preset), source=f"preset {preset}")
    if file is not None:
        config = config.replace(read_toml(file), source=str(file))
    return apply_settings(config, settings)


def apply_settings(config: Config, settings: Iterable[str]) -> Config:
    """A copy with "section.field=value" settings applied, one after the other.

    Raises:
        InputError: no such field, or not a value for it.
    """
    for setting in settings:
        shown = setting if setting.isprintable() else repr(setting)
        config = config.replace(_parse_setting(setting), source=f"--set {shown:.80}")
    return config


def preset_names() -> list[str]:
    """Data sets that have a preset."""
    folder = resources.files("mmssl") / "presets"
    names = (Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return sorted(name for name in names if name not in VARIANTS)


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file; one clear line if it can't be."""
    text = read_text(path, MAX_CONFIG_BYTES)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the parser's own, and numbers beyond int()
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not valid TOML: {reason:.200}") from error


def _read_preset(name: str) -> dict[str, Any]:
    text = (resources.files("mmssl") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _parse_setting(setting: str) -> dict[str, Any]:
    path, separator, text = setting.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise InputError(f"--set: expected section.field=value, got {setting!r:.80}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    for key in reversed(keys):
        value = {key: value}
    return value


def _replace(current: Any, layer: Mapping[str, Any], source: str, prefix: str) -> Any:
    hints = typing.get_type_hints(type(current))
    changes = {}
    for name, value in layer.items():
        where = f"{prefix}{name}"
        if name not in hints:
            raise InputError(
                f"{source}: unknown field {where!r:.60}, expected one of {', '.join(sorted(hints))}"
            )
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{source}: {where} is a section, got {_shown(value)}")
            changes[name] = _replace(getattr(current, name), value, source, f"{where}.")
        else:
            changes[name] = _convert(hints[name], value, f"{source}: {where}")
    try:
        return dataclasses.replace(current, **changes)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Checks a plain value against a field's type; ints become floats where a float is asked."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
    elif origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _convert(option, value, where)
            except InputError:
                continue
    elif origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(args):
            return tuple(_convert(a, v, where) for a, v in zip(args, value, strict=True))
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # not of NaN
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        if hint is not int or abs(value) <= MAX_INT:
            return value
    raise InputError(f"{where}: expected {_describe(hint)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A value of a file in a few characters, without a line end."""
    try:
        return f"{value!r:.60}"
    except ValueError:  # str() of an int may be refused
        return "a number far too large"


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        return {int: "an integer", float: "a finite number", bool: "true or false"}.get(
            hint, "a string"
        )
    if origin is Literal:
        return " or ".join(f'"{a}"' for a in args)
    if origin is tuple:
        return f"[{', '.join(_describe(a) for a in args)}]"
    return " or ".join(_describe(a) for a in args)
