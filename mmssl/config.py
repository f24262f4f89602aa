"""The complete configuration of a run: frozen dataclasses, read from and written to TOML.

A configuration is built in layers: the preset of the variant (``paper``, ``released`` or ``plus``),
the preset of a data set, the user's file, and single ``section.field=value`` settings. Each layer
may set any field; an unknown field or a value of the wrong type is an error that names it. No
environment variable or global state has an influence.

The sections of the models are defined with the models; this module composes them. Types are
converted by msgspec; ranges are checked on construction. Importing this module requires
the standard library only.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from mmssl.errors import InputError
from mmssl.files import MAX_CONFIG_BYTES, read_text
from mmssl.models.configs import (
    BM3Config,
    BPRMFConfig,
    CEASEConfig,
    ContentKNNConfig,
    EASEConfig,
    FreedomConfig,
    GFCFConfig,
    GRCNConfig,
    ItemKNNConfig,
    LatticeConfig,
    LayerGCNConfig,
    LightGCNConfig,
    MMGFConfig,
    SGLConfig,
    SLMRecConfig,
    VBPRConfig,
    XSimGCLConfig,
)
from mmssl.models.mmssl.config import CriticConfig, LossConfig, ModelConfig, StructureConfig
from mmssl.models.plus.config import PlusConfig
from mmssl.models.registry import DEFAULT_VARIANT, RUN_FIELDS, model_spec
from mmssl.section import VARIANTS, Section, Tune, check

_TYPE_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """The training loop."""

    epochs: Annotated[int, ">= 1"] = 250
    """Maximum number of epochs; early stopping usually ends training sooner."""
    batch_size: Annotated[int, ">= 1"] = 1024
    """Users per step, limited to the number of users that can be sampled."""
    lr: Annotated[float, "> 0", Tune(low=1e-4, high=1e-2, log=True)] = 5.5e-4
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
    wire: Literal["float32", "bfloat16"] = "float32"
    """Number format in which `--parallel sharded` sends rows of embeddings between processes."""
    deterministic: bool = True
    """Whether the same seed gives the same bits on the same machine. False lets torch choose faster
    operations whose sums depend on the order of the threads; a resumed run is then no longer
    identical to an uninterrupted one."""
    capture: Literal["auto", "never"] = "auto"
    """On a GPU, `auto` records the steps of `paper`, `plus`, `lightgcn` and `bprmf` as CUDA graphs;
    `never` starts one kernel at a time. Not run on a GPU yet."""
    checkpoint_interval: Annotated[int, ">= 0"] = 0
    """Steps between two checkpoints within an epoch; 0 means one every ten minutes. The end of an
    epoch always writes a checkpoint."""
    keep_checkpoints: Annotated[int, ">= 1"] = 2
    """Number of checkpoints to keep: the newest, and older ones in case it is damaged on disk."""


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """Everything that determines a run, apart from the data."""

    variant: Annotated[str, "paper, released or plus"] = "paper"
    """`paper`, `released` or `plus`; names the preset that the other fields started from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    bprmf: BPRMFConfig = field(default_factory=BPRMFConfig)
    lightgcn: LightGCNConfig = field(default_factory=LightGCNConfig)
    layergcn: LayerGCNConfig = field(default_factory=LayerGCNConfig)
    sgl: SGLConfig = field(default_factory=SGLConfig)
    xsimgcl: XSimGCLConfig = field(default_factory=XSimGCLConfig)
    ease: EASEConfig = field(default_factory=EASEConfig)
    cease: CEASEConfig = field(default_factory=CEASEConfig)
    gfcf: GFCFConfig = field(default_factory=GFCFConfig)
    mmgf: MMGFConfig = field(default_factory=MMGFConfig)
    itemknn: ItemKNNConfig = field(default_factory=ItemKNNConfig)
    contentknn: ContentKNNConfig = field(default_factory=ContentKNNConfig)
    freedom: FreedomConfig = field(default_factory=FreedomConfig)
    vbpr: VBPRConfig = field(default_factory=VBPRConfig)
    bm3: BM3Config = field(default_factory=BM3Config)
    lattice: LatticeConfig = field(default_factory=LatticeConfig)
    slmrec: SLMRecConfig = field(default_factory=SLMRecConfig)
    grcn: GRCNConfig = field(default_factory=GRCNConfig)
    plus: PlusConfig = field(default_factory=PlusConfig)

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
    variant: str | None = None,
    *,
    preset: str | None = None,
    file: Path | None = None,
    settings: Iterable[str] = (),
) -> Config:
    """Build a configuration from its layers.

    Args:
        variant: "paper", "released" or "plus"; default: that of the file, else "paper".
        preset: Name of a data set's preset, see :func:`preset_names`.
        file: TOML file that sets any of the fields.
        settings: "section.field=value" strings; a value that is not TOML is taken as a string.

    Raises:
        InputError: Unknown name, unreadable file or one of another variant, unknown field or bad
            value.
    """
    content = {} if file is None else read_toml(file)
    named = content.get("variant")
    if named is not None:
        check(named in VARIANTS, f"{file}: variant", "paper, released or plus", named)
        check(variant in (named, None), f"{file}: variant", f"{variant}, as chosen", named)
    variant = variant or named or DEFAULT_VARIANT
    check(variant in VARIANTS, "variant", "paper, released or plus", variant)
    config = Config().replace(read_preset(variant), source=f"preset {variant}")
    if preset is not None:
        names = preset_names()
        check(preset in names, "preset", f"one of {', '.join(names)}", preset)
        config = config.replace(read_preset(preset), source=f"preset {preset}")
    if file is not None:
        config = config.replace(content, source=str(file))
    return apply_settings(config, settings)


