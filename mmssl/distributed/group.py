"""The processes that train one model, as a task, the trainer and the evaluator see them.

A single process is a :class:`Group`, whose methods return their arguments. Several processes are
:class:`Processes`. They hold the same configuration, data set and random numbers and run the same
statements, so that every collective call is reached by all of them in the same order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmssl.errors import InputError, LostProcess

T = TypeVar("T")

_SMALL_BYTES = 1 << 20  # a gradient of less is worth a copy to save a call


class Group:
    """A single process."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    sharded: bool = False
    """Whether users and items are divided over the processes."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Return this process's part of ``count`` rows; the parts differ by one row at most."""
        first, last = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor over the processes, in place and without a gradient; return it."""
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """Add a tensor over the processes, differentiable any number of times.

        The objective is the sum of the processes' losses. A summand has a part in the loss of every
        process, so its gradient is the sum of their gradients.
        """
        return tensor

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add the gradient of every parameter over the processes."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Send a tensor from one process to all others, in place."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for every flag whether a process has set it."""
        return flags

    def wait(self) -> None:
        """Wait until every process is here."""

    def check_same(self, what: str, text: str) -> None:
        """Check that every process was given the same.

        Args:
            what: What the text says, for the message.
            text: Equal in all processes unless they were started in different ways.

        Raises:
            InputError: In every process, if one has another text.
        """

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Run a block in the leading process before the others, for files that it may change."""
        yield


SINGLE = Group()
"""Training in one process."""


class Processes(Group):
    """Several processes, connected by torch.distributed.

    Its default process group must be initialized, for tensors on the CPU and on ``device``.

    Raises:
        LostProcess: By every method, if another process has ended.

    Args:
        sharded: Whether users and items are divided over the processes.
    """

    def __init__(self, *, sharded: bool = False) -> None:
        import torch.distributed as dist

        self.sharded = sharded
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.sent = 0
        """Bytes that this process has given to collective calls."""
        self._buffers: dict[str, Tensor] = {}

    def buffer(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return memory for what is exchanged, which the next call with the same name reuses.

        The numbers of rows that travel differ from those of all other tables. Blocks of such sizes,
        allocated again each time, would break the freed blocks of tables into parts that fit none.

        Args:
            name: What the memory is used for.
            shape: Of the tensor.
            dtype: Its data type.
            device: Its device.
        """
        size = math.prod(shape) * dtype.itemsize
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            self._buffers[name] = held = torch.empty(size, dtype=torch.uint8, device=device)
        return held[:size].view(dtype).view(*shape)

    def sum(self, tensor: Tensor) -> Tensor:
        """See the base class."""
        import torch.distributed as dist

        self.sent += tensor.numel() * tensor.element_size()
        connected(dist.all_reduce, tensor)
        return tensor

    def all_to_all(
        self,
        out: Tensor,
        rows: Tensor,
        received: list[int] | None = None,
        sent: list[int] | None = None,
    ) -> None:
        """Send some rows to every process and fill ``out`` with those that they send here.

        Args:
            out: (H, ...) rows received, by sender.
            rows: (S, ...) rows to send, by receiver.
            received: Rows from each process; the same number from each by default.
            sent: Rows to each process.
        """
        self.start_all_to_all(out, rows, received, sent)()

    def start_all_to_all(
        self,
        out: Tensor,
        rows: Tensor,
        received: list[int] | None,
        sent: list[int] | None,
    ) -> Callable[[], None]:
        """Start :meth:`all_to_all`; the result waits for its end."""
        import torch.distributed as dist

        counts = [rows.shape[0] // self.size] * self.size if sent is None else sent
        others = sum(counts) - counts[self.rank]
        self.sent += others * (rows.numel() // max(rows.shape[0], 1)) * rows.element_size()
        # gloo has no bfloat16; the bits only travel.
        bits = torch.float16 if rows.dtype == torch.bfloat16 else rows.dtype
        tensors = (out.view(bits), rows.view(bits))
        work = connected(dist.all_to_all_single, *tensors, received, sent, async_op=True)

        def wait() -> None:
            connected(work.wait)

        return wait

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See the base class."""
        import torch.distributed as dist

        if self.rank == source:
            self.sent += tensor.numel() * tensor.element_size()
        connected(dist.broadcast, tensor, source)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, which have one shape, by rank: (N, ...)."""
        import torch.distributed as dist

        self.sent += tensor.numel() * tensor.element_size()
        out = tensor.new_empty(self.size, *tensor.shape)
        connected(dist.all_gather, list(out.unbind()), tensor.contiguous())
        return out

    def total(self, tensor: Tensor) -> Tensor:
        """See the base class."""
        out: Tensor = _Total.apply(tensor, self)
        return out

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See the base class; the order of the summands depends on nothing but their number.

        Small gradients of a data type are added together: each call waits for all processes.
        """
        small: dict[torch.dtype, list[Tensor]] = {}
        for gradient in (p.grad for p in parameters if p.grad is not None):
            if gradient.numel() * gradient.element_size() < _SMALL_BYTES:
                small.setdefault(gradient.dtype, []).append(gradient)
            else:
                self.sum(gradient)
        for gradients in small.values():
            total = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            parts = total.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """See the base class."""
        return tuple(bool(n) for n in self.sum(torch.tensor(flags, dtype=torch.int32)).tolist())

    def wait(self) -> None:
        """See the base class."""
        self.any(False)  # unlike dist.barrier, it needs no device

    def check_same(self, what: str, text: str) -> None:
        """See the base class."""
        digest = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
        expected = digest.clone()
        self.broadcast(expected, 0)
        self.check_digest(what, digest, expected)

    def check_digest(self, what: str, digest: Tensor, expected: Tensor) -> None:
        """Check that every process has the digest that the leading process expects.

        Args:
            what: What it is of, for the message.
            digest: (n,) uint8, that of this process.
            expected: (N, n) by process or (n,) for all, the same in every process.

        Raises:
            InputError: In every process, if one has another digest.
        """
        found = self.gather(digest)
        other = (found != expected).any(1).nonzero()
        if other.numel():
            raise InputError(
                f"--parallel: expected the same {what} in all processes, got another one in "
                f"process {int(other[0])} than in process 0"
            )

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """See the base class."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


def connected(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Run a collective call.

    Raises:
        LostProcess: It failed, as it does when another process has ended.
    """
    try:
        return call(*arguments, **options)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise LostProcess(reason) from error


class _Total(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Processes) -> Tensor:
        ctx.group = group
        return group.sum(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.total(grad.contiguous()), None
