"""The denominator of a softmax over cosines, block by block of the rows.

Legend: N anchors, M rows of a block, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._cases import Bad, Sample, normal
from mmssl.ops._checks import (
    accumulation_dtype,
    check_device,
    check_shape,
    check_temperature,
    check_tensor,
    is_cpu_half,
    promoted,
    without_autocast,
)
from mmssl.ops._registry import CPU_DTYPES, KERNEL_DTYPES, Contract, Op, Words, declare
from mmssl.ops.dispatch import use_native
from mmssl.ops.info_nce import logsumexp_over_rows


def cosine_logsumexp(
    anchor: Tensor, rows: Tensor, temperature: float | Tensor, *, partial: Tensor | None = None
) -> Tensor:
    """Compute the logarithm of a sum of exponentials of cosines, or continue it.

    Equal to::

        scores = F.normalize(anchor, dim=-1) @ F.normalize(rows, dim=-1).T / temperature
        out = scores.logsumexp(-1)
        out = out if partial is None else torch.logaddexp(partial, out)

    in O((N + M) D) memory. Rows that are not in one place, or not in memory at the same time, are
    taken block by block, in any order. Since no score exceeds ``1 / temperature``, sums of several
    processes need no maximum: the logarithm of the sum over the processes of ``exp(out - 1 /
    temperature)``, plus ``1 / temperature``, is the result for the rows of all. The cross-entropy
    of a positive whose cosine is c is the result minus ``c / temperature``.

    Gradients flow to ``anchor``, ``rows``, a tensor ``temperature`` and ``partial``; double
    backward is not supported. Results have the same bits every time, on the CPU for any number of
    threads.

    Args:
        anchor: (N, D) floating point, D >= 1.
        rows: (M, D), same dtype and device; M may be 0.
        temperature: > 0, a float or a tensor of one element (whose value is not checked).
        partial: (N,) result of earlier blocks, or None.

    Returns:
        (N,), float32 for the half types, else the dtype of ``anchor``; -inf without any row.

    Raises:
        InputError: an argument does not match its description.
        RuntimeError: backend "native" is required and no kernel exists for the device and dtype.
    """
    anchor, rows = promoted(anchor, rows)
    _check(anchor, rows, temperature, partial)
    if is_cpu_half(anchor):
        return cosine_logsumexp(anchor.float(), rows.float(), temperature, partial=partial)
    native = use_native("cosine_logsumexp", anchor.device.type, anchor.dtype)
    if not native or rows.shape[0] == 0:
        with without_autocast(anchor):
            return cosine_logsumexp_reference(anchor, rows, temperature, partial=partial)
    out = logsumexp_over_rows(anchor, rows, temperature)
    return out if partial is None else torch.logaddexp(partial, out)


def cosine_logsumexp_reference(
    anchor: Tensor, rows: Tensor, temperature: float | Tensor, *, partial: Tensor | None = None
) -> Tensor:
    """Compute :func:`cosine_logsumexp` in plain PyTorch, with the scores in memory."""
    acc = accumulation_dtype(anchor.dtype)
    scores = F.normalize(anchor.to(acc), dim=-1) @ F.normalize(rows.to(acc), dim=-1).T
    out = (scores / temperature).logsumexp(-1)
    return out if partial is None else torch.logaddexp(partial, out)


def _check(anchor: Tensor, rows: Tensor, temperature: Any, partial: Tensor | None) -> None:
    check_tensor("anchor", anchor, dims="(N, D)")
    check_shape("anchor", anchor, (anchor.shape[0], max(anchor.shape[1], 1)))
    check_tensor("rows", rows, dims="(M, D)", like=anchor)
    check_shape("rows", rows, (rows.shape[0], anchor.shape[1]))
    check_temperature(temperature)
    if partial is None:
        return
    check_tensor("partial", partial, dims="(N,)")
    check_shape("partial", partial, anchor.shape[:1])
    check_device("partial", partial, anchor.device)
    if partial.dtype != accumulation_dtype(anchor.dtype):
        raise InputError(
            f"partial: expected dtype {accumulation_dtype(anchor.dtype)}, got {partial.dtype}"
        )


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    acc = accumulation_dtype(dtype)

    def sample(label: str, n: int, m: int, d: int, temperature: float, continued: bool) -> Sample:
        anchor, rows = normal(dtype, n + m, (n, d), (m, d))
        arguments: dict[str, Any] = {"anchor": anchor, "rows": rows}
        arguments["temperature"] = torch.tensor(temperature, dtype=acc)
        if continued:
            (arguments["partial"],) = normal(acc, n, (n,))
        return Sample(label, arguments, tiny=n < 20)

    yield sample("typical", 5, 4, 3, 0.3, True)
    yield sample("first block", 4, 7, 3, 0.5, False)
    yield sample("low temperature", 3, 5, 2, 0.02, True)
    yield sample("one row", 2, 1, 1, 0.2, False)
    yield sample("no row", 3, 0, 2, 0.2, True)
    yield sample("no anchor", 0, 3, 2, 0.2, True)
    yield sample("odd sizes", 131, 517, 33, 0.1, True)
    yield sample("large", 300, 900, 64, 0.1, True)
    strided = sample("strided", 8, 6, 6, 0.3, True).arguments
    strided["anchor"] = strided["anchor"].mT.contiguous().mT
    strided["rows"] = strided["rows"].repeat(2, 1)[::2]
    yield Sample("strided", strided)


def _bad() -> Iterator[Bad]:
    x = torch.zeros(5, 3)
    yield Bad("anchor", [1.0], "anchor: expected a torch.Tensor, got list")
    yield Bad("anchor", x[0], r"anchor: expected shape \(N, D\), got \(3,\)")
    yield Bad("anchor", x[:, :0], r"anchor: expected shape \(5, 1\), got \(5, 0\)")
    yield Bad("rows", x.int(), "rows: expected a floating point dtype, got torch.int32")
    yield Bad("rows", x.double(), "rows: expected dtype torch.float32, like the other arguments")
    yield Bad("rows", x[:, :2], r"rows: expected shape \(5, 3\), got \(5, 2\)")
    yield Bad("rows", x.to("meta"), "rows: expected device cpu, got meta")
    for value in (0, -1.0, float("nan"), "warm", None, True):
        yield Bad("temperature", value, f"temperature: expected a finite number > 0, got {value!r}")
    yield Bad("temperature", torch.ones(2), r"temperature: .* one element, got shape \(2,\)")
    yield Bad("partial", x[:4, 0], r"partial: expected shape \(5,\), got \(4,\)")
    yield Bad("partial", x, r"partial: expected shape \(N,\), got \(5, 3\)")
    yield Bad("partial", x[:, 0].double(), "partial: expected dtype torch.float32, got torch.float")
    yield Bad("partial", x[:, 0].to("meta"), "partial: expected device cpu, got meta")


declare(
    Op(
        cosine_logsumexp,
        Contract(_samples, _bad, differentiable=("anchor", "rows", "temperature", "partial")),
        Words(
            "the denominator of a softmax over cosines, block by block",
            "a matrix of scores",
            notes={
                "cpu": "the kernel of `info_nce`",
                "cuda": "the kernel of `info_nce`, not run on a GPU yet",
            },
            page="info_nce",
        ),
        dtypes={"cpu": CPU_DTYPES, "cuda": KERNEL_DTYPES},
        folder="-",
    )
)
