"""Search spaces: what is accepted, and one line for what is not."""

from __future__ import annotations

import sys

import pytest

from mmssl.cli import main
from mmssl.config import load_config
from mmssl.errors import InputError
from mmssl.models.registry import model_specs

pytest.importorskip("optuna")
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse(text: str, model: str = "mmssl"):
    from mmssl.tuning.space import parse_space

    return parse_space(tomllib.loads(text), load_config("paper"), model, "s.toml")


def test_every_kind_of_field():
    space = parse(
        """
        [space]
        "training.lr" = {low = 1e-4, high = 1e-2, log = true}
        "training.batch_size" = {low = 256, high = 1024, step = 256}
        "critic.hidden" = {choices = [128, "paper"]}
        "critic.dropout" = {choices = [[0.1, 0.2], [0.31, 0.5]]}
        model.dropout = {low = 0, high = 0.5, step = 0.1}
        """
    )
    names = list(space.parameters)
    assert names[-1] == "model.dropout" and len(space.distributions()) == 5
    base = load_config("paper")
    values = space.values_of(base)
    assert values is not None and space.apply(base, values) == base
    changed = space.apply(base, {"critic.dropout": "[0.1, 0.2]", "training.batch_size": 512})
    assert changed.critic.dropout == (0.1, 0.2) and changed.training.batch_size == 512
    for value, inside in ((0.1, True), (0.25, False), (0.6, False)):
        start = base.replace({"model": {"dropout": value}}, source="test")
        assert (space.values_of(start) is not None) == inside
    outside = parse('[space]\n"training.lr" = {low = 0.1, high = 0.2}')
    assert outside.values_of(base) is None


