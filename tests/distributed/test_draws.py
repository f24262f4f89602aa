"""Permutations and uniform numbers of which every process keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._dynamo  # before a process group exists, see mmssl/distributed/launch.py
import torch.distributed as dist

from mmssl.distributed import draws
from mmssl.distributed.draws import shuffled, uniform
from mmssl.distributed.group import Processes
from mmssl.errors import InputError
from tests.processes import run_together

COUNTS = (1, 6, 7, 8, 100)


def whole(count: int, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """What one process draws: a permutation and, after it, a number."""
    generator = torch.Generator().manual_seed(count)
    return torch.randperm(count, generator=generator, dtype=dtype), torch.rand(
        1, generator=generator
    )


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")
def test_processes_get_the_permutation_of_one(tmp_path):
    run_together(3, _shuffle, tmp_path)
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        for count, (order, number) in zip(COUNTS, found, strict=True):
            expected = whole(count)
            assert torch.equal(order, expected[0]) and torch.equal(number, expected[1])


def _shuffle(folder: Path) -> None:
    group, found = Processes(sharded=True), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "AT_ONCE", 7)
        if not group.leads:
            patch.setattr(torch, "randperm", None)  # the others hold blocks only
        for count in COUNTS:
            generator = torch.Generator().manual_seed(count)
            order = torch.full((count,), -1)
            for start, block in shuffled(group, count, generator):
                assert block.numel() <= 7
                order[start : start + block.numel()] = block
            found.append((order, torch.rand(1, generator=generator)))
        if group.leads:
            patch.setattr("tempfile.tempdir", str(folder / "none"))
            with pytest.raises(InputError, match="none: expected .* epoch, 400 bytes"):
                next(shuffled(group, 100, torch.Generator()))
    torch.save(found, folder / f"{group.rank}.pt")


def test_numbers_of_four_bytes_are_the_same():
    """What the temporary file relies on."""
    for count in COUNTS:
        narrow, wide = whole(count, torch.int32), whole(count)
        assert torch.equal(narrow[0].long(), wide[0]) and torch.equal(narrow[1], wide[1])


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("own", [(0, 100), (0, 0), (13, 15), (13, 99), (100, 100)])
def test_own_numbers_of_those_of_one_process(own, at_once):
    generator = torch.Generator().manual_seed(4)
    expected = (
        torch.rand(100, generator=generator, dtype=torch.float64),
        torch.rand(1, generator=generator),
    )
    generator = torch.Generator().manual_seed(4)
    found = torch.full((own[1] - own[0],), -1.0, dtype=torch.float64)
    for part, block in uniform(100, slice(*own), generator, at_once):
        found[part] = block
    assert torch.equal(found, expected[0][slice(*own)])
    assert torch.equal(torch.rand(1, generator=generator), expected[1])
