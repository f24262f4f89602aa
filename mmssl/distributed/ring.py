"""InfoNCE of rows that are divided over processes, whose blocks travel in a ring.

Every process compares its anchors with the block that it holds while the block moves on, so that it
never holds more than two blocks of others. In the backward pass the blocks travel once more, and
their gradients with them.

Legend: P processes, N rows in all, n rows of a process, M contrasts, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import Processes


def ring_info_nce(
    group: Processes, anchor: Tensor, positive: Tensor, temperature: float, eps: float = 0.0
) -> Tensor:
    """Compute this process's summand of ``info_nce(anchor, positive, temperature, eps=eps)``.

    The sum over the processes is the loss of the rows of all, added over the M contrasts. The
    gradient is that of this sum, also with respect to rows that other processes compare theirs
    with; double backward is not supported. All processes call this together, and backward. It needs
    O(n M D) memory. A block of n rows is sent P - 1 times forward and 2 (P - 1) times backward. The
    bits are the same every time.

    Args:
        group: The processes.
        anchor: (M, n, D), this process's rows; n may differ between processes and be 0.
        positive: (n, D); row i is the positive of anchor i in every contrast.
        temperature: > 0.
        eps: Added inside the logarithm.

    Returns:
        A scalar.
    """
    counts = group.gather(torch.tensor(positive.shape[0])).tolist()
    rows = torch.cat([positive[None], anchor]).transpose(0, 1).contiguous()  # (n, 1 + M, D)
    denominator: Tensor = _LogSumExp.apply(rows, _Ring(group, counts), temperature)
    score = F.cosine_similarity(anchor, positive[None], dim=-1) / temperature
    log_ratio = score - denominator
    if eps:
        log_ratio = (log_ratio.exp() + eps).log()
    return -log_ratio.sum() / sum(counts)


class _Ring:
    """Sends blocks to the next process."""

    def __init__(self, group: Processes, counts: list[int]) -> None:
        self.group, self.counts = group, counts
        self.following = (group.rank + 1) % group.size
        self.previous = (group.rank - 1) % group.size

    def start(self, block: Tensor, step: int) -> Callable[[], Tensor]:
        """Send a block on; the result waits for the one that is ``step`` processes from home."""
        size = self.group.size
        sent, received = [0] * size, [0] * size
        sent[self.following] = block.shape[0]
        received[self.previous] = self.counts[(self.group.rank - step) % size]
        out = block.new_empty(received[self.previous], *block.shape[1:])
        finish = self.group.start_all_to_all(out, block, received, sent)

        def wait() -> Tensor:
            finish()
            return out

        return wait


class _LogSumExp(torch.autograd.Function):
    """The logarithms (M, n) of the denominators of this process's anchors."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ring: _Ring, temperature: float) -> Tensor:
        size = ring.group.size
        arriving = ring.start(rows, 1) if size > 1 else None
        total = _own_part(rows, temperature)
        for step in range(1, size):
            assert arriving is not None
            block = arriving()
            arriving = ring.start(block, step + 1) if step + 1 < size else None
            total = torch.logaddexp(total, _part(rows, block, temperature))
        ctx.ring, ctx.temperature = ring, temperature
        ctx.save_for_backward(rows, total)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows, total), ring, temperature = ctx.saved_tensors, ctx.ring, ctx.temperature
        size = ring.group.size
        arriving = ring.start(rows, 1) if size > 1 else None
        with torch.enable_grad():
            own = rows.detach().requires_grad_()
            part = _own_part(own, temperature)
        (to_own,) = torch.autograd.grad(part, own, grad * (part.detach() - total).exp())
        to_block = None  # the gradient of the block that is here
        for step in range(1, size):
            assert arriving is not None
            block = arriving()
            arriving = ring.start(block, step + 1) if step + 1 < size else None
            returning = None if to_block is None else ring.start(to_block, step)
            with torch.enable_grad():
                own, other = rows.detach().requires_grad_(), block.detach().requires_grad_()
                part = _part(own, other, temperature)
            weight = grad * (part.detach() - total).exp()
            here, there = torch.autograd.grad(part, (own, other), weight)
            to_own += here
            to_block = there if returning is None else returning().add_(there)
        if to_block is not None:
            to_own += ring.start(to_block, size)()
        return to_own, None, None


def _own_part(rows: Tensor, temperature: float) -> Tensor:
    """Return the (M, n) logarithms of the sums over the rows of this process.

    Args:
        rows: (n, 1 + M, D), positives and anchors.
        temperature: > 0.
    """
    anchor = rows[:, 1:].transpose(0, 1)
    positive = rows[:, :1].transpose(0, 1).expand_as(anchor)
    score = F.cosine_similarity(anchor, positive, dim=-1) / temperature
    return ops.info_nce(anchor, positive, temperature, reduction="none") + score


def _part(rows: Tensor, block: Tensor, temperature: float) -> Tensor:
    """Return the (M, n) logarithms of the sums over the rows of another process.

    Args:
        rows: (n, 1 + M, D), positives and anchors of this process.
        block: (., 1 + M, D), those of the other.
        temperature: > 0.
    """
    parts = [
        ops.cosine_logsumexp(rows[:, m], torch.cat([block[:, 0], block[:, m]]), temperature)
        for m in range(1, rows.shape[1])
    ]
    return torch.stack(parts)
