"""Train two small encoders to agree on pairs, with the streaming InfoNCE as the loss."""

import torch
from torch import nn

from mmssl import ops

torch.manual_seed(0)
num_pairs, width = 2048, 64
hidden = torch.randn(num_pairs, 16)  # the content that both views share
image = hidden @ torch.randn(16, 128) + 0.5 * torch.randn(num_pairs, 128)
text = hidden @ torch.randn(16, 96) + 0.5 * torch.randn(num_pairs, 96)

encode_image, encode_text = nn.Linear(128, width), nn.Linear(96, width)
log_temperature = nn.Parameter(torch.tensor(-1.0))  # learned together with the encoders
parameters = [*encode_image.parameters(), *encode_text.parameters(), log_temperature]
optimizer = torch.optim.AdamW(parameters, lr=1e-2)

for step in range(20):
    batch = torch.randperm(num_pairs)[:1024]
    loss = ops.info_nce(
        encode_image(image[batch]),  # (N, D)
        encode_text(text[batch]),  # (N, D)
        temperature=log_temperature.exp(),
        symmetric=True,
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0 or step == 19:
        print(f"step {step:2d}  loss {loss.item():.3f}  temperature {log_temperature.exp():.3f}")

with torch.no_grad():
    # The nearest text of every image, without a matrix of all similarities.
    left, right = (
        nn.functional.normalize(e, dim=1) for e in (encode_image(image), encode_text(text))
    )
    _, nearest = ops.masked_topk(left, right, k=1)
right_pairs = (nearest.squeeze(1) == torch.arange(num_pairs)).float().mean()
print(f"images whose nearest text is their own: {right_pairs:.0%}")
