"""Item kNN: the items that the users of the history's items have as well.

Deshpande, Karypis: "Item-Based Top-N Recommendation Algorithms", ACM TOIS 2004, with the similarity
based on conditional probability (section 4.2.2, equation 4) and k neighbors per item.

Legend: U users, I items, b items of a block.
"""

from __future__ import annotations

from torch import Tensor

from mmssl.models.closed_form import ClosedFormTask, gram_columns
from mmssl.models.item_weights import ItemWeights, nearest_weights


class ItemKNNTask(ClosedFormTask):
    """``W[j, i] = sum_(u with i and j) d_u^-1/2 / (d_j d_i^a)`` for the k largest of each j.

    d is the number of train interactions of a user or item. Users with many items count less: the
    rows of the interaction matrix have unit length.
    """

    def embed(self) -> ItemWeights:
        """See the base class."""
        settings, graph = self.config.itemknn, self.graph
        degree = graph.index.rowptr.diff()[graph.ui.row_of_edge()].double()
        # Both factors of a product of two columns have the fourth root.
        scaled = graph.with_value(degree.pow(-0.25).float())
        frequency = graph.index.colptr.diff().float().clamp_min(1)  # (I,)
        penalty = frequency.pow(settings.alpha)

        def similarity(items: Tensor) -> Tensor:
            common = gram_columns(scaled, items).T  # (b, I)
            return common / (frequency[items][:, None] * penalty)

        k, size = settings.num_neighbors, graph.num_items
        return ItemWeights(graph, nearest_weights(similarity, k, size, self.device))
