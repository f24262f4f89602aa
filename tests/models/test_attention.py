"""Cross-modal attention against the equation written out node by node."""

from __future__ import annotations

import torch

from mmssl.models.mmssl.attention import CrossModalAttention, IdentityAttention


def test_cross_modal_is_the_equation():
    torch.manual_seed(0)
    num_views, num_nodes, dim, heads = 3, 5, 8, 2
    attention = CrossModalAttention(dim, heads).double()
    views = torch.randn(num_views, num_nodes, dim, dtype=torch.float64)
    got = attention(views)
    width = dim // heads
    for node in range(num_nodes):
        outputs = []
        for query_view in range(num_views):
            parts = []
            for head in range(heads):
                columns = slice(head * width, (head + 1) * width)
                query = views[query_view, node] @ attention.query[:, columns]
                keys = views[:, node] @ attention.key[:, columns]  # (M, width)
                weight = (keys @ query / width**0.5).softmax(0)
                parts.append(weight @ views[:, node])
            outputs.append(torch.cat(parts) @ attention.output)
        assert torch.allclose(got[node], torch.stack(outputs).mean(0), rtol=1e-12, atol=1e-14)


def test_every_weight_gets_a_gradient():
    attention = CrossModalAttention(8, 2)
    attention(torch.randn(2, 6, 8)).square().sum().backward()
    for parameter in attention.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_identity_is_attention_with_equal_values():
    """Where every view of a node is the same, attention weights can't matter."""
    attention, identity = CrossModalAttention(8, 4), IdentityAttention(8, 4)
    identity.load_state_dict({"output": attention.output.detach()})
    views = torch.randn(1, 6, 8).expand(3, -1, -1)
    assert torch.allclose(attention(views), identity(views), rtol=1e-5, atol=1e-6)
