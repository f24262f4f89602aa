"""What the models in closed form share: Gram matrices of items, and a setting that is selected.

Legend: U users, I items, b items of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import SINGLE, Group
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph, Normalization
from mmssl.models.item_weights import check_dense
from mmssl.training.selection import Kind, best_on_validation
from mmssl.training.task import Task

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset

# A block of dense columns has about this number of elements, 128 MB in float64.
_BLOCK_ELEMENTS = 1 << 24


def gram_columns(graph: InteractionGraph, items: Tensor) -> Tensor:
    """Return some columns (I, b) of ``A^T A``, float32, with A the (U, I) view of the graph.

    Args:
        graph: Normalization "none" or "sym", whose two views are transposes of each other.
        items: (b,) int64, which columns.
    """
    each = torch.arange(items.numel(), device=items.device)
    column = torch.zeros(graph.num_items, items.numel(), device=items.device)
    column[items, each] = 1
    return ops.spmm(graph.iu, ops.spmm(graph.ui, column))


def gram(
    graph: InteractionGraph, dtype: torch.dtype = torch.float64, group: Group = SINGLE
) -> Tensor:
    """Return ``A^T A`` (I, I) as a dense matrix, computed in float32; counts are exact.

    Args:
        graph: As in :func:`gram_columns`.
        dtype: Of the result.
        group: The processes that divide the users, each with the rows of its own; only the leading
            one gets the matrix, the others an empty one.
    """
    num_users = int(group.sum(torch.tensor(graph.num_users)))
    size = graph.num_items if group.leads else 0
    products = torch.empty(size, size, dtype=dtype, device=graph.device)
    block = max(1, _BLOCK_ELEMENTS // max(num_users, graph.num_items))
    for items in torch.arange(graph.num_items, device=graph.device).split(block):
        columns = group.sum(gram_columns(graph, items))
        if group.leads:
            products[:, items] = columns.to(dtype)
    return products


class ClosedFormTask(Task):
    """A model that is computed at once, without epochs.

    A setting of such a model may have the value "validation": the model is computed for each of a
    few values, and the one with the highest Recall@20 on validation stays.

    Raises:
        InputError: More items than a dense matrix is held for, if the model holds one.
    """

    normalization: Normalization = "none"
    dense: ClassVar[str] = ""
    """Name of the model if it holds a dense matrix of items by items."""

    def prepare(self, dataset: InteractionDataset) -> None:
        """See the base class."""
        if self.dense:
            check_dense(dataset.num_items, self.dense)
        self._validation = Evaluator(dataset, "val", self.graph)

    def select(self, field: str, values: Iterable[float], fit: Callable[[float], Kind]) -> Kind:
        """Compute the model with the value of a field, or with the best one of ``values``.

        Args:
            field: "section.name" of the configuration.
            values: What is tried if the field is "validation".
            fit: Computes the model for a value.
        """
        section, _, name = field.partition(".")
        given = getattr(getattr(self.config, section), name)
        return fit(given) if given != "validation" else self.best_of(field, values, fit)

    def best_of(self, name: str, values: Iterable[float], fit: Callable[[float], Kind]) -> Kind:
        """Compute the model for several values of a setting; return the best on validation.

        Args:
            name: The name under which ``selected`` records the value.
            values: What is tried; the first of equally good ones stays.
            fit: Computes the model for a value.
        """
        value, scorer = best_on_validation(self._validation, values, fit)
        self.selected = {**self.selected, name: value}
        return scorer
