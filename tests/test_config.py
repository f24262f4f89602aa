"""Configuration: layers, exact round trips, one-line errors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from mmssl.config import (
    VARIANTS,
    Config,
    TrainingConfig,
    load_config,
    preset_names,
    read_toml,
)
from mmssl.errors import InputError


def test_every_preset_loads_in_every_variant():
    assert {"tiktok", "baby", "sports", "allrecipes", "ml-100k"} <= set(preset_names())
    for preset in preset_names():
        for variant in VARIANTS:
            assert load_config(variant, preset=preset).variant == variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(variant, tmp_path):
    config = load_config(variant, preset="tiktok", settings=["critic.hidden=512"])
    (tmp_path / "config.toml").write_text(config.to_toml())
    again = Config().replace(read_toml(tmp_path / "config.toml"), source="file")
    assert again == config


def test_layers_override_in_order(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[training]\nlr = 1\nseed = 5\n")
    config = load_config(
        "released", preset="tiktok", file=file, settings=["training.seed=6", "training.seed=7"]
    )
    assert config.training.lr == 1.0 and isinstance(config.training.lr, float)
    assert config.training.seed == 7
    assert config.loss.g_weight == 1.8e-3  # from the preset
    assert config.model.final_softmax  # from the variant


def test_variants_differ_where_documented():
    paper, released = (load_config(v).to_dict() for v in ("paper", "released"))
    differing = {
        f"{section}.{name}"
        for section, values in paper.items()
        if isinstance(values, dict)
        for name in values
        if values[name] != released[section][name]
    }
    assert differing == {
        "model.attention",
        "model.final_softmax",
        "critic.negative_slope",
        "critic.gumbel_divides",
        "structure.min_k",
        "structure.schedule",
        "loss.cl_eps",
        "training.lr_decay",
        "training.shared_forward",
    }


def test_tiktok_hyper_parameters_are_the_papers():
    config = load_config("paper", preset="tiktok")
    assert (config.training.lr, config.critic.lr) == (5.4e-4, 3e-4)
    assert (config.loss.g_weight, config.critic.gumbel_tau) == (1.8e-3, 0.002)
    assert config.structure.edges_per_user(6710) == 67
    assert load_config("released", preset="baby").structure.edges_per_user(7050) == 0


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("nothing", ["section.field=value"]),
        ("model.width=1", ["unknown field 'model.width'", "embedding_dim"]),
        ("models.width=1", ["unknown field 'models'"]),
        ("model=1", ["model: expected a section"]),
        ("model.dropout=1.0", ["model.dropout", "[0, 1)", "1.0"]),
        ("model.dropout=nan", ["finite number"]),
        ("model.final_softmax=1", ["true or false", "1"]),
        ("model.embedding_dim=64.0", ["an integer", "64.0"]),
        ("model.num_heads=true", ["an integer", "True"]),
        ("model.num_heads=3", ["model.num_heads", "a divisor of model.embedding_dim = 64", "3"]),
        (
            "model.embedding_dim=9223372036854775808",
            ["an integer below 2^63", "9223372036854775808"],
        ),
        ("critic.similarity_scale=-inf", ["critic.similarity_scale", "a finite number", "-inf"]),
        ("critic.dropout=[0.1, 1.0]", ["critic.dropout", "two rates in [0, 1)", "1.0"]),
        ("critic.hidden=1", ["critic.hidden", '>= 2 or "paper"', "got 1"]),
        ("training.seed=-1", ["training.seed", ">= 0", "-1"]),
        ("critic.dropout=[0.1]", ["[a finite number, a finite number]"]),
        ("critic.hidden=wide", ['an integer or "paper"', "'wide'"]),
        ("loss.temperature=0", ["loss.temperature", "> 0"]),
        ("structure.schedule=never", ['"latest" or "released"', "'never'"]),
        ("structure.schedule=\udcff", ['"latest" or "released"', "udcff"]),
    ],
)
def test_errors(setting, words):
    with pytest.raises(InputError) as caught:
        load_config(settings=[setting])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_values_are_checked_on_construction(value):
    with pytest.raises(InputError, match=r"^training\.lr: expected "):
        TrainingConfig(lr=value)


def test_import_needs_only_the_standard_library():
    code = "import sys, mmssl.config; mmssl.config.Config(); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"msgspec", "numpy", "tomli", "tomli_w", "torch"}


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config().model.embedding_dim = 3  # type: ignore[misc]
