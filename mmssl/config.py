"""The complete configuration of a run: frozen dataclasses, read from and written to TOML.

A configuration is built in layers: the preset of the variant (``paper`` or ``released``), the
preset of a data set, the user's file, and single ``section.field=value`` settings. Each layer may
set any field; an unknown field or a value of the wrong type is an error that names it. No
environment variable or global state has an influence.

Types are converted by msgspec; ranges are checked on construction. Importing this module requires
the standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from mmssl.errors import InputError
from mmssl.files import MAX_CONFIG_BYTES, read_text

VARIANTS = ("paper", "released")

_MAX_INT = 2**63 - 1  # the largest integer that torch accepts
_TYPE_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}
_RANGES: dict[str, Callable[[Any], bool]] = {
    ">= 0": lambda x: x >= 0,
    ">= 1": lambda x: x >= 1,
    "> 0": lambda x: x > 0,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "in [0, 1]": lambda x: 0 <= x <= 1,
    "two rates in [0, 1)": lambda x: len(x) == 2 and all(0 <= rate < 1 for rate in x),
    '>= 2 or "paper"': lambda x: x == "paper" or x >= 2,
    "paper or released": lambda x: x in VARIANTS,
}

T = TypeVar("T")


def _check(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        try:
            shown = f"{got!r:.60}"
        except ValueError:  # repr() of a very large integer is refused
            shown = "a number with too many digits"
        raise InputError(f"{name}: expected {expected}, got {shown}")


class Section:
    """Base of a configuration's dataclasses: validates the values on construction.

    Numbers must be finite and within int64. The range of a field, one of `_RANGES`, is the metadata
    of its annotation.
    """

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value, where = getattr(self, name), f"{section}.{name}".lstrip(".")
            if isinstance(value, float):
                _check(math.isfinite(value), where, "a finite number", value)
            elif isinstance(value, int):
                _check(abs(value) <= _MAX_INT, where, "an integer below 2^63", value)
            for expected in getattr(hint, "__metadata__", ()):
                _check(_RANGES[expected](value), where, expected, value)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The recommender (docs/model.md; Wei et al., WWW 2023, section 3)."""

    embedding_dim: Annotated[int, ">= 1"] = 64
    """Width D of the ID embeddings and of the projected features."""
    num_layers: Annotated[int, ">= 1"] = 2
    """Number of propagation layers over the interaction graph, L."""
    num_feature_layers: Annotated[int, ">= 1"] = 1
    """Number of propagation layers of the projected features, each feeding the next."""
    normalization: Literal["row_sqrt", "sym", "row"] = "row_sqrt"
    """Normalization of the interaction graph and of the modality graphs."""
    attention: Literal["cross_modal", "identity"] = "cross_modal"
    """`cross_modal`: multi-head attention over the modality views of a node; `identity`: what the
    released code computes, where the attention map cancels and only the output projection acts."""
    num_heads: Annotated[int, ">= 1"] = 4
    """Number of attention heads, H; must divide embedding_dim."""
    id_weight: float = 0.36
    """Weight of the normalized attention output added to the ID embedding (eta)."""
    feat_weight: float = 0.55
    """Weight of the normalized modality features in the final embedding (omega)."""
    dropout: Annotated[float, "in [0, 1)"] = 0.2
    """Dropout rate of the projected features."""
    final_softmax: bool = False
    """Whether the last propagation layer applies a softmax over D, as the released code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"a divisor of model.embedding_dim = {self.embedding_dim}"
        divides = self.embedding_dim % self.num_heads == 0
        _check(divides, "model.num_heads", expected, self.num_heads)


@dataclass(frozen=True, kw_only=True)
class CriticConfig(Section):
    """The critic of the adversarial task and the rows that it scores (WGAN-GP)."""

    hidden: Annotated[int | Literal["paper"], '>= 2 or "paper"'] = "paper"
    """Width of the first hidden layer; "paper" means I/4. The second is half as wide."""
    negative_slope: float = 0.2
    """Negative slope of the LeakyReLU; the released code uses 1.0, which makes it the identity."""
    dropout: Annotated[tuple[float, float], "two rates in [0, 1)"] = (0.31, 0.5)
    """Dropout rates after the first and the second hidden layer."""
    gumbel_tau: Annotated[float, "> 0"] = 0.005
    """Temperature of the Gumbel softmax over a user's interaction row."""
    gumbel_scale: float = 1e-5
    """Factor of the Gumbel noise."""
    gumbel_divides: Literal["logit", "noise"] = "logit"
    """What the temperature divides: the whole logit or, in the released code, only the noise."""
    similarity_scale: float = 100.0
    """Weight of the model's own similarity row in the real row (zeta)."""
    gp_weight: float = 1.0
    """Weight of the gradient penalty."""
    penalty_interval: Annotated[int, ">= 1"] = 1
    """Steps n between two gradient penalties, each of which is weighted by n (the lazy
    regularization of Karras et al., CVPR 2020)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of the critic's matrix products and of the activations between them; sums,
    statistics, scores and parameters stay float32."""
    lr: Annotated[float, "> 0"] = 3e-4
    """Learning rate of Adam, with betas (0.5, 0.9)."""
    clip_norm: Annotated[float, ">= 0"] = 0.0
    """Maximum norm of the gradient over all parameters of the critic; 0 disables clipping."""