def test_lightgcn():
    space = parse('[space]\n"lightgcn.lr" = {low = 1e-3, high = 1e-1, log = true}', "lightgcn")
    assert list(space.parameters) == ["lightgcn.lr"]
    parse('[space]\n"model.embedding_dim" = {choices = [32, 64]}', "lightgcn")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["[space]"]),
        ("[space]", ["[space]"]),
        ("[spaces]", ["[spaces]"]),
        ('[space]\n"training.rate" = {low = 1, high = 2}', ["training.rate", "lr"]),
        ('[space]\n"train.lr" = {low = 1, high = 2}', ["train.lr", "training"]),
        ('[space]\n"variant" = {choices = ["paper"]}', ["variant", "section.field"]),
        ('[space]\n"training.lr" = 3', ["training.lr", "3"]),
        ('[space]\n"training.lr" = {low = 1}', ["training.lr: ", "missing", "`high`"]),
        ('[space]\n"training.lr" = {lo = 1, high = 2}', ["training.lr: ", "unknown field `lo`"]),
        ('[space]\n"training.lr" = {low = 2, high = 1}', ["low < high", "2 and 1"]),
        ('[space]\n"training.lr" = {low = "a", high = 1}', ["lr.low: ", "`float`", "`str`"]),
        ('[space]\n"training.lr" = {low = nan, high = 1}', ["low < high", "nan and 1"]),
        ('[space]\n"training.lr" = {low = 0.0, high = 1.0, log = true}', ["training.lr", "0"]),
        ('[space]\n"loss.decay" = {low = 0.0, high = 1.0, log = true}', ["log", "low > 0"]),
        (
            '[space]\n"loss.decay" = {low = 0.0, high = 1.0, log = 1}',
            ["decay.log: ", "`bool`", "`int`"],
        ),
        (
            '[space]\n"loss.decay" = {low = 0.0, high = inf}',
            ["loss.decay", "a finite number", "inf"],
        ),
        ('[space]\n"loss.decay" = {low = 0.0, high = 1.0, step = 2.0}', ["step", "2"]),
        ('[space]\n"model.dropout" = {low = 0.0, high = 1.0}', ["model.dropout", "[0, 1)"]),
        (
            '[space]\n"model.num_layers" = {low = 1.5, high = 3}',
            ["layers.low: ", "`int`", "`float`"],
        ),
        ('[space]\n"model.num_layers" = {low = 0, high = 3}', ["num_layers", ">= 1"]),
        ('[space]\n"model.num_layers" = {low = 1, high = 4, step = 1.5}', ["step: ", "`int"]),
        ('[space]\n"model.num_heads" = {low = 3, high = 8}', ["num_heads", "divisor"]),
        ('[space]\n"model.attention" = {low = 1, high = 2}', ["choices"]),
        ('[space]\n"model.attention" = {choices = ["none"]}', ["attention", "none"]),
        ('[space]\n"critic.hidden" = {choices = []}', ["hidden.choices: ", "length >= 1"]),
        ('[space]\n"critic.hidden" = {choices = 64}', ["hidden.choices: ", "`array`", "`int`"]),
        ('[space]\n"critic.hidden" = {choices = [64, 64]}', ["different"]),
        ('[space]\n"critic.hidden" = {choices = [64], low = 1}', ["unknown field `low`"]),
        ('[space]\n"training.seed" = {low = 1, high = 9}', ["seed", "--seeds"]),
        ('[space]\n"lightgcn.lr" = {low = 0.1, high = 0.2}', ["no effect", "mmssl"]),
        ('[space]\n"model.dropout" = {low = 0.1, high = 0.2}\n[search]\nx = 1', ["search.x"]),
        ('search = 1\n[space]\n"model.dropout" = {low = 0.1, high = 0.2}', ["search", "a section"]),
        (
            '[space]\n"model.dropout" = {low = 0.1, high = 0.2}\n[search]\nsampler = "grid"',
            ["search.sampler", '"tpe" or "random"', "grid"],
        ),
        (
            '[space]\n"model.dropout" = {low = 0.1, high = 0.2}\n[search]\nwarmup_epochs = 0',
            ["warmup_epochs", ">= 1"],
        ),
    ],
)
def test_bad_spaces(text, words):
    with pytest.raises(InputError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("s.toml: ") and "\n" not in message
    for word in words:
        assert word in message, (word, message)


def test_field_that_the_model_does_not_read():
    with pytest.raises(InputError, match="no effect on --model lightgcn"):
        parse('[space]\n"training.lr" = {low = 0.1, high = 0.2}', "lightgcn")


def test_bad_commands_write_nothing(tiny_directory, tmp_path, capsys):
    space, out = tmp_path / "space.toml", tmp_path / "study"
    space.write_text('[space]\n"training.lr" = {low = 1e-4, high = 1e-2, log = true}')
    bad = tmp_path / "bad.toml"
    bad.write_text('[space]\n"training.rate" = {low = 1, high = 2}')
    data, good = ["--data", str(tiny_directory)], ["--space", str(space)]
    for options, word in (
        (good, "--data"),
        ([*data, "--model", "popularity"], "no field to search"),
        ([*data, "--space", str(bad)], "training.rate"),
        ([*data, "--space", str(tmp_path / "none.toml")], "none.toml"),
        ([*data, *good, "--trials", "0"], "--trials"),
        ([*data, *good, "--jobs", "0"], "--jobs"),
        ([*data, *good, "--timeout", "0"], "--timeout"),
        ([*data, *good, "--model", "popularity"], "popularity"),
        ([*data, *good, "--track", "paper"], "'paper'"),
        (["--resume"], "not a study"),
        (["--resume", "--epochs", "3"], "--epochs"),
        (["--join"], "not a study"),
        (["--join", "--jobs", "2"], "--jobs"),
    ):
        assert main(["tune", "--out", str(out), *options]) == 2, options
        printed, err = capsys.readouterr()
        assert printed == "" and err.count("\n") == 1 and word in err, err
        assert not out.exists()


@pytest.mark.parametrize(
    "spec", model_specs(), ids=lambda spec: "-".join((spec.name, *spec.variants[:1]))
)
def test_the_space_of_every_model(spec):
    """It is valid and holds the model's own values, except where a word stands for a rule."""
    from mmssl.tuning.defaults import default_space
    from mmssl.tuning.space import parse_space

    config = load_config(*spec.variants[:1])
    if spec.name == "popularity":
        with pytest.raises(InputError, match="tune: model popularity has no field to search"):
            default_space(spec.name, config)
        return
    space = parse_space(default_space(spec.name, config), config, spec.name, spec.name)
    for name, parameter in space.parameters.items():
        section, field = name.split(".")
        own = getattr(getattr(config, section), field)
        assert isinstance(own, str) or parameter.encode(own) is not None, name
    if spec.schedule is not None:
        assert f"{spec.schedule}.lr" in space.parameters
        assert space.search.warmup_epochs == getattr(config, spec.schedule).patience
