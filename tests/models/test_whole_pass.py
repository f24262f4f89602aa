"""The written-out gradient of the model's forward pass against autograd, in float64."""

from __future__ import annotations

import pytest
import torch

from mmssl.config import load_config
from mmssl.models.mmssl.model import MMSSL, MultiModalEmbeddings
from mmssl.training.task import create_task
from tests.ops.kernels import needs_cpu_kernel, needs_gpu_operators

FIELDS = MultiModalEmbeddings._fields[:6]


def make_model(dataset, *settings: str) -> MMSSL:
    config = load_config("paper", settings=("model.embedding_dim=8", *settings))
    model = create_task("mmssl", dataset, config).model.double().train()
    for position in range(len(model.modalities)):
        raw = model.get_buffer(f"raw_{position}")
        setattr(model, f"raw_{position}", raw.double())
    generator = torch.Generator().manual_seed(5)
    lists = torch.randint(
        0, model.graph.num_items, (2, model.graph.num_users, 1), generator=generator
    )
    model.modality_graphs = model.graph.with_lists(lists)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def run(
    model: MMSSL, read: tuple[str, ...]
) -> tuple[MultiModalEmbeddings, dict[str, torch.Tensor]]:
    torch.manual_seed(7)  # the mask of dropout
    out = model()
    generator = torch.Generator().manual_seed(8)

    def weighted(x: torch.Tensor) -> torch.Tensor:
        return (x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum()

    loss = sum(weighted(getattr(out, name)) for name in read)
    loss += sum(weighted(x) for x in out.features)
    model.zero_grad()
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), grads


@needs_cpu_kernel
@needs_gpu_operators
@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ((), FIELDS),
        (("model.dropout=0", "model.num_layers=3"), FIELDS),
        (("model.num_feature_layers=2", "model.normalization=sym"), ("user", "item")),
        (("model.num_layers=1",), ("user", "user_feature", "user_modality")),
    ],
)
def test_whole_pass_is_that_of_autograd(settings, read, tiny_dataset, monkeypatch):
    model = make_model(tiny_dataset, *settings)
    assert model._in_one_pass()
    found, grads = run(model, read)
    monkeypatch.setattr(MMSSL, "_in_one_pass", lambda self: False)
    expected, exact = run(model, read)
    for name in FIELDS:
        want = getattr(expected, name)
        torch.testing.assert_close(getattr(found, name), want, rtol=1e-10, atol=1e-12)
    assert grads.keys() == exact.keys()
    for name, want in exact.items():
        torch.testing.assert_close(
            grads[name], want, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


@needs_cpu_kernel
@needs_gpu_operators
def test_other_models_are_left_to_autograd(tiny_dataset):
    model = make_model(tiny_dataset)
    assert not model.eval()._in_one_pass()
    for settings in (("model.attention=identity",), ("model.final_softmax=true",)):
        assert not make_model(tiny_dataset, *settings)._in_one_pass()