def apply_settings(config: Config, settings: Iterable[str]) -> Config:
    """Return a copy with "section.field=value" settings applied in order.

    Raises:
        InputError: Malformed setting, unknown field or bad value.
    """
    for setting in settings:
        shown = setting if setting.isprintable() else repr(setting)
        layer = parse_setting(setting)
        if "variant" in layer:  # it also decides what the other fields start from
            raise InputError(
                f"--set {shown:.80}: expected section.field, got the variant, which --variant "
                "chooses when a run begins"
            )
        config = config.replace(layer, source=f"--set {shown:.80}")
    return config


def parse_setting(setting: str) -> dict[str, Any]:
    """Return a "section.field=value" setting as a nested mapping.

    Raises:
        InputError: Not of that form.
    """
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


def without_effect(layer: Mapping[str, Any], model: str, variant: str) -> dict[str, str]:
    """Return the fields of a valid layer that the chosen model does not read.

    Args:
        layer: Nested mapping of sections and fields.
        model: Name of the model.
        variant: Its variant; ignored by models without variants.

    Returns:
        By ``"section.field"``, one clause that says so and names the field of the same name in a
        section of the model, if it has one.
    """
    spec, plain = model_spec(model, variant), Config().to_dict()
    clauses = {}
    for section, values in layer.items():
        for field_name in values if isinstance(values, Mapping) else ():
            name = f"{section}.{field_name}"
            if name in RUN_FIELDS or spec.reads_field(name):
                continue
            own = [s for s in spec.reads if s in plain and field_name in plain[s]]
            clauses[name] = f"has no effect on {spec.option(variant)}" + (
                f", which reads {own[0]}.{field_name}" if own else ""
            )
    return clauses


def ignored_options(
    model: str,
    config: Config,
    *,
    variant: str | None = None,
    preset: str | None = None,
    file: Path | None = None,
) -> list[str]:
    """Return one line for each option that the chosen model does not read, in whole or in part.

    A preset may hold fields of several models: it is named if the model reads none of them. Of a
    file, the fields are named that the model does not read and that differ from their defaults, so
    that ``config.toml`` of a run, which has the fields of all models, serves for another one.

    Args:
        model: Name of the model.
        config: Its complete configuration.
        variant: The variant that was asked for; None if none was.
        preset: The preset that was asked for.
        file: The TOML file that was asked for.
    """
    spec = model_spec(model, config.variant)
    chosen = spec.option(config.variant)
    lines = []
    if variant is not None and not spec.variants:
        lines.append(f"variant {variant} has no effect on {chosen}")
    default = load_config(config.variant, preset=preset).to_dict()
    for option, name, layer in (
        ("preset", preset, {} if preset is None else read_preset(preset)),
        ("config", file, {} if file is None else read_toml(file)),
    ):
        clauses = without_effect(layer, model, config.variant)
        fields = sum(len(section) for section in layer.values() if isinstance(section, dict))
        if fields and len(clauses) == fields:
            lines.append(f"{option} {name} has no effect on {chosen}")
        elif option == "config":
            lines += _named(f"{option} {name}", _changes(clauses, layer, default))
    return lines


def _changes(
    clauses: Mapping[str, str], layer: Mapping[str, Any], default: Mapping[str, Any]
) -> dict[str, str]:
    """Return the clauses of those fields of a layer that differ from the default."""
    parts = {name: name.split(".", 1) for name in clauses}
    return {
        name: clauses[name]
        for name, (section, field_name) in parts.items()
        if layer[section][field_name] != default[section][field_name]
    }


def _named(source: str, clauses: Mapping[str, str], shown: int = 5) -> list[str]:
    """Return a line that names the first fields without effect and counts the rest."""
    if not clauses:
        return []
    (first, clause), *rest = clauses.items()
    others = [name for name, _ in rest[: shown - 1]]
    if len(rest) > len(others):
        others.append(f"{len(rest) - len(others)} more")
    return [f"{source}: {first} {clause}" + (f"; nor have {', '.join(others)}" if others else "")]


def preset_names() -> list[str]:
    """Return the names of the data sets that have a preset."""
    folder = resources.files("mmssl") / "presets"
    names = (Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return sorted(name for name in names if name not in VARIANTS)


def read_preset(name: str) -> dict[str, Any]:
    """Return the fields of a preset, by its name."""
    file = resources.files("mmssl") / "presets" / f"{name}.toml"
    return _parse_toml(file.read_text(encoding="utf-8"))


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
            old = getattr(current, name)
            if isinstance(old, dict) and isinstance(value, Mapping):
                value = {**old, **value}  # like a section: a layer sets single entries
            try:
                changes[name] = msgspec.convert(value, hints[name])
            except (msgspec.ValidationError, UnicodeEncodeError):  # the latter of undecodable bytes
                check(False, where, _describe(hints[name]), value)
        else:
            check(isinstance(value, Mapping), where, "a section", value)
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


def _describe(hint: Any) -> str:
    """Return a field's type in the words of an error message."""
    if hint in _TYPE_NAMES:
        return _TYPE_NAMES[hint]
    names = [f'"{x}"' if isinstance(x, str) else _describe(x) for x in typing.get_args(hint)]
    if typing.get_origin(hint) is dict:
        return "a table of numbers"
    return f"[{', '.join(names)}]" if typing.get_origin(hint) is tuple else " or ".join(names)
