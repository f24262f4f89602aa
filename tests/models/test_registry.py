"""Every registered model: its entry, its task, and a run that is stopped and resumed."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from mmssl.config import Config, load_config
from mmssl.errors import InputError
from mmssl.models.registry import ModelSpec, changeable_fields, model_spec, model_specs
from mmssl.training.checkpoint import load_checkpoint
from mmssl.training.fit import fit_run
from mmssl.training.guards import Interrupted
from mmssl.training.run import RunDirectory
from mmssl.training.task import Task, create_task

SECTIONS = {name: fields for name, fields in Config().to_dict().items() if isinstance(fields, dict)}
FIELDS = {f"{name}.{field}" for name, fields in SECTIONS.items() for field in fields}
ENTRIES = [pytest.param(s, id="-".join((s.name, *s.variants[:1]))) for s in model_specs()]
TRAINED = [entry for entry in ENTRIES if entry.values[0].schedule is not None]


def config_of(spec: ModelSpec, *settings: str) -> Config:
    return load_config(*spec.variants[:1], settings=settings)


@pytest.mark.parametrize("spec", ENTRIES)
def test_entry(spec):
    assert all(model_spec(spec.name, variant) is spec for variant in spec.variants or ("paper",))
    assert issubclass(spec.load_task(), Task) and not inspect.isabstract(spec.load_task())
    assert set(spec.reads) <= FIELDS | set(SECTIONS)
    assert set(spec.changeable) <= FIELDS
    assert all(map(spec.reads_field, spec.changeable))
    if spec.schedule is not None:
        # What the trainer, tuning and the message about divergence look up.
        assert {"epochs", "patience", "lr"} <= set(SECTIONS[spec.schedule])
        assert f"{spec.schedule}.epochs" in spec.changeable


def test_every_section_is_read_by_a_model():
    reads = {name.partition(".")[0] for spec in model_specs() for name in spec.reads}
    assert set(SECTIONS) <= reads


def test_unknown_model():
    with pytest.raises(InputError, match="model: expected one of mmssl, .*, got 'gpt'"):
        model_spec("gpt", "paper")
    with pytest.raises(InputError, match="model: 'plus' is a variant of mmssl: variant='plus'"):
        model_spec("plus", "paper")
    with pytest.raises(InputError, match="variant: expected one of paper, .*, got 'best'"):
        model_spec("mmssl", "best")
    assert len(set(changeable_fields())) == len(changeable_fields())


@pytest.mark.parametrize("spec", ENTRIES)
def test_task(tiny_dataset, spec):
    task = create_task(spec.name, tiny_dataset, config_of(spec))
    scorer = task.embed()
    scorer.check(80, 50)
    assert not any(tensor.requires_grad for tensor in scorer.tensors().values())
    if spec.schedule is None:
        assert task.epochs == 0 and task.state() == {}
        return
    settings = getattr(task.config, spec.schedule)
    assert (task.epochs, task.patience) == (settings.epochs, settings.patience)
    task.start_epoch(0, 0)
    assert task.learning_rate == settings.lr
    terms = task.step(0)
    assert terms.shape == (len(task.terms),) and not terms.requires_grad
    assert set(task.objective) <= set(task.terms)
    assert not torch.equal(task.embed().item, scorer.item)


@pytest.mark.parametrize("spec", ENTRIES)
def test_modality_without_content(tiny_dataset, spec):
    """No item has a picture, for example after a filter."""
    features = {**tiny_dataset.features}
    name = min(features)
    features[name] = np.zeros_like(features[name])
    dataset = dataclasses.replace(tiny_dataset, features=features)
    task = create_task(spec.name, dataset, config_of(spec))
    if spec.schedule is not None:
        task.start_epoch(0, 0)
        assert task.step(0).isfinite().all()
    for scorer in (task.embed(), task.finish(task.embed())):
        assert all(tensor.isfinite().all() for tensor in scorer.tensors().values())


@pytest.mark.parametrize("spec", TRAINED)
@pytest.mark.parametrize("stop_after", [0, 2])
def test_stopped_and_resumed_is_bitwise_the_same(tiny_dataset, tmp_path, spec, stop_after):
    model, section = spec.name, spec.schedule
    config = config_of(spec, f"{section}.epochs=2", f"{section}.batch_size=40")
    polls, steps = iter(range(10_000)), create_task(model, tiny_dataset, config).steps_per_epoch
    assert steps > 2
    whole, part = (
        RunDirectory.new(tmp_path / name, model, tmp_path, tiny_dataset, config)
        for name in ("whole", "part")
    )
    fit_run(whole, tiny_dataset, show_progress=False)
    with pytest.raises(Interrupted):
        fit_run(
            part,
            tiny_dataset,
            show_progress=False,
            should_stop=lambda: next(polls) == steps + stop_after,
        )
    state = load_checkpoint(part.checkpoint_path).state
    assert (state["epoch"], state["step"]) == (1, stop_after)
    torch.manual_seed(999)  # nothing may depend on what the process did before
    fit_run(part, tiny_dataset, show_progress=False, resume=True)
    first, second = (load_checkpoint(run.checkpoint_path).tensors for run in (part, whole))
    assert first.keys() == second.keys()
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
