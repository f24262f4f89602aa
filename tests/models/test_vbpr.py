"""VBPR against equation 4 of the paper, its loss, its training."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmssl.config import load_config
from mmssl.training.task import create_task
from tests.models.truth import double


def task_for(dataset, *settings):
    return create_task("vbpr", dataset, load_config(settings=[*settings]))


def test_scores_and_losses_are_those_of_the_paper(tiny_dataset):
    task = task_for(tiny_dataset, "model.embedding_dim=8", "vbpr.reg=0.2")
    model = task.model
    with torch.no_grad():
        model.item_offset.normal_()
    p, t = double(model.user_embedding).split(8, 1)
    q, offset, weight = map(double, (model.item_embedding, model.item_offset, model.projection))
    offset = offset[:, 0]
    f = torch.cat([torch.from_numpy(rows).double() for rows in tiny_dataset.features.values()], 1)
    visual = f @ weight[:, :8]
    scores = torch.empty(80, 50, dtype=torch.float64)
    for u in range(80):
        for i in range(50):
            scores[u, i] = offset[i] + p[u] @ q[i] + t[u] @ visual[i] + weight[:, 8] @ f[i]
    user, item = task.embed()
    torch.testing.assert_close((user @ item.T).double(), scores, rtol=1e-4, atol=1e-5)

    task.start_epoch(0, 0)
    batch = task._draw(0)
    losses = task.losses(batch)
    u, i, j = batch
    expected = -F.logsigmoid(scores[u, i] - scores[u, j]).mean()
    torch.testing.assert_close(losses["bpr"].double(), expected, rtol=1e-5, atol=1e-6)
    item_rows = torch.cat((q, visual, (offset + f @ weight[:, 8])[:, None]), 1)
    squares = sum((part**2).sum() for part in (p[u], t[u], item_rows[i], item_rows[j]))
    l2 = 0.2 * squares / (2 * len(u))
    torch.testing.assert_close(losses["l2"].double(), l2, rtol=1e-5, atol=1e-6)
    sum(losses.values()).backward()
    assert all(bool(parameter.grad.any()) for parameter in model.parameters())
