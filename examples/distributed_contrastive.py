"""One InfoNCE over the batches of several processes: every pair is a negative of every other."""

import tempfile

import torch

# Imported before a process group exists: imported later, some of its modules keep the group as a
# default argument, and the threads of the group can abort the process at its end.
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn

from mmssl import ops


class AllGather(torch.autograd.Function):
    """(N, D) of every process -> (processes N, D); gradients are summed over the processes."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """Concatenate the rows of all processes."""
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """Sum what every process sends to the rows of this one."""
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def global_info_nce(anchor: Tensor, positive: Tensor, temperature, intra_view=True) -> Tensor:
    """Compute this process's part of ``info_nce(..., symmetric=True)`` on the rows of all.

    Every process passes as many rows, (N, D). The mean of the results and of the gradients, which
    DistributedDataParallel forms, are those of the whole batch. The memory is O(processes N D).
    """
    n, first = len(anchor), len(anchor) * dist.get_rank()
    own = torch.arange(first, first + n, device=anchor.device)

    def direction(x: Tensor, all_x: Tensor, all_y: Tensor) -> Tensor:
        elsewhere = torch.cat([all_x[:first], all_x[first + n :]]) if intra_view else None
        return ops.info_nce(
            x, all_y, temperature, target=own, negatives=elsewhere, intra_view=intra_view
        )

    all_anchors, all_positives = AllGather.apply(anchor), AllGather.apply(positive)
    forth = direction(anchor, all_anchors, all_positives)
    back = direction(positive, all_positives, all_anchors)
    return (forth + back) / 2


def compare(rank: int, processes: int) -> None:
    """Take the gradients of a batch in several processes and compare them with those of one."""
    torch.manual_seed(0)  # the same weights and data in every process
    encoder = nn.parallel.DistributedDataParallel(nn.Linear(16, 8))
    views = torch.randn(2, processes * 32, 16)
    mine = encoder(views[:, rank * 32 : (rank + 1) * 32])
    loss = global_info_nce(mine[0], mine[1], 0.2)
    loss.backward()

    whole = nn.Linear(16, 8)
    whole.load_state_dict(encoder.module.state_dict())
    expected = ops.info_nce(*whole(views), 0.2, symmetric=True)
    expected.backward()
    total = loss.detach()
    dist.all_reduce(total)
    torch.testing.assert_close(total / processes, expected.detach())
    torch.testing.assert_close(encoder.module.weight.grad, whole.weight.grad)
    if rank == 0:
        print(f"loss of the whole batch: {expected.item():.4f}, the same in {processes} processes")


def train(rank: int, processes: int, store: str) -> None:
    """Join the processes and leave them."""
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
    # In a function, so that DistributedDataParallel ends before the group does. As the last owner
    # of the group it would wait for the group's thread and hold the lock that this thread needs.
    compare(rank, processes)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (2, f"{folder}/store"), nprocs=2)