@dataclass(frozen=True, kw_only=True)
class StructureConfig(Section):
    """How the modality graphs are learned from the scores of the recommender."""

    top_k_rate: Annotated[float, "in [0, 1]"] = 1e-4
    """Edges kept per user and modality, as a fraction of I."""
    min_k: Annotated[int, ">= 0"] = 1
    """Minimum number of edges per user and modality; with 0 the number is rounded down and may be
    0, as in the released code."""
    refresh_interval: Annotated[int, ">= 1"] = 1
    """Steps between two rebuilds of the modality graphs, T."""
    schedule: Literal["latest", "released"] = "latest"
    """`latest`: rebuild from the newest edges of every user (the interactions of a user that has
    not been sampled yet); `released`: rebuild from the edges collected since the last rebuild, with
    users and items paired as in the released code, which leaves the graphs empty for most of an
    epoch."""

    def edges_per_user(self, num_items: int) -> int:
        """Return the number k of edges per user and modality for I items."""
        if self.min_k == 0:
            return int(num_items * self.top_k_rate)
        return min(num_items, max(self.min_k, round(num_items * self.top_k_rate)))


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """Weights of the terms of the recommender's loss."""

    decay: Annotated[float, ">= 0"] = 1e-5
    """Weight of the L2 penalty on the batch's final embeddings."""
    feat_reg_decay: Annotated[float, ">= 0"] = 1e-5
    """Weight of the L2 penalty on the propagated features."""
    cl_weight: Annotated[float, ">= 0"] = 0.03
    """Weight of InfoNCE between each modality view and the final user embedding."""
    temperature: Annotated[float, "> 0"] = 0.5
    """Temperature of InfoNCE (tau)."""
    cl_eps: Annotated[float, ">= 0"] = 0.0
    """Constant added inside the logarithm of InfoNCE; the released code uses 1e-8."""
    g_weight: Annotated[float, ">= 0"] = 1e-4
    """Weight of the recommender's adversarial loss; 0 disables the critic."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """The training loop."""

    epochs: Annotated[int, ">= 1"] = 250
    """Maximum number of epochs; early stopping usually ends training sooner."""
    batch_size: Annotated[int, ">= 1"] = 1024
    """Users per step, limited to the number of users that can be sampled."""
    lr: Annotated[float, "> 0"] = 5.5e-4
    """Learning rate of AdamW, for all parameters except the critic's."""
    lr_decay: float = 0.96
    """The learning rate is lr * lr_decay^(epoch / 50). The released code never steps its scheduler,
    which corresponds to 1.0."""
    patience: Annotated[int, ">= 1"] = 7
    """Validations without an improvement of Recall@20 before training stops."""
    seed: Annotated[int, ">= 0"] = 2022
    """Seed of initialization, sampling, dropout and noise."""
    shared_forward: bool = True
    """Whether the critic is trained on the detached outputs of the step's only forward pass; the
    released code runs a second one."""
    clip_norm: Annotated[float, ">= 0"] = 0.0
    """Maximum norm of the gradient over all parameters except the critic's; 0 disables clipping."""
    deterministic: bool = True
    """Whether the same seed gives the same bits on the same machine. False lets torch choose faster
    operations whose sums depend on the order of the threads; a resumed run is then no longer
    identical to an uninterrupted one."""
    checkpoint_interval: Annotated[int, ">= 0"] = 0
    """Steps between two checkpoints within an epoch; 0 means one every ten minutes. The end of an
    epoch always writes a checkpoint."""
    keep_checkpoints: Annotated[int, ">= 1"] = 2
    """Number of checkpoints to keep: the newest, and older ones in case it is damaged on disk."""


