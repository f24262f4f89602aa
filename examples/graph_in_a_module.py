"""A module that keeps its graph: train it, save it, load it where the interactions are not."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from mmssl import GraphBuffer, InteractionGraph, ops

torch.manual_seed(0)
num_users, num_items, num_tastes = 300, 200, 5
user_taste = torch.randint(num_tastes, (num_users, 1))
item_taste = torch.randint(num_tastes, (num_items,))
likes = torch.rand(num_users, num_items) < torch.where(user_taste == item_taste, 0.3, 0.02)


class Recommender(nn.Module):
    """Two hops over the interactions, in front of a linear layer per side."""

    def __init__(self, graph: InteractionGraph, width: int = 32) -> None:
        super().__init__()
        self.graph = GraphBuffer(graph)  # moves with the module, and is in its state_dict
        self.user = nn.Parameter(0.1 * torch.randn(graph.num_users, width))
        self.item = nn.Parameter(0.1 * torch.randn(graph.num_items, width))
        self.user_head, self.item_head = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the vectors of every user and item."""
        user, item = ops.propagate_layers(self.graph(), self.user, self.item, num_layers=2)
        return self.user_head(user), self.item_head(item)


device = "cuda" if torch.cuda.is_available() else "cpu"
graph = InteractionGraph.from_torch(likes.to_sparse(), normalization="sym")
model = Recommender(graph).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for step in range(40):
    batch = ops.sample_bpr(model.graph(), batch_size=256)
    loss = ops.bpr_loss(*model(), *batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 9:
        print(f"step {step:2d}  loss {loss.item():.3f}")

with TemporaryDirectory() as folder:
    path = Path(folder) / "model.pt"
    torch.save(model.state_dict(), path)

    # Later, elsewhere: the same sizes and normalization, but no interactions.
    nothing = InteractionGraph.from_edges([], [], num_users, num_items, normalization="sym")
    served = Recommender(nothing)
    served.load_state_dict(torch.load(path, weights_only=True))

with torch.inference_mode():
    user, item = served()
    exclude = served.graph().ui  # the interactions, which came with the state
    _, best = ops.masked_topk(user, item, k=10, exclude=exclude)
print(f"{served.graph()}")
print(
    f"recommended items of the user's taste: {(item_taste[best] == user_taste).float().mean():.0%}"
)
