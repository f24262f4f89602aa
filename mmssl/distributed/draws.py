"""Random numbers of a single process, of which every process keeps its own, in bounded memory.

Legend: n edges of all processes, N processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmssl.distributed.group import Processes
from mmssl.errors import InputError

# Numbers that are sent, or drawn on a CPU, at the same time: 16 or 32 MB.
AT_ONCE = 1 << 22


def shuffled(
    group: Processes, count: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``torch.randperm(count, generator=generator)`` in blocks, the same in every process.

    Each number of a permutation depends on all of them. So only the leading process draws it, on a
    CPU into a temporary file, of 4 bytes per number, whose pages the system can write to disk. The
    others get its blocks and the state of its generator.

    Args:
        group: The processes.
        count: n.
        generator: In the same state in every process.

    Yields:
        The position of a block and its numbers, (.,) int64 on the device of the generator.

    Raises:
        InputError: The temporary file can't be written.
    """
    device, dtype = generator.device, torch.int32 if count < 2**31 else torch.int64
    order = torch.empty(0, dtype=dtype, device=device)
    if group.leads:
        order = order.new_empty(count) if device.type != "cpu" else _temporary(count, dtype)
        torch.randperm(count, generator=generator, out=order)
    state = generator.get_state()
    group.broadcast(state, 0)
    generator.set_state(state)
    for start in range(0, count, AT_ONCE):
        block = order[start : start + AT_ONCE]
        if not group.leads:
            block = order.new_empty(min(AT_ONCE, count - start))
        group.broadcast(block, 0)
        yield start, block.long()


def _temporary(count: int, dtype: torch.dtype) -> Tensor:
    """Return zeros (count,) in a file that has no name and ends with the tensor."""
    size = count * dtype.itemsize
    try:
        with tempfile.TemporaryFile() as file:
            # Not truncate(), with which a full disk would end the process later.
            for start in range(0, size, AT_ONCE):
                file.write(bytes(min(AT_ONCE, size - start)))
            file.flush()
            kind = np.int32 if dtype == torch.int32 else np.int64
            return torch.from_numpy(np.memmap(file, kind, "r+", shape=(count,)))
    except OSError as error:
        raise InputError(
            f"{tempfile.tempdir or 'TMPDIR'}: expected a directory with space for the order of "
            f"an epoch, {size} bytes: {error.strerror or error}"
        ) from error


def uniform(
    count: int, own: slice, generator: torch.Generator, at_once: int
) -> Iterator[tuple[slice, Tensor]]:
    """Draw n numbers from [0, 1) and yield those of this process, in blocks.

    Args:
        count: n, the numbers that every process draws.
        own: Those of this process.
        generator: In the same state in every process.
        at_once: Numbers that are drawn together. On a GPU they depend on it.

    Yields:
        Which of its own numbers they are, from 0, and the numbers, (.,) float64.
    """
    for start in range(0, count, at_once):
        size = min(at_once, count - start)
        draw = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
        first, last = max(own.start, start), min(own.stop, start + size)
        if first < last:
            yield slice(first - own.start, last - own.start), draw[first - start : last - start]
