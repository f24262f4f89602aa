"""LightGCN (He et al., SIGIR 2020) from ops: sampling, propagation, loss, ranking."""

import torch

from mmssl import ops
from mmssl.graph import InteractionGraph

torch.manual_seed(0)
num_users, num_items, num_tastes = 600, 400, 8
user_taste = torch.randint(num_tastes, (num_users,))
item_taste = torch.randint(num_tastes, (num_items,))
same = user_taste[:, None] == item_taste[None, :]
likes = torch.rand(num_users, num_items) < torch.where(same, 0.25, 0.01)
held_out = likes & (torch.rand_like(likes, dtype=torch.float32) < 0.2)
train = likes & ~held_out

graph = InteractionGraph.from_edges(
    *train.nonzero(as_tuple=True), num_users, num_items, normalization="sym"
)
user_emb = torch.nn.Parameter(0.1 * torch.randn(num_users, 32))
item_emb = torch.nn.Parameter(0.1 * torch.randn(num_items, 32))
optimizer = torch.optim.Adam([user_emb, item_emb], lr=0.02)
generator = torch.Generator().manual_seed(0)


def embed(num_layers: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over the layers: (U, D) and (I, D)."""
    return ops.propagate_layers(graph, user_emb, item_emb, num_layers)


for _ in range(60):
    batch = ops.sample_bpr(graph, 512, generator)
    loss, squares = ops.bpr_loss(*embed(), *batch, with_l2=True)
    optimizer.zero_grad()
    (loss + 1e-4 * squares / 512).backward()
    optimizer.step()

with torch.no_grad():
    _, ranked = ops.masked_topk(*embed(), k=20, exclude=graph.ui)  # train items left out
hits = held_out.gather(1, ranked).sum(1)
recall = (hits / held_out.sum(1).clamp_min(1))[held_out.any(1)].mean()
print(f"loss {loss.item():.3f}, recall@20 {recall:.3f}")
