"""The forms of ``info_nce``: checks, the plain PyTorch reference, and what its kernel lacks.

Legend: N anchors, M rows that hold their positives, K negatives, D features; leading dimensions are
independent problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import InputError
from mmssl.ops._cases import Bad
from mmssl.ops._checks import (
    accumulation_dtype,
    check_ids,
    check_not_negative,
    check_shape,
    check_temperature,
    check_tensor,
)

_REDUCTIONS = ("mean", "sum", "none")


class Form(NamedTuple):
    """The keyword arguments of :func:`mmssl.ops.info_nce`, which describes them."""

    negatives: Tensor | None = None  # (K, D) or (..., N, K, D)
    target: Tensor | None = None  # (..., N)
    labels: Tensor | None = None  # (..., N)
    positive_labels: Tensor | None = None  # (..., M)
    num_rows: Tensor | None = None  # (...)
    in_batch: bool = True
    intra_view: bool = True
    symmetric: bool = False
    eps: float = 0.0
    reduction: str = "mean"

    def shared(self) -> Tensor | None:
        """Return the negatives of all anchors, (K, D), or None."""
        return None if self.negatives is None or self.negatives.dim() > 2 else self.negatives

    def own(self) -> Tensor | None:
        """Return the negatives of each anchor, (..., N, K, D), or None."""
        return None if self.negatives is None or self.negatives.dim() == 2 else self.negatives

    def labels_of_positives(self) -> Tensor | None:
        """Return the labels of the rows of ``positive``, (..., M), or None."""
        return self.labels if self.positive_labels is None else self.positive_labels


def check_arguments(
    anchor: Tensor, positive: Tensor, temperature: float | Tensor, form: Form
) -> None:
    """Raise InputError for what the op does not accept."""
    check_tensor("anchor", anchor, dims="(..., N, D)")
    if anchor.shape[-1] == 0:
        raise InputError(
            f"anchor: expected shape (..., N, D) with D >= 1, got {tuple(anchor.shape)}"
        )
    *batch, n, d = anchor.shape
    check_tensor("positive", positive, dims="(..., N, D)", like=anchor)
    square = form.target is None and form.positive_labels is None
    m = n if square or positive.dim() < 2 else positive.shape[-2]
    if tuple(positive.shape) != (*batch, m, d):
        other = "; another number of rows needs target or positive_labels" if square else ""
        raise InputError(
            f"positive: expected shape {(*batch, m, d)}, got {tuple(positive.shape)}{other}"
        )
    _check_positives(anchor, m, form)
    if form.num_rows is not None:
        check_ids(
            "num_rows", form.num_rows, n + 1, anchor.device, shape=tuple(batch), what="numbers"
        )
        if any(x is not None for x in form[:4]):
            raise InputError(
                "num_rows: expected None with negatives, target or labels, got a tensor"
            )
    if form.negatives is not None:
        _check_negatives(anchor, form.negatives)
    check_temperature(temperature)
    check_not_negative("eps", form.eps)
    if form.reduction not in _REDUCTIONS:
        raise InputError(
            f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {form.reduction!r}"
        )


def _check_positives(anchor: Tensor, m: int, form: Form) -> None:
    """Check which rows are said to be positives, and the options that depend on it."""
    if form.target is None and form.labels is None and form.positive_labels is None:
        return
    *batch, n, _ = anchor.shape
    for name, ids, count, limit in (
        ("target", form.target, n, m),
        ("labels", form.labels, n, None),
        ("positive_labels", form.positive_labels, m, None),
    ):
        if ids is not None:
            check_ids(name, ids, limit, anchor.device, shape=(*batch, count))
    labeled = form.labels is not None
    one_way = form.target is not None or form.positive_labels is not None
    for wrong, message in (
        (labeled and form.target is not None, "labels: expected None with target, got a tensor"),
        (
            form.positive_labels is not None and not labeled,
            "labels: expected the labels of the anchors with positive_labels, got None",
        ),
        (labeled and not form.in_batch, "in_batch: expected True with labels, got False"),
        (labeled and form.eps != 0, f"eps: expected 0 with labels, got {form.eps!r:.60}"),
        (
            one_way and form.symmetric,
            "symmetric: expected False with target or positive_labels, got True",
        ),
    ):
        if wrong:
            raise InputError(message)


def _check_negatives(anchor: Tensor, negatives: Tensor) -> None:
    rows: tuple[int, ...] = ()
    if isinstance(negatives, Tensor) and negatives.dim() > 2:
        rows = tuple(anchor.shape[:-1])
    dims = f"({''.join(f'{size}, ' for size in rows)}K, D)"
    check_tensor("negatives", negatives, dims=dims, like=anchor)
    check_shape("negatives", negatives, (*rows, negatives.shape[-2], anchor.shape[-1]))


def bad_arguments() -> Iterator[Bad]:
    """Yield arguments that :func:`check_arguments` refuses, for the contract of the op."""
    x = torch.zeros(5, 3)
    yield Bad("anchor", [1.0], "anchor: expected a torch.Tensor, got list")
    yield Bad("anchor", x.int(), "anchor: expected a floating point dtype, got torch.int32")
    yield Bad("anchor", x[0], r"anchor: expected shape \(\.\.\., N, D\), got \(3,\)")
    yield Bad("anchor", x[:, :0], r"anchor: expected shape .* with D >= 1, got \(5, 0\)")
    yield Bad("positive", x[:2], r"positive: expected shape \(5, 3\), got \(2, 3\)")
    yield Bad("positive", x.double(), "positive: expected dtype torch.float32, like the other")
    yield Bad("positive", x.to("meta"), "positive: expected device cpu, got meta")
    yield Bad("negatives", x[:, :2], r"negatives: expected shape \(5, 3\), got \(5, 2\)")
    yield Bad("negatives", x[0], r"negatives: expected shape \(K, D\), got \(3,\)")
    yield Bad("negatives", 3, "negatives: expected a torch.Tensor, got int")
    for value in (0, -1.0, float("nan"), float("inf"), "warm", None, True):
        yield Bad("temperature", value, f"temperature: expected a finite number > 0, got {value!r}")
    yield Bad("temperature", torch.ones(2), r"temperature: .* one element, got shape \(2,\)")
    yield Bad("temperature", torch.ones(1).int(), "temperature: .* of torch.int32")
    for value in (-1.0, float("nan"), float("inf"), "tiny", None):
        yield Bad("eps", value, f"eps: expected a finite number >= 0, got {value!r}")
    ids = torch.arange(5)
    yield Bad("positive", x[:2], ".* another number of rows needs target or positive_labels$")
    yield Bad("negatives", x[None], r"negatives: expected shape \(5, 5, 3\), got \(1, 5, 3\)")
    four = torch.zeros(1, 5, 2, 3)
    yield Bad("negatives", four, r"negatives: expected shape \(5, K, D\), got \(1, 5, 2, 3\)")
    for name in ("target", "labels"):
        yield Bad(name, [0] * 5, f"{name}: expected a torch.Tensor, got list")
        yield Bad(name, ids.int(), rf"{name}: expected shape \(5,\) int64, got \(5,\) torch.int32")
        yield Bad(name, ids[:4], rf"{name}: expected shape \(5,\) int64, got \(4,\)")
        yield Bad(name, ids.to("meta"), f"{name}: expected device cpu, got meta")
    yield Bad("target", ids + 1, r"target: expected ids in \[0, 5\), got 5")
    yield Bad("target", ids - 1, r"target: expected ids in \[0, 5\), got -1")
    yield Bad("num_rows", 3, "num_rows: expected a torch.Tensor, got int")
    yield Bad("num_rows", ids[:1], r"num_rows: expected shape \(\) int64, got \(1,\) torch.int64")
    yield Bad(
        "num_rows", ids[0].int(), r"num_rows: expected shape \(\) int64, got \(\) torch.int32"
    )
    yield Bad("num_rows", ids[3].to("meta"), "num_rows: expected device cpu, got meta")
    yield Bad(
        "num_rows", ids[3], "num_rows: expected None with negatives, target or labels, got a tensor"
    )
    yield Bad("positive_labels", ids, "labels: expected the labels of the anchors with positive_")
    yield Bad("positive_labels", ids[:4], r"positive_labels: expected shape \(5,\) int64")
    yield Bad("labels", ids, "eps: expected 0 with labels, got 1e-08")
    yield Bad("reduction", "max", "reduction: expected one of mean, sum, none, got 'max'")


def info_nce_reference(
    anchor: Tensor, positive: Tensor, temperature: float | Tensor, **options: Any
) -> Tensor:
    """Compute :func:`mmssl.ops.info_nce` in plain PyTorch, with all scores in memory."""
    form = Form(**options)
    acc = accumulation_dtype(anchor.dtype)
    there = _there(anchor, form.num_rows)
    if there is not None:
        anchor, positive = (torch.where(there[..., None], x, 0) for x in (anchor, positive))
    z1, z2 = (F.normalize(x.to(acc), dim=-1) for x in (anchor, positive))
    zn = None if form.negatives is None else F.normalize(form.negatives.to(acc), dim=-1)
    form = form._replace(negatives=zn)
    loss, counted = _one_direction(z1, z2, temperature, form)
    if form.symmetric:
        loss = (loss + _one_direction(z2, z1, temperature, form)[0]) / 2
    if there is not None:
        loss, counted = torch.where(there, loss, 0), there
    return reduced(loss, None if counted is None else counted.sum(-1), form.reduction)


def _there(anchor: Tensor, num_rows: Tensor | None) -> Tensor | None:
    """Return which of the rows (..., N) are not padding, or None without padding."""
    if num_rows is None:
        return None
    return torch.arange(anchor.shape[-2], device=anchor.device) < num_rows[..., None]


def _one_direction(
    z1: Tensor, z2: Tensor, temperature: float | Tensor, form: Form
) -> tuple[Tensor, Tensor | None]:
    """Return the (..., N) losses, and which anchors have a positive unless all have one."""
    s12 = z1 @ z2.mT / temperature
    logits = [s12]
    if form.intra_view:
        self_pair = torch.eye(z1.shape[-2], dtype=torch.bool, device=z1.device)
        logits.append((z1 @ z1.mT / temperature).masked_fill(self_pair, -torch.inf))
    own, shared, counted = form.own(), form.shared(), None
    if form.labels is None:
        positive_score = paired_scores(z1, z2, form.target) / temperature
    else:
        scores = torch.cat(logits, -1)
        equal = [_equal(form.labels, form.labels_of_positives())]
        if form.intra_view:
            equal.append(_equal(form.labels, form.labels) & ~self_pair)
        is_positive = torch.cat(equal, -1)
        count = is_positive.sum(-1)
        counted = count > 0
        total = torch.where(is_positive, scores, 0).sum(-1)
        positive_score = total / count.clamp_min(1)
    if not form.in_batch:
        logits[0] = positive_score[..., None]
    if shared is not None:
        logits.append(z1 @ shared.mT / temperature)
    if own is not None:
        logits.append((own @ z1[..., None])[..., 0] / temperature)
    there = _there(z1, form.num_rows)
    if there is not None:
        # A row of padding keeps its terms: its loss is not used, but must have a finite gradient.
        out = there[..., :, None] & ~there[..., None, :]
        logits = [x if x.shape[-1] == 1 else x.masked_fill(out, -torch.inf) for x in logits]
    loss = with_eps(torch.cat(logits, -1).logsumexp(-1) - positive_score, form.eps)
    return loss if counted is None else torch.where(counted, loss, 0), counted


def _equal(labels: Tensor, others: Tensor | None) -> Tensor:
    assert others is not None
    return labels[..., :, None] == others[..., None, :]


def composed(
    rows: Callable[..., Tensor],
    anchor: Tensor,
    positive: Tensor,
    temperature: float | Tensor,
    form: Form,
) -> Tensor:
    """Compute the forms with labels or with negatives of each anchor from those of the kernel.

    No array has more entries than the inputs, except for O((N + M) D) of the labels.

    Args:
        rows: ``rows(anchor, positive, form)``, the kernel's losses of all anchors, (..., N).
        anchor: (..., N, D).
        positive: (..., M, D).
        temperature: > 0.
        form: the arguments of the op.
    """
    acc = accumulation_dtype(anchor.dtype)
    one_way = form._replace(symmetric=False, negatives=form.shared(), eps=0.0, reduction="none")

    def direction(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        zx, zy = (F.normalize(t.to(acc), dim=-1) for t in (x, y))
        counted = None
        if form.labels is None:
            score = paired_scores(zx, zy, form.target) / temperature
            loss = rows(x, y, one_way)
        else:
            score, counted = _label_scores(zx, zy, form)
            score = score / temperature
            unmatched = torch.full_like(form.labels, -1)
            loss = rows(x, y, one_way._replace(target=unmatched)) - score
        own = form.own()
        if own is not None:
            zn = F.normalize(own.to(acc), dim=-1)
            others = (zn @ zx[..., None])[..., 0] / temperature
            loss = torch.logaddexp(loss, others.logsumexp(-1) - score)
        loss = with_eps(loss, form.eps)
        return loss if counted is None else torch.where(counted, loss, 0), counted

    loss, counted = direction(anchor, positive)
    if form.symmetric:
        loss = (loss + direction(positive, anchor)[0]) / 2
    return reduced(loss, None if counted is None else counted.sum(-1), form.reduction)


def paired_scores(z1: Tensor, z2: Tensor, target: Tensor | None) -> Tensor:
    """Return the (..., N) cosines of normalized anchors and their positives."""
    if target is not None:
        flat = target.flatten(0, -2) if target.ndim > 1 else target[None]
        flat = flat + _first_rows(flat.shape[0], z2.shape[-2], z2.device)
        z2 = z2.flatten(0, -2).index_select(0, flat.flatten()).view_as(z1)
    return (z1 * z2).sum(-1)


def _first_rows(problems: int, rows: int, device: torch.device) -> Tensor:
    """Return the (problems, 1) first rows of problems that lie one after the other."""
    return torch.arange(problems, device=device)[:, None] * rows


def _label_scores(z1: Tensor, z2: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Return the mean cosine of each anchor and its positives, and which anchors have one.

    The sum of the cosines is the cosine with the sum, so that one row per label is enough.
    """
    labels, others = form.labels, form.labels_of_positives()
    assert labels is not None and others is not None
    n, d = z1.shape[-2:]
    both = torch.cat([labels, others], -1).reshape(-1, n + others.shape[-1])
    # Number the labels of each problem without reading how many there are.
    ordered, order = both.sort(-1)
    new = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
    number = torch.empty_like(both).scatter_(-1, order, new.cumsum(-1))
    number = number + _first_rows(both.shape[0], both.shape[1], both.device)
    mine, theirs = (number[:, part].flatten() for part in (slice(n), slice(n, None)))
    rows, a = z2.reshape(-1, d), z1.reshape(-1, d)
    place = theirs
    if form.intra_view:
        rows, place = torch.cat([rows, a]), torch.cat([theirs, mine])
    total = rows.new_zeros(both.numel(), d).index_add(0, place, rows).index_select(0, mine)
    count = rows.new_zeros(both.numel()).index_add(0, place, rows.new_ones(len(rows)))[mine]
    score = (a * total).sum(-1)
    if form.intra_view:  # without the anchor itself
        score, count = score - (a * a).sum(-1), count - 1
    shape = z1.shape[:-1]
    return (score / count.clamp_min(1)).reshape(shape), (count > 0).reshape(shape)


def with_eps(loss: Tensor, eps: float) -> Tensor:
    """Return -log(exp(-loss) + eps)."""
    return -torch.logaddexp(-loss, torch.log(loss.new_tensor(eps))) if eps else loss


def reduced(loss: Tensor, counted: Tensor | None, reduction: str) -> Tensor:
    """Reduce (..., N) losses; ``counted``: how many the mean is over, (...), or None for all."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum(-1)
    return loss.mean(-1) if counted is None else loss.sum(-1) / counted