@dataclass(frozen=True, kw_only=True)
class LightGCNConfig(Section):
    """The LightGCN baseline (He et al., SIGIR 2020); width and seed are those of MMSSL."""

    num_layers: Annotated[int, ">= 0"] = 3
    """Number of propagation layers."""
    lr: Annotated[float, "> 0"] = 1e-3
    """Learning rate of Adam."""
    reg: Annotated[float, ">= 0"] = 1e-4
    """Weight of the L2 penalty on the batch's ID embeddings."""
    batch_size: Annotated[int, ">= 1"] = 2048
    """Edges per step."""
    epochs: Annotated[int, ">= 1"] = 250
    """Maximum number of epochs."""
    patience: Annotated[int, ">= 1"] = 50
    """Validations without an improvement of Recall@20 before training stops. BPR first stays on a
    plateau at the level of popularity, where a shorter patience would stop it."""


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """Everything that determines a run, apart from the data."""

    variant: Annotated[str, "paper or released"] = "paper"
    """`paper` or `released`; names the preset that the other fields started from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lightgcn: LightGCNConfig = field(default_factory=LightGCNConfig)

    def replace(self, layer: Mapping[str, Any], *, source: str) -> Config:
        """Return a copy with the fields of a nested mapping replaced.

        Raises:
            InputError: Unknown field or bad value; the message begins with ``source``.
        """
        return replace_fields(self, layer, source=source)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as they are written to TOML."""
        plain = dataclasses.asdict(self)
        plain["critic"]["dropout"] = list(self.critic.dropout)
        return plain

    def to_toml(self) -> str:
        """Return the complete configuration as TOML."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())


def load_config(
    variant: str = "paper",
    *,
    preset: str | None = None,
    file: Path | None = None,
    settings: Iterable[str] = (),
) -> Config:
    """Build a configuration from its layers.

    Args:
        variant: "paper" or "released".
        preset: Name of a data set's preset, see :func:`preset_names`.
        file: TOML file that sets any of the fields.
        settings: "section.field=value" strings; a value that is not TOML is taken as a string.

    Raises:
        InputError: Unknown name, unreadable file, unknown field or bad value.
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
    """Return a copy with "section.field=value" settings applied in order.

    Raises:
        InputError: Malformed setting, unknown field or bad value.
    """
    for setting in settings:
        shown = setting if setting.isprintable() else repr(setting)
        config = config.replace(_parse_setting(setting), source=f"--set {shown:.80}")
    return config


def preset_names() -> list[str]:
    """Return the names of the data sets that have a preset."""
    folder = resources.files("mmssl") / "presets"
    names = (Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return sorted(name for name in names if name not in VARIANTS)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: The file cannot be read or is not valid TOML.
    """
    text = read_text(path, MAX_CONFIG_BYTES)
    try:
        return _parse_toml(text)
    except (ValueError, RecursionError) as error:  # ValueError also for integers beyond int()
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not valid TOML: {reason:.200}") from error


def replace_fields(current: T, layer: Mapping[str, Any], *, source: str, prefix: str = "") -> T:
    """Return a copy of a dataclass with the fields of a nested mapping replaced.

    Args:
        current: Dataclass whose fields are plain values or dataclasses.
        layer: Plain values as a TOML file gives them. msgspec converts them to the types of the
            fields: an integer is accepted for a float and a list for a tuple, nothing else.
        source: File or option that the values come from; begins every error message.
        prefix: Section of ``current`` in error messages, with its dot.

    Raises:
        InputError: Unknown field, a value of the wrong type, or one that the dataclass refuses.
    """
    import msgspec

    hints = typing.get_type_hints(type(current))
    changes: dict[str, Any] = {}
    for name, value in layer.items():
        where = f"{source}: {prefix}{name}"
        if name not in hints:
            known = ", ".join(sorted(hints))
            name = prefix + name
            raise InputError(f"{source}: unknown field {name!r:.60}, expected one of {known}")
        if not dataclasses.is_dataclass(hints[name]):
            try:
                changes[name] = msgspec.convert(value, hints[name])
            except (msgspec.ValidationError, UnicodeEncodeError):  # the latter of undecodable bytes
                _check(False, where, _describe(hints[name]), value)
        else:
            _check(isinstance(value, Mapping), where, "a section", value)
            nested, path = getattr(current, name), f"{prefix}{name}."
            changes[name] = replace_fields(nested, value, source=source, prefix=path)
    try:
        return dataclasses.replace(current, **changes)  # type: ignore[type-var]
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _read_preset(name: str) -> dict[str, Any]:
    file = resources.files("mmssl") / "presets" / f"{name}.toml"
    return _parse_toml(file.read_text(encoding="utf-8"))


def _parse_setting(setting: str) -> dict[str, Any]:
    path, separator, text = setting.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise InputError(f"--set: expected section.field=value, got {setting!r:.80}")
    try:
        value = _parse_toml(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    for key in reversed(keys):
        value = {key: value}
    return value


def _describe(hint: Any) -> str:
    """Return a field's type in the words of an error message."""
    if hint in _TYPE_NAMES:
        return _TYPE_NAMES[hint]
    names = [f'"{x}"' if isinstance(x, str) else _describe(x) for x in typing.get_args(hint)]
    return f"[{', '.join(names)}]" if typing.get_origin(hint) is tuple else " or ".join(names)
