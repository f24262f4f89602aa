"""Reading and writing of :class:`~mmssl.data.dataset.InteractionDataset` directories."""

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.data.readers import read_dataset
from mmssl.data.writers import write_dataset

__all__ = ["InteractionDataset", "Interactions", "read_dataset", "write_dataset"]
